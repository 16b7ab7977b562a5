"""What to do about a failed step, in a sentence, as far as the cause can be told."""

from __future__ import annotations

import errno
import os
import re

from ._stages import Stage

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21}

_MOUNT = 0x00020000
# clone(2)'s flag -> the name in spawn() and in /proc/sys/user
_NAMESPACES = {
    _MOUNT: ("mount", "mnt"),
    0x04000000: ("uts", "uts"),
    0x08000000: ("ipc", "ipc"),
    0x10000000: ("user", "user"),
    0x20000000: ("pid", "pid"),
    0x40000000: ("net", "net"),
}

_FIXED = {
    (Stage.GROUPS, errno.EPERM): "changing groups needs CAP_SETGID",
    (Stage.GID, errno.EPERM): "changing the gid needs CAP_SETGID",
    (Stage.UID, errno.EPERM): "changing the uid needs CAP_SETUID",
    (
        Stage.GROUPS,
        errno.EINVAL,
    ): "the id has no mapping in this user namespace, or too many groups",
    (Stage.GID, errno.EINVAL): "the gid has no mapping in this user namespace",
    (Stage.UID, errno.EINVAL): "the uid has no mapping in this user namespace",
    (Stage.UID, errno.EAGAIN): "RLIMIT_NPROC of the target user is exhausted",
    (Stage.CLONE, errno.EAGAIN): "a limit on processes is exhausted (RLIMIT_NPROC, pids.max)",
    (Stage.CLONE, errno.EMFILE): "no descriptor is free for the pidfd (RLIMIT_NOFILE)",
    (Stage.FDS, errno.EBADF): "not open, or above RLIMIT_NOFILE",
    (Stage.FDS, errno.EMFILE): "RLIMIT_NOFILE is exhausted",
    (Stage.EXEC, errno.EACCES): "not executable, or a directory on the way cannot be searched",
    (Stage.EXEC, errno.ENOEXEC): "no #! line and no known binary format",
    (Stage.EXEC, errno.E2BIG): "argv and env are too large (one string may have 131071 bytes)",
    (Stage.EXEC, errno.ETXTBSY): "another process has the program open for writing",
    (
        Stage.CGROUP,
        errno.ENOENT,
    ): "there is no such cgroup: it is a directory of a cgroup file system",
    (Stage.CGROUP, errno.ENOTDIR): "cgroup is the directory, not a file in it",
    (Stage.CGROUP, errno.EBUSY): (
        "its controllers are passed on to children (cgroup.subtree_control): "
        "make a child cgroup, processes live in leaves"
    ),
    (Stage.CGROUP, errno.EOPNOTSUPP): "its cgroup.type is threaded or invalid: use a domain",
    (Stage.CGROUP, errno.ENODEV): "the cgroup was removed",
    (Stage.CGROUP, errno.EAGAIN): "pids.max of the cgroup is reached",
    (Stage.NAMESPACES, errno.ESRCH): "the namespace set has ended: somebody killed its holder",
    (Stage.NAMESPACES, errno.EXDEV): (
        "the root directory of this process changed after the set was made: make a new one"
    ),
    (Stage.NAMESPACES, errno.EBADF): (
        "the namespace set is closed, or the program closed its descriptors"
    ),
    (Stage.PROPAGATION, errno.EINVAL): (
        "/ is no mount point and its mount cannot be reached: "
        "bind-mount the chroot's directory on itself"
    ),
    (Stage.PROC, errno.ENOENT): "there is no directory /proc to mount on",
}
_DELEGATION = (
    "not delegated to this user: cgroup.procs must be writable here and, in v2, "
    "in the common ancestor with the present cgroup"
)


def namespace_name(flag: int) -> str | None:
    """The namespace's name in ``spawn()``, from a flag of clone(2)."""
    found = _NAMESPACES.get(flag)
    return None if found is None else found[0]


def _status() -> dict[str, str]:
    try:
        with open("/proc/self/status") as file:
            return dict(re.findall(r"^(\w+):\s*(.*)$", file.read(), re.MULTILINE))
    except OSError:
        return {}


def _who_refuses(call: str, *needed: str) -> str:
    status = _status()
    capabilities = int(status.get("CapEff", "0"), 16)
    for name in needed:
        if not capabilities >> _CAPABILITIES[name] & 1:
            return f"{call} needs {name}, which this process lacks"
    if status.get("Seccomp", "0") != "0":
        return f"a seccomp filter denies {call}, as containers' default profiles do"
    return f"a security module or the user namespace that this is part of denies {call}"


def _limit(flag: int) -> str:
    names = [name for bit, (_, name) in _NAMESPACES.items() if flag > 0 and flag & bit]
    limit = f"max_{names[0]}_namespaces" if len(names) == 1 else "one of max_*_namespaces"
    return f"/proc/sys/user/{limit} is reached, here or in a user namespace above"


def _of_namespaces(error: int, detail: int) -> str | None:
    if error == errno.EPERM:
        entering_root = ("CAP_SYS_CHROOT",) if detail == _MOUNT else ()
        return _who_refuses("making or entering namespaces", "CAP_SYS_ADMIN", *entering_root)
    if error == errno.ENOSPC:
        return _limit(detail)
    if error == errno.EACCES and namespace_name(detail) == "user":
        return (
            "this process is undumpable, because it changed its user (PR_SET_DUMPABLE), "
            "so that its id maps are not its own files"
        )
    if error == errno.ENOSYS and _status().get("Seccomp", "0") != "0":
        return _who_refuses("making or entering namespaces")
    if error == errno.ENOSYS:
        return "a pid namespace needs pidfds, and a vfork that shares memory: not under an emulator"
    if error == errno.EINVAL:
        return "the kernel was built without this kind of namespace"
    return None


_CALLS = {
    Stage.PROPAGATION: ("mount(2)", "CAP_SYS_ADMIN"),
    Stage.PROC: ("mount(2)", "CAP_SYS_ADMIN"),
    Stage.HOSTNAME: ("sethostname(2)", "CAP_SYS_ADMIN"),
    Stage.LOOPBACK: ("raising lo", "CAP_NET_ADMIN"),
}


def _of_refusal(stage: Stage) -> str | None:
    call = _CALLS.get(stage)
    return None if call is None else _who_refuses(*call)


def remedy(stage: Stage, error: int, detail: int, program: str | bytes) -> str | None:
    """The sentence for a failure, or None.

    Args:
        stage: the step that failed.
        error: its errno.
        detail: what ``struct sh_result`` has of it.
        program: what was to be executed.
    """
    found = _FIXED.get((stage, error))
    if found is not None:
        return found
    if stage is Stage.NAMESPACES:
        return _of_namespaces(error, detail)
    if error in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        return _DELEGATION if stage is Stage.CGROUP else _of_refusal(stage)
    if stage is Stage.EXEC and error == errno.ENOENT and os.path.exists(program):
        return "the file exists; the interpreter that it names does not"
    return None
