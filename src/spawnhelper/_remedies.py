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
    (
        Stage.GROUPS,
        errno.EPERM,
    ): "changing groups needs CAP_SETGID, and in a user namespace that setgroups is allowed",
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
# For what is tried beside a start.
CGROUP_MAKING = (
    "no cgroup can be made here: as root, mkdir one and chown it and the files in it to this user; "
    "with systemd, systemd-run --user --scope -p Delegate=yes COMMAND"
)
CGROUP_READ_ONLY = "run the container with a cgroup file system that is writable"
CGROUP_MOUNTING = "as root, mount -t cgroup2 none /sys/fs/cgroup"
NEW_KERNEL = "a kernel of Linux {} or later, or a seccomp filter that allows it"
REAL_VFORK = "run natively: an emulator or checker (qemu-user, valgrind) makes it a fork"
_DELEGATION = (
    "not delegated to this user: cgroup.procs must be writable here and, in v2, "
    "in the common ancestor with the present cgroup"
)


def namespace_name(flag: int) -> str | None:
    """The namespace's name in ``spawn()``, from a flag of clone(2)."""
    found = _NAMESPACES.get(flag)
    return None if found is None else found[0]


def read_status() -> dict[str, str]:
    """/proc/self/status as far as it has one line for each name; empty without /proc."""
    try:
        with open("/proc/self/status") as file:
            return dict(re.findall(r"^(\w+):\s*(.*)$", file.read(), re.MULTILINE))
    except OSError:
        return {}


def read_sysctl(name: str) -> int | None:
    """The number that a sysctl holds; None where the kernel has none of this name."""
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def has_capability(name: str) -> bool:
    """Whether this process has one of those that isolation needs in effect."""
    return bool(int(read_status().get("CapEff", "0"), 16) >> _CAPABILITIES[name] & 1)


