"""unshare_* and cgroup= through the portage door: best effort, said in one line on stderr."""

import asyncio
import os
import signal

import pytest

from conftest import NOBODY, needs_root
from spawnhelper import process
from spawnhelper.process import spawn
from test_door_alone import exec_in_child

pytestmark = needs_root

NAMES = {
    "unshare_net": {"net", "uts"},
    "unshare_ipc": {"ipc"},
    "unshare_mount": {"mnt"},
    "unshare_pid": {"pid", "mnt"},
}
each = pytest.mark.parametrize("keyword", NAMES)


def fresh(report):
    return {
        name
        for name, inode in report["namespaces"].items()
        if inode != os.stat(f"/proc/self/ns/{name}").st_ino
    }


@pytest.fixture
def stderr(public_dir):
    path = public_dir / "stderr"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    yield fd, path.read_text
    os.close(fd)


@each
def test_namespaces(keyword, probe):
    path = probe.report_path()
    assert spawn([str(probe.program), path], **{keyword: True}) == 0
    assert fresh(probe.read(path)) == NAMES[keyword]


def test_host_name_and_addresses(stderr):
    fd, written = stderr
    script = "uname -n; cat /proc/net/fib_trie | grep -c 10.0.0.1"
    assert spawn(["/bin/sh", "-c", script], fd_pipes={1: fd, 2: fd}, unshare_net=True) == 0
    name, count = written().split()
    assert name == "localhost"
    assert int(count) > 0


@each
@pytest.mark.parametrize("form", ["wait", "proc"])
def test_pre_exec_works_with_each(keyword, form, probe, public_dir):
    """As the target user, in the process that becomes the command, inside."""
    seen = public_dir / "pre-exec-seen"
    seen.write_text("")
    seen.chmod(0o666)

    def note():
        names = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in ("net", "ipc", "mnt")}
        seen.write_text(f"{os.getuid()} {os.getpid()} {names}")

    path = probe.report_path()
    command = [str(probe.program), path]
    keywords = {"pre_exec": note, "uid": NOBODY, keyword: True}
    if form == "wait":
        assert spawn(command, **keywords) == 0
    else:
        assert asyncio.run(spawn(command, returnproc=True, **keywords).wait()) == 0
    report = probe.read(path)
    assert fresh(report) == NAMES[keyword]
    names = {name: report["namespaces"][name] for name in ("net", "ipc", "mnt")}
    assert seen.read_text() == f"{NOBODY} {report['pid']} {names}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_exact_signal_status_in_a_pid_namespace(number):
    script = f"ulimit -c 0; kill -{int(number)} $$"
    assert spawn(["/bin/sh", "-c", script], unshare_pid=True) == -number


def test_nothing_outlives_a_pid_namespace():
    reader, writer = os.pipe()
    script = "sleep 600 & sleep 600 & exit 3"
    assert spawn(["/bin/sh", "-c", script], fd_pipes={0: 0, 1: writer}, unshare_pid=True) == 3
    os.close(writer)
    assert os.read(reader, 1) == b""  # all of them are gone
    os.close(reader)


def test_terminate_in_a_pid_namespace_from_the_first_moment():
    """portage loses a SIGTERM of the first 50 ms."""
    for _ in range(5):
        proc = spawn(["/bin/sleep", "600"], unshare_pid=True, returnproc=True)
        os.kill(proc.pid, signal.SIGTERM)
        assert asyncio.run(proc.wait()) == -signal.SIGTERM


def as_nobody(function):
    """In a forked child without any right: its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setgroups([]), os.setresgid(*[NOBODY] * 3), os.setresuid(*[NOBODY] * 3)
            status = function()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@each
@pytest.mark.parametrize("form", ["wait", "proc"])
def test_without_rights_it_runs_and_says_so(keyword, form, stderr):
    fd, written = stderr

    def child():
        keywords = {"fd_pipes": {0: 0, 1: 1, 2: fd}, keyword: True}
        command = ["/bin/sh", "-c", "exit 7"]
        if form == "wait":
            return spawn(command, **keywords)
        return asyncio.run(spawn(command, returnproc=True, **keywords).wait())

    assert as_nobody(child) == 7
    (line,) = written().splitlines()
    assert line.startswith("spawnhelper: less isolated than asked: NAMESPACES")


def test_every_call_says_so(stderr):
    """Python would show a repeated warning once."""
    fd, written = stderr
    assert (
        as_nobody(
            lambda: sum(spawn(["/bin/true"], fd_pipes={2: fd}, unshare_net=True) for _ in "abc")
        )
        == 0
    )
    assert len(written().splitlines()) == 3


def test_cgroup_that_is_none(stderr):
    fd, written = stderr
    assert spawn(["/bin/true"], fd_pipes={2: fd}, cgroup="/nonexistent") == 0
    (line,) = written().splitlines()
    assert "CGROUP" in line


class Index:
    """An integer of somebody's own, as a key too."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


@pytest.mark.parametrize("fds", [lambda fd: {2: Index(fd)}, lambda fd: {Index(2): fd}])
def test_the_note_finds_any_integer(stderr, fds):
    fd, written = stderr
    assert spawn(["/bin/true"], fd_pipes=fds(fd), close_fds=True, cgroup="/nonexistent") == 0
    assert "CGROUP" in written()


def test_failures_with_isolation_are_status_1(stderr):
    fd, written = stderr
    keywords = {"unshare_pid": True, "unshare_net": True, "fd_pipes": {2: fd}}
    assert spawn(["/bin/true"], cwd="/nonexistent", **keywords) == 1
    assert "CHDIR" in written()


# ---- _exec ----


@each
def test_exec_with_namespaces(keyword, probe):
    report, pid = exec_in_child(probe, **{keyword: True})
    assert fresh(report) == NAMES[keyword]
    if keyword == "unshare_pid":
        assert report["ppid"] == 0  # whoever made it is outside
    else:
        assert report["pid"] == pid


@pytest.mark.parametrize(("script", "status"), [("exit 5", 5), ("kill -TERM $$", -15)])
def test_exec_with_a_pid_namespace_ends_as_the_command(script, status, probe):
    exec_in_child(
        probe, "/bin/sh", ["/bin/sh", "-c", script], status, unshare_pid=True, env={"A": "B"}
    )


def test_exec_without_rights_says_so(probe, capfd):
    def child():
        process._exec(
            "/bin/true", ["true"], None, {0: 0, 1: 1, 2: 2}, {}, None, None, None, None, None,
            None, False, True, False, False, False, 0, None,
        )  # fmt: skip

    assert as_nobody(child) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert "less isolated than asked: NAMESPACES" in line
