"""What the tests of isolation share: hosts of their own, sandboxes, and who is left."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import select
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KINDS = ("net", "ipc", "mount", "pid")
COMBINATIONS = [
    kinds for size in range(len(KINDS) + 1) for kinds in itertools.combinations(KINDS, size)
]
WAYS = ("one-shot", "reused")
NEWNS, NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 1 << 12, 1 << 14, 1 << 18, 1 << 20
MNT_DETACH = 2
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
WALL = 0x40000000
SKIPPED = 77
CAPABILITIES = {"SYS_CHROOT": 18, "SYS_ADMIN": 21, "NET_ADMIN": 12}
FULL = "SPAWNHELPER_CAMPAIGN" in os.environ
libc = ctypes.CDLL(None, use_errno=True)


def size(small: int, full: int) -> int:
    """How often to do it: `full` in a campaign (SPAWNHELPER_CAMPAIGN=1), else `small`."""
    return full if FULL else small


def has_capability(name: str) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAPABILITIES[name] & 1)
    return False


AVOIDED = os.environ.get("SPAWNHELPER_AVOID", "").split(",")
FORCED = bool({"pidfd", "vfork"} & set(AVOIDED))  # docs/kernels.md: no pid namespaces then
needs_isolation = pytest.mark.skipif(
    FORCED or os.geteuid() != 0 or not has_capability("SYS_ADMIN"),
    reason="forced mode without pid namespaces" if FORCED else "needs root with CAP_SYS_ADMIN",
)
needs_pid_namespaces = pytest.mark.skipif(FORCED, reason="forced mode without pid namespaces")


def skip_if_forced(way: str, kinds: tuple[str, ...]) -> None:
    """A set and a pid namespace have a holder, which needs pidfds and a real vfork."""
    if FORCED and (way == "reused" or "pid" in kinds):
        pytest.skip("forced mode without pid namespaces")


def check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


# ---- sandboxes ----


def unshare_keywords(kinds: tuple[str, ...]) -> dict[str, bool]:
    return {f"unshare_{kind}": True for kind in kinds}


@contextlib.contextmanager
def sandbox(way: str, kinds: tuple[str, ...], **more) -> Iterator[dict[str, object]]:
    """The keywords of spawn() that isolate like this."""
    from spawnhelper import Namespaces

    if way == "one-shot":
        yield {**unshare_keywords(kinds), **more}
    elif not kinds:
        yield more
    else:
        isolation = {key: more[key] for key in ("isolation",) if key in more}
        with Namespaces(**dict.fromkeys(kinds, True), **isolation) as namespaces:
            yield {"namespaces": namespaces, **more}


def changed_namespaces(kinds: tuple[str, ...]) -> set[str]:
    """Those of /proc/PID/ns that a command with these kinds does not share with us."""
    changed = {"net": {"net", "uts"}, "ipc": {"ipc"}, "mount": {"mnt"}, "pid": {"pid", "mnt"}}
    return set().union(*(changed[kind] for kind in kinds))


# ---- processes and hosts of their own ----


def in_fork(function: Callable[[], object]) -> None:
    """Run it in a forked process; the test fails if it raises, and is skipped if it skips."""
    start, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except pytest.skip.Exception as skipped:
            os.write(end, str(skipped).encode())
            status = SKIPPED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(end)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == SKIPPED:
            pytest.skip(os.read(start, 4096).decode())
    finally:
        os.close(start)
    assert status == 0, "failed in the forked process: see the captured stderr"


def mount(source: str, target: str | Path, kind: str | None, flags: int = 0) -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    check(libc.mount(*names, ctypes.c_ulong(flags), None), f"mount {target}")


def unmount(target: str | Path) -> None:
    check(libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def unshare_mounts(propagation: int) -> None:
    """A mount namespace of our own; an ordinary user needs a user namespace, too."""
    ids = os.geteuid(), os.getegid()
    if ids[0] == 0:
        check(libc.unshare(NEWNS), "unshare")
    else:
        if libc.unshare(NEWNS | NEWUSER) != 0:
            pytest.skip("no user namespaces here")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {ids[0]} 1")
        Path("/proc/self/gid_map").write_text(f"0 {ids[1]} 1")
    check(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | propagation), None), "propagation")


def in_host(function: Callable[[], object], propagation: int = MS_SHARED) -> None:
    """Run it where every mount of `/` is shared, as systemd leaves it; nothing reaches us."""

    def run() -> None:
        unshare_mounts(propagation)
        function()

    in_fork(run)


def in_chroot(base: Path, mount_point: bool, function: Callable[[], object]) -> None:
    """Run it in a chroot that has everything at its usual path, and a file /chroot-marker.

    The chroot is a mount point, or else a plain directory.
    """

    def run() -> None:
        if mount_point:
            mount(str(base), base, None, MS_BIND)
        (base / "chroot-marker").touch()
        for entry in Path("/").iterdir():
            copy = base / entry.name
            if entry.is_symlink():
                copy.symlink_to(os.readlink(entry))
            elif entry.is_dir():
                copy.mkdir()
                mount(str(entry), copy, None, MS_BIND | MS_REC)
        os.chroot(base)
        os.chdir("/")
        function()

    in_host(run)


def drop_to(*names: str) -> None:
    """Keep only these capabilities; the bounding set stays, so that exec gives root all again."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    bits = sum(1 << CAPABILITIES[name] for name in names)
    data = (ctypes.c_uint32 * 6)(bits, bits, 0, 0, 0, 0)
    check(libc.capset(ctypes.byref(Header(0x20080522, 0)), data), "capset")


