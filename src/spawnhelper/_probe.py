"""What works here: tried, never concluded from a version."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from . import _core, _remedies
from ._errors import SpawnError
from ._log import COPIER
from ._namespaces import Namespaces
from ._spawn import spawn
from ._stages import Stage

_NOBODY = 65534  # kernel.overflowuid's default, on every system an ordinary user


class Finding(NamedTuple):
    """Whether one thing works.

    Attributes:
        name (str): what, as ``ProbeResult.find()`` and ``doctor --need`` take it.
        works (bool | None): None if it could not be tried.
        reason (str): what happened instead; empty if it works.
        remedy (str | None): what to change, where that is known.
    """

    name: str
    works: bool | None
    reason: str = ""
    remedy: str | None = None


class Setting(NamedTuple):
    """One of the system's settings that matter.

    Attributes:
        name (str): a sysctl, or a field of /proc/self/status.
        value (int | None): None where the kernel has none of this name.
        remedy (str | None): what to change, if it stands in the way.
    """

    name: str
    value: int | None
    remedy: str | None = None


class ProbeResult(NamedTuple):
    """What ``probe()`` found.

    Attributes:
        kernel (str): the release, for reports; nothing is concluded from it.
        machine (str): the architecture.
        uid (int): the effective user id.
        findings (tuple[Finding, ...]): what was tried.
        settings (tuple[Setting, ...]): what explains it.
    """

    kernel: str
    machine: str
    uid: int
    findings: tuple[Finding, ...]
    settings: tuple[Setting, ...]

    def find(self, name: str) -> Finding:
        """The finding of this name.

        Raises:
            LookupError: there is none.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        known = ", ".join(finding.name for finding in self.findings)
        raise LookupError(f"{name!r} is none of {known}")

    def missing(self, names: Iterable[str]) -> list[Finding]:
        """Those of the named things that do not work.

        Raises:
            LookupError: a name is unknown.
        """
        return [finding for name in names if not (finding := self.find(name)).works]


# ---- trying ----