# What keeps ordinary users from user namespaces: sysctl, the value that does, what to do.
_RESTRICTIONS = {
    "kernel.unprivileged_userns_clone": (
        0,
        "kernel.unprivileged_userns_clone is 0: as root, sysctl -w "
        "kernel.unprivileged_userns_clone=1",
    ),
    "kernel.apparmor_restrict_unprivileged_userns": (
        1,
        "AppArmor restricts user namespaces of ordinary users: give the program a profile with "
        "'userns,', or as root, sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
}


def restriction(name: str, value: int | None) -> str | None:
    """What to do about a sysctl that stands in the way, or None.

    Args:
        name: the sysctl, with dots.
        value: its value, None where there is none.
    """
    if name in _RESTRICTIONS and value == _RESTRICTIONS[name][0]:
        return _RESTRICTIONS[name][1]
    if value == 1 and name == "fs.suid_dumpable":
        return "starts with uid= or gid= need a slower fork: sysctl -w fs.suid_dumpable=0, or 2"
    if value == 0 and name.startswith("user.max_"):
        return f"{name} is 0: as root of this user namespace, sysctl -w {name}=1000"
    return None


_OPEN_PROFILE = "as containers' default profiles do: run it with one that allows"


def _who_refuses(call: str, *needed: str) -> str:
    for name in needed:
        if not has_capability(name):
            return f"{call} needs {name}, which this process lacks"
    if read_status().get("Seccomp", "0") != "0":
        return f"a seccomp filter denies {call}, {_OPEN_PROFILE} unshare, setns, clone and mount"
    return f"a security module or the user namespace that this is part of denies {call}"


def _is_in_chroot() -> bool:
    """Below a chroot that is no mount point, no mount has the name /."""
    try:
        with open("/proc/self/mountinfo") as file:
            return all(line.split()[4] != "/" for line in file)
    except OSError:
        return False


def _who_refuses_user() -> str:
    """Why a user namespace, or what it gives the right for, is refused."""
    if not has_capability("CAP_SYS_ADMIN"):
        for name in _RESTRICTIONS:
            found = restriction(name, read_sysctl(name))
            if found is not None:
                return found
    if read_status().get("Seccomp", "0") != "0":
        return f"a seccomp filter denies user namespaces, {_OPEN_PROFILE} unshare, clone and mount"
    if _is_in_chroot():
        return "no user namespace can be made in a chroot: use pivot_root instead"
    return "a chroot, a security module, or ids that have no mapping here are in the way"


def _limit(flag: int) -> str:
    names = [name for bit, (_, name) in _NAMESPACES.items() if flag > 0 and flag & bit]
    zero = [f"user.max_{name}_namespaces" for name in names or [n for _, n in _NAMESPACES.values()]]
    for name in zero:
        found = restriction(name, read_sysctl(name))
        if found is not None:
            return found
    limit = f"max_{names[0]}_namespaces" if len(names) == 1 else "one of max_*_namespaces"
    return f"/proc/sys/user/{limit} is reached, here or in a user namespace above"


_USER = 0x10000000


_UNDUMPABLE = (
    "this process is undumpable, because it changed its user (PR_SET_DUMPABLE), "
    "so that its id maps are not its own files"
)


_FIXED_NAMESPACES = {
    errno.ENOSYS: (
        "a pid namespace needs pidfds, and a vfork that shares memory: not under an emulator"
    ),
    errno.EINVAL: "the kernel was built without this kind of namespace",
}


def _of_permission(detail: int, in_user: bool) -> str:
    if in_user or detail == _USER:
        return _who_refuses_user()
    if not has_capability("CAP_SYS_ADMIN"):
        return (
            "making or entering namespaces needs CAP_SYS_ADMIN, which this process lacks; "
            "a user namespace gives it: unshare_user=True, run --user"
        )
    entering_root = ("CAP_SYS_CHROOT",) if detail == _MOUNT else ()
    return _who_refuses("making or entering namespaces", *entering_root)


def _of_namespaces(error: int, detail: int, in_user: bool) -> str | None:
    if error == errno.EACCES and detail == _USER:
        return _UNDUMPABLE
    if error in (errno.EPERM, errno.EACCES):
        return _of_permission(detail, in_user)
    if error in (errno.ENOSPC, errno.EUSERS):
        return _limit(detail)
    if error == errno.ENOSYS and read_status().get("Seccomp", "0") != "0":
        return _who_refuses("making or entering namespaces")
    return _FIXED_NAMESPACES.get(error)


_HIDDEN_PROC = (
    "parts of /proc are covered here, as in containers, and then the kernel gives a user "
    "namespace no other: run the container with /proc uncovered "
    "(podman: unmask=ALL, docker: systempaths=unconfined)"
)


def _is_proc_covered() -> bool:
    """Whether something is mounted below /proc that hides more than an empty directory."""
    try:
        with open("/proc/self/mountinfo") as file:
            places = [line.split()[4] for line in file]
    except OSError:
        return False
    return any(
        place.startswith("/proc/") and place != "/proc/sys/fs/binfmt_misc" for place in places
    )


_CALLS = {
    Stage.PROPAGATION: ("mount(2)", "CAP_SYS_ADMIN"),
    Stage.PROC: ("mount(2)", "CAP_SYS_ADMIN"),
    Stage.HOSTNAME: ("sethostname(2)", "CAP_SYS_ADMIN"),
    Stage.LOOPBACK: ("raising lo", "CAP_NET_ADMIN"),
}


def _of_refusal(stage: Stage, in_user: bool) -> str | None:
    if in_user and stage is Stage.PROC and _is_proc_covered():
        return _HIDDEN_PROC
    if in_user and stage in _CALLS:
        return _who_refuses_user()
    call = _CALLS.get(stage)
    return None if call is None else _who_refuses(*call)


def remedy(
    stage: Stage, error: int, detail: int, program: str | bytes, in_user: bool = False
) -> str | None:
    """The sentence for a failure, or None.

    Args:
        stage: the step that failed.
        error: its errno.
        detail: what ``struct sh_result`` has of it.
        program: what was to be executed.
        in_user: whether a user namespace of its own was asked for.
    """
    found = _FIXED.get((stage, error))
    if found is not None:
        return found
    if stage is Stage.NAMESPACES:
        return _of_namespaces(error, detail, in_user)
    if error in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        return _DELEGATION if stage is Stage.CGROUP else _of_refusal(stage, in_user)
    if stage is Stage.EXEC and error == errno.ENOENT and os.path.exists(program):
        return "the file exists; the interpreter that it names does not"
    return None