def make_public(prefix: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix=f"spawnhelper-{prefix}-"))
    path.chmod(0o777)
    return path


# ---- who is there ----


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


class HeldName(str):
    """The name of a namespace, "pid:[4026532256]"; while it is held nothing gets its number."""

    def __new__(cls, fd: int) -> HeldName:
        name = super().__new__(cls, os.readlink(f"/proc/self/fd/{fd}"))
        name._fd = fd
        return name

    def __del__(self) -> None:
        os.close(self._fd)


def namespace_of(pid: int, name: str = "pid") -> HeldName | None:
    try:
        return HeldName(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return None


def name_of_namespace(pid: int, name: str = "pid") -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{name}")
    except OSError:
        return None


def members(namespace: str) -> list[int]:
    """The processes, zombies too, of this pid namespace."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if name_of_namespace(pid) == namespace]


def state_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def children_of(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(name))
    return found


def holder_of(command: int) -> int:
    """Pid 1 of the pid namespace that the command is in."""
    namespace = namespace_of(command)
    for pid in members(namespace):
        status = Path(f"/proc/{pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
        if line.split()[-1] == "1" and len(line.split()) > 2:
            return pid
    raise AssertionError(f"{command} has no holder")


def await_true(condition: Callable[[], object], seconds: float = 10) -> None:
    """Look again and again, for what gives no sign when it comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.002)  # a pause of the look, not a guess at when


def await_end(pidfd: int, seconds: float = 10) -> None:
    assert select.select([pidfd], [], [], seconds)[0], "it lives on"


def adopt_orphans() -> None:
    """Processes whose parents died become our children, so that none escapes."""
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def none_left(seconds: float, apart_from: tuple[int, ...] = ()) -> list[int]:
    """Reap what ends within this time; the children that live on."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid in children_of(os.getpid()) if pid not in apart_from]
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG | WALL)
        left = [pid for pid in children_of(os.getpid()) if pid not in apart_from]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.002)  # likewise


def reap_helpers() -> None:
    """After returnpid a holder is reaped by the calls that follow its end."""
    from spawnhelper import spawn

    await_true(lambda: (spawn("/bin/true"), children_of(os.getpid()))[1] == [])


class Gate:
    """Two pipes to a command: it says when it is ready, and waits until it is let go.

    In the command, `ready` and `hold` are the descriptors' numbers.
    """

    def __init__(self) -> None:
        self._ready, self.ready = os.pipe()
        self.hold, self._release = os.pipe()
        for fd in (self.ready, self.hold):
            os.set_inheritable(fd, True)

    def await_ready(self, count: int = 1, seconds: float = 20) -> bytes:
        """So many bytes that the command wrote."""
        deadline, got = time.monotonic() + seconds, b""
        while len(got) < count:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._ready], [], [], left)[0], got
            more = os.read(self._ready, count - len(got))
            assert more, got
            got += more
        return got

    def close_ready(self) -> None:
        """Our copy of the command's end, so that its end is noticed."""
        if self.ready >= 0:
            os.close(self.ready)
            self.ready = -1

    def release(self) -> None:
        if self._release >= 0:
            os.close(self._release)
            self._release = -1

    def close(self) -> None:
        self.release()
        self.close_ready()
        os.close(self._ready)
        os.close(self.hold)


@contextlib.contextmanager
def open_gate() -> Iterator[Gate]:
    gate = Gate()
    try:
        yield gate
    finally:
        gate.close()


# ---- cgroups ----


def find_hierarchy(controller: str | None) -> Path | None:
    """Where this v1 controller's hierarchy, or with None the v2 one, is mounted."""
    for line in mountinfo().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        found = kind == "cgroup2" if controller is None else kind == "cgroup"
        if found and (controller is None or controller in options.split(",")):
            return Path(before.split()[4].replace("\\040", " "))
    return None


@contextlib.contextmanager
def new_cgroup(controller: str | None) -> Iterator[Path]:
    """A cgroup of our own; that it can be removed says that nobody is left in it."""
    root = find_hierarchy(controller)
    if root is None:
        pytest.skip(f"no cgroup {controller or 'v2'} hierarchy is mounted here")
    try:
        path = Path(tempfile.mkdtemp(prefix="spawnhelper-test-", dir=root))
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            pytest.skip("cgroups cannot be made here")
        raise
    try:
        yield path
    finally:
        os.rmdir(path)


def cgroup_members(path: Path) -> list[int]:
    return [int(pid) for pid in (path / "cgroup.procs").read_text().split()]


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