@contextlib.contextmanager
def _open_null() -> Iterator[dict[int, int]]:
    """Descriptors for the copier, which ends at once when nothing is to be copied."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield dict.fromkeys((0, 1, 2, 3), null)
    finally:
        os.close(null)


def _try(
    *,
    kind: str | None = None,
    user: bool = False,
    cgroup: str | None = None,
    namespaces: Namespaces | None = None,
) -> SpawnError | None:
    """Start the smallest program that we have; the failure, or None."""
    asked = {f"unshare_{kind}": True} if kind else {}
    with _open_null() as fds:
        try:
            spawn(
                [COPIER],
                {},
                fd_pipes=fds,
                close_fds=True,
                cgroup=cgroup,
                namespaces=namespaces,
                isolation="required",
                unshare_user=user,
                unshare_net=bool(asked.get("unshare_net")),
                unshare_ipc=bool(asked.get("unshare_ipc")),
                unshare_mount=bool(asked.get("unshare_mount")),
                unshare_pid=bool(asked.get("unshare_pid")),
            )
        except SpawnError as error:
            return error
    return None


def _refused(name: str, error: SpawnError) -> Finding:
    text = str(error.strerror)
    if error.remedy:
        text = text.removesuffix(f" ({error.remedy})")
    return Finding(name, False, text, error.remedy)


# What a kind of namespace is good for, each with the last stage that belongs to it.
_KINDS = {
    "net": (("net", Stage.NAMESPACES), ("loopback", Stage.LOOPBACK)),
    "ipc": (("ipc", Stage.NAMESPACES),),
    "mount": (("mount", Stage.PROPAGATION),),
    "pid": (("pid", Stage.NAMESPACES), ("proc", Stage.PROC)),
}


def _judge(
    parts: tuple[tuple[str, Stage], ...], prefix: str, error: SpawnError | None
) -> list[Finding]:
    findings: list[Finding] = []
    for name, last in parts:
        if findings and not findings[-1].works:
            findings.append(Finding(prefix + name, None, f"not tried without {findings[-1].name}"))
        elif error is None or last < error.stage <= parts[-1][1]:
            findings.append(Finding(prefix + name, True))
        else:
            findings.append(_refused(prefix + name, error))
    return findings


def _try_set(name: str, user: bool) -> Finding:
    """Making a set of all, and entering it."""
    try:
        with Namespaces(net=True, ipc=True, mount=True, pid=True, user=user) as made:
            error = _try(namespaces=made)
    except SpawnError as raised:
        error = raised
    return Finding(name, True) if error is None else _refused(name, error)


def _try_namespaces(prefix: str, user: bool) -> list[Finding]:
    findings = []
    for kind, parts in _KINDS.items():
        findings += _judge(parts, prefix, _try(kind=kind, user=user))
    return [*findings, _try_set(f"{prefix}set", user)]


def _try_user_namespaces() -> list[Finding]:
    made = _judge((("user", Stage.NAMESPACES),), "", _try(user=True))
    return made + _try_namespaces("user+", user=True)


_USER_NAMES = (
    "user",
    *(f"user+{name}" for parts in _KINDS.values() for name, _ in parts),
    "user+set",
)


def _untried(reason: str) -> list[Finding]:
    return [Finding(name, None, reason) for name in _USER_NAMES]


_HELPER = "from spawnhelper._probe import _report_user_namespaces as run; run()"


def _report_user_namespaces() -> None:
    """In the helper."""
    import json

    os.write(1, json.dumps(_try_user_namespaces()).encode())


def _ask_ordinary_user() -> list[Finding]:
    """Root's rights must not answer for others: a Python that has none tries it."""
    import json

    if not os.path.basename(sys.executable or "").startswith("python"):
        return _untried("needs an ordinary user; try again as one")
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    source, end = os.pipe()
    with open(source, "rb") as answer:
        try:
            with _open_null() as fds:
                helper = spawn(
                    [sys.executable, "-c", _HELPER],
                    env,
                    fd_pipes={0: fds[0], 1: end, 2: fds[2]},
                    cwd="/",
                    uid=_NOBODY,
                    gid=_NOBODY,
                    groups=[],
                    returnproc=True,
                )
        except SpawnError as error:
            return _untried(f"as uid {_NOBODY}, {sys.executable}: {error.strerror}")
        finally:
            os.close(end)
        with helper:
            text = answer.read()
            status = helper.wait()
    if status != 0:
        return _untried(f"uid {_NOBODY} cannot run {sys.executable}; try again as an ordinary user")
    return [Finding(*finding) for finding in json.loads(text)]


# ---- the parts ----


def _kernel_finding(name: str, error: int, expected: int, release: str) -> Finding:
    if error == expected:
        return Finding(name, True)
    reason = os.strerror(error) if error else "accepted what it should refuse"
    return Finding(name, False, reason, _remedies.NEW_KERNEL.format(release))


def _try_starts() -> list[Finding]:
    error = _try()
    start = Finding("start", True) if error is None else _refused("start", error)
    mode = _core.start_mode()
    clone3 = _kernel_finding("clone3", _core.try_clone3(), errno.EINVAL, "5.5")
    if clone3.works and mode != "clone3":
        reason = f"not used here: commands are started by {mode}"
        clone3 = Finding("clone3", False, reason, _remedies.NEW_KERNEL.format("5.5"))
    vfork = Finding("vfork", mode != "pipe")
    if not vfork.works:
        reason = "a child does not share our memory"
        vfork = Finding("vfork", False, reason, _remedies.REAL_VFORK)
    return [
        start,
        clone3,
        vfork,
        _kernel_finding("pidfd", _core.try_pidfd_open(), errno.EINVAL, "5.3"),
        _kernel_finding("close_range", _core.try_close_range(), 0, "5.9"),
    ]


def _read_lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


def _find_mount(kind: str) -> tuple[str, str, str] | None:
    """Mount point of the first cgroup file system of the kind, its root, and its options."""
    for line in _read_lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, (found, _, options) = left.split(), right.split()[:3]
        if found == kind:
            return fields[4].encode().decode("unicode_escape"), fields[3], options
    return None


def _own_cgroup(kind: str) -> str | None:
    """The directory of the cgroup that this process is in; None if that is not mounted."""
    mount = _find_mount(kind)
    if mount is None:
        return None
    point, root, options = mount
    for line in _read_lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        named = set(filter(None, controllers.split(",")))
        if bool(named) == (kind == "cgroup") and named <= set(options.split(",")):
            below = path.removeprefix(root) if root != "/" else path
            return os.path.normpath(f"{point}/{below}")
    return None


def _try_child_cgroup(name: str, parent: str) -> Finding:
    """Make a cgroup, be born into it, remove it."""
    child = f"{parent}/spawnhelper-probe-{os.getpid()}"
    try:
        os.mkdir(child)
    except OSError as error:
        read_only = error.errno == errno.EROFS
        remedy = _remedies.CGROUP_READ_ONLY if read_only else _remedies.CGROUP_MAKING
        return Finding(name, False, f"mkdir {child}: {error.strerror}", remedy)
    try:
        refusal = _try(cgroup=child)
    finally:
        os.rmdir(child)
    return Finding(name, True) if refusal is None else _refused(name, refusal)


def _try_cgroups() -> list[Finding]:
    findings = []
    own, old = _own_cgroup("cgroup2"), _own_cgroup("cgroup")
    if own is None:
        reason = "no cgroup2 file system is mounted that shows this process's cgroup"
        findings += [
            Finding("cgroup2", False, reason, _remedies.CGROUP_MOUNTING),
            Finding("delegation", None, "not tried without cgroup2"),
        ]
    else:
        findings += [Finding("cgroup2", True), _try_child_cgroup("delegation", own)]
    if old is None:
        findings.append(Finding("cgroup1", False, "no v1 hierarchy is mounted"))
    else:
        findings.append(_try_child_cgroup("cgroup1", old))
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        error = _core.try_clone_into_cgroup(root)
    finally:
        os.close(root)
    return [*findings, _kernel_finding("into_cgroup", error, errno.EBADF, "5.7")]


_SYSCTLS = (
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    *(f"user.max_{name}_namespaces" for name in ("user", "net", "uts", "ipc", "mnt", "pid")),
    "fs.suid_dumpable",
)
_FILTERED = (
    "system calls of this process are filtered: what is refused above, with EPERM or ENOSYS, "
    "may work outside of the container or service"
)


def _read_settings() -> list[Setting]:
    settings = []
    for name in _SYSCTLS:
        value = _remedies.read_sysctl(name)
        settings.append(Setting(name, value, _remedies.restriction(name, value)))
    filters = _remedies.read_status().get("Seccomp")
    remedy = None if filters in (None, "0") else _FILTERED
    settings.append(Setting("Seccomp", None if filters is None else int(filters), remedy))
    return settings


def probe(ordinary_user: bool | Literal["auto"] = "auto") -> ProbeResult:
    """Try what this system lets this process do; some forty starts, about 0.1 s.

    Nothing is concluded from versions or file names: each namespace, the /proc
    and the loopback in it, user namespaces, cgroups and the kernel features
    that starts use are had and given back. The findings are, in this order:

    - ``start``, ``clone3``, ``vfork`` (memory shared until exec), ``pidfd``,
      ``close_range``: how commands are started;
    - ``net``, ``loopback``, ``ipc``, ``mount``, ``pid``, ``proc``: the
      ``unshare_*`` of ``spawn()`` for this process as it is; ``set``: a
      ``Namespaces`` of all, made and entered;
    - ``user``, and ``user+net`` to ``user+set``: the same through a user
      namespace, without any right;
    - ``cgroup2`` (mounted), ``delegation`` (a cgroup of its own can be made
      below the present one and joined), ``cgroup1`` (the same in v1),
      ``into_cgroup``: commands are born in it.

    Args:
        ordinary_user: who tries the user namespaces. True: a Python started as
            uid 65534, since root's rights say nothing about others; False:
            this process; ``"auto"``: the former if it has CAP_SYS_ADMIN.

    Returns:
        The findings, and the settings that explain them.

    Raises:
        OSError: no descriptor is free, or /dev/null cannot be opened.
    """
    if ordinary_user == "auto":
        ordinary_user = _remedies.has_capability("CAP_SYS_ADMIN") and os.geteuid() == 0
    ask: Callable[[], list[Finding]]
    ask = _ask_ordinary_user if ordinary_user else _try_user_namespaces
    system = os.uname()
    findings = [*_try_starts(), *_try_namespaces("", user=False), *ask(), *_try_cgroups()]
    return ProbeResult(
        system.release, system.machine, os.geteuid(), tuple(findings), tuple(_read_settings())
    )
