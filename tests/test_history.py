"""The 35 classes of bugs that portage's process.py has had: see history.py for the table."""

import ast
import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import CC, HERE, NOBODY, ROOT, compile_c, needs_root
from history import ROWS
from spawnhelper import process
from spawnhelper.process import spawn


def test_the_table_is_complete():
    assert [row.number for row in ROWS] == list(range(1, 36))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.number:02}" for row in ROWS])
def test_row(row):
    """The test is there, and so is the guard, once."""
    file, name = row.test.split("::")
    tree = ast.parse((HERE / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    source = ROOT / row.file
    if source.exists():  # an installed package is tested elsewhere
        assert source.read_text().count(row.guard) == 1
    assert row.guard != row.without


def write_all(directory, program):
    path = directory / "program.py"
    path.write_text(program)
    return [sys.executable, str(path)]


def test_02_no_python_handler_runs_between_fork_and_protection(tmp_path):
    """A signal that is pending in the child the moment it exists."""
    program = """
import os, signal, sys
from spawnhelper import process
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
signal.signal(signal.SIGWINCH, lambda *_: os.write(log, b"%d\\n" % os.getpid()))
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGWINCH))
assert process.spawn(["/bin/true"], pre_exec=lambda: None) == 0
os.kill(os.getpid(), signal.SIGWINCH)
print(os.getpid())
"""
    log = tmp_path / "log"
    done = subprocess.run([*write_all(tmp_path, program), log], capture_output=True, check=True)
    assert log.read_bytes() == done.stdout  # our own, and no child's


def test_03_dispositions_and_wakeup_fd(probe):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    caught = signal.signal(signal.SIGUSR1, lambda *_: None)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer)
    path = probe.report_path()
    try:
        assert spawn([str(probe.program), path]) == 0
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, action in previous.items():
            signal.signal(number, action)
        signal.signal(signal.SIGUSR1, caught)
        os.close(reader), os.close(writer)
    report = probe.read(path)
    assert int(report["SigCgt"], 16) == 0
    assert not any(int(report["SigIgn"], 16) >> (number - 1) & 1 for number in numbers)
    assert set(report["fds"]) == set(probe.report()["fds"])


@pytest.mark.parametrize("keywords", [{"close_fds": True}, {"logfile": True}, {}])
def test_06_the_callers_files_stay_open(keywords, tmp_path):
    """Also where the child shares our table until it has one of its own."""
    if "logfile" in keywords:
        keywords = {"logfile": tmp_path / "log"}
    with open(tmp_path / "file", "w") as stream:
        before = {fd: os.fstat(fd).st_ino for fd in process.get_open_fds() if is_open(fd)}
        assert spawn(["/bin/true"], fd_pipes={1: stream.fileno(), 2: 2}, **keywords) == 0
        after = {fd: os.fstat(fd).st_ino for fd in process.get_open_fds() if is_open(fd)}
        assert after == before
        stream.write("still mine")
    assert (tmp_path / "file").read_text() == "still mine"


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_07_nothing_of_ours_is_inherited(probe, tmp_path, files):
    """Pipes of logs, pidfds of other processes; and what sanitize_fds() took away."""
    (fd,) = files(1)
    path = probe.report_path()
    reader, writer = os.pipe()
    other = spawn(
        ["/bin/cat"], fd_pipes={0: reader, 1: fd, 2: fd}, logfile=tmp_path / "a", returnproc=True
    )
    os.close(reader)
    try:
        fds = {1: fd, 2: fd}
        assert spawn([str(probe.program), path], fd_pipes=fds, logfile=tmp_path / "b") == 0
        found = set(probe.read(path)["fds"])
    finally:
        os.close(writer)
        assert asyncio.run(other.wait()) == 0
    assert found == set(probe.report()["fds"])
    program = (
        "import os; from spawnhelper import process\n"
        "fd = os.dup(0); os.set_inheritable(fd, True)\n"
        "process.sanitize_fds()\n"
        "assert [os.get_inheritable(n) for n in (0, 1, 2, fd)] == [True] * 3 + [False]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_08_enumeration(monkeypatch):
    here = set(process.get_open_fds())
    assert {0, 1, 2} <= here
    monkeypatch.setattr(os, "listdir", lambda path: ["0", "17", "lost+found", "x"])
    assert list(process.get_open_fds()) == [0, 17]

    def refuse(path):
        raise OSError(errno.EAGAIN, "no")

    monkeypatch.setattr(os, "listdir", refuse)
    assert {0, 1, 2} <= set(process.get_open_fds()) <= here


def test_10_undecodable_bytes(probe, tmp_path, monkeypatch):
    directory = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(directory)
    os.symlink(probe.program, directory + b"/tool\xfd")
    monkeypatch.setenv("PATH", os.fsdecode(directory))
    path = probe.report_path()
    for name in (b"tool\xfd", "tool\udcfd"):
        assert spawn([name, str(path), "\udcff"], env={"A": "\udcfe", "B": "ü"}) == 0
        report = probe.read(path)
        assert report["argv"] == ["tool\xfd", "\xff"]
        assert sorted(report["env"]) == ["A=\xfe", "B=\xc3\xbc"]
    assert process.find_binary(b"tool\xfd") == directory + b"/tool\xfd"


class Proxy:
    """Known when asked; notes who asked."""

    def __init__(self, value):
        self.value, self.asked = value, []

    def __int__(self):
        self.asked.append(os.getpid())
        return self.value

    def __bool__(self):
        return True

    def __iter__(self):
        self.asked.append(os.getpid())
        return iter(self.value)


@needs_root
@pytest.mark.parametrize("pre_exec", [None, int])
def test_13_lazy_values_are_evaluated_here(probe, pre_exec):
    uid, gid, groups = Proxy(12), Proxy(34), Proxy([56])
    path = probe.report_path()
    command = [str(probe.program), path]
    assert spawn(command, uid=uid, gid=gid, groups=groups, pre_exec=pre_exec) == 0
    report = probe.read(path)
    assert (report["uids"], report["gids"], report["groups"]) == ([12] * 3, [34] * 3, [56])
    assert [set(proxy.asked) for proxy in (uid, gid, groups)] == [{os.getpid()}] * 3


def test_14_a_status_that_somebody_else_took():
    """It is told (Linux 6.15) or refused, and nobody waits for ever."""
    proc = spawn(["/bin/sh", "-c", "exit 3"], returnproc=True)
    assert os.waitpid(-1, 0) == (proc.pid, 3 << 8)

    async def main():
        return await asyncio.wait_for(proc.wait(), 20)

    with contextlib.suppress(ChildProcessError):
        assert asyncio.run(main()) == 3
    assert proc.terminate() is None


@pytest.fixture(scope="module")
def deny(public_dir):
    found = subprocess.run(
        [*CC, "-E", "-include", "seccomp.h", "-x", "c", "/dev/null"],
        capture_output=True,
        check=False,
    )
    if found.returncode:
        pytest.skip("needs libseccomp's header")
    return compile_c(HERE / "instruments" / "deny.c", public_dir / "deny-signal", "-lseccomp")


def test_15_kill_where_pidfds_may_not_signal(deny):
    program = (
        "import asyncio; from spawnhelper import process\n"
        "proc = process.spawn(['/bin/sleep', '600'], returnproc=True)\n"
        "proc.terminate()\n"
        "assert asyncio.run(proc.wait()) == -15\n"
    )
    command = [str(deny), str(errno.EPERM), "pidfd_send_signal", sys.executable, "-c", program]
    subprocess.run(command, check=True, timeout=60)


def unshare(flags):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(flags) == 0, ctypes.get_errno()


@needs_root
def test_17_no_host_name_without_its_namespace(public_dir):
    """A user namespace in which no UTS namespace may be made."""
    text = public_dir / "uts-stderr"
    name = os.uname().nodename
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            unshare(0x10000000)
            for file, content in (
                ("/proc/self/setgroups", "deny"),
                ("/proc/self/uid_map", "0 0 1"),
                ("/proc/self/gid_map", "0 0 1"),
                ("/proc/sys/user/max_uts_namespaces", "0"),
            ):
                with open(file, "w") as out:
                    out.write(content)
            fd = os.open(text, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            status = spawn(["/bin/true"], fd_pipes={2: fd}, unshare_net=True)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert os.uname().nodename == name
    (line,) = text.read_text().splitlines()
    assert "NAMESPACES" in line
    assert "HOSTNAME" not in line


def script_output(script, tmp_path, **keywords):
    file = tmp_path / "script-output"
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    try:
        assert spawn(["/bin/sh", "-c", script], fd_pipes={0: 0, 1: fd, 2: fd}, **keywords) == 0
    finally:
        os.close(fd)
    return file.read_text()


@needs_root
def test_18_orphans_are_reaped(tmp_path):
    """Each orphan ends before the command looks; a zombie would stay a zombie."""
    script = """
    mkfifo fifo
    for i in 1 2 3 4 5 6 7 8 9 10; do (sh -c 'exit 0' 9>fifo & exit 0); done
    cat fifo >/dev/null
    for i in $(seq 1000); do grep -ls '^State:.Z' /proc/[0-9]*/status >zombies || break; done
    wc -l <zombies
    """
    assert script_output(script, tmp_path, unshare_pid=True, cwd=tmp_path).strip() == "0"


@needs_root
def test_19_the_command_cannot_touch_pid_1(public_dir):
    script = "stat -c %u /proc/1; kill -9 1 2>/dev/null; echo $?"
    keywords = {"uid": NOBODY, "gid": NOBODY, "groups": [NOBODY], "unshare_pid": True}
    assert script_output(script, public_dir, **keywords).split() == ["0", "1"]


@needs_root
def test_20_group_signals_stay_inside():
    """The caller leads a group of its own, with a bystander in it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setpgid(0, 0)
            bystander = os.fork()
            if bystander == 0:
                while True:
                    signal.pause()
            status = spawn(
                ["/bin/sh", "-c", "trap '' TERM; kill -TERM 0; exit 3"], unshare_pid=True
            )
            os.kill(bystander, signal.SIGKILL)
            if os.waitpid(bystander, 0)[1] != signal.SIGKILL:
                status = 98
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


@needs_root
def test_21_nice_counts_in_a_pid_namespace(tmp_path):
    """A session of its own is an autogroup of its own, whose nice value is what counts."""
    if not os.path.exists("/proc/self/autogroup"):
        pytest.skip("the kernel has no autogroups")
    script = "nice; sed 's/.*nice //' /proc/self/autogroup"
    for value in (0, 5, 17):
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                os.nice(value)
                script_output(script, tmp_path, unshare_pid=True)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert (tmp_path / "script-output").read_text().split() == [str(value)] * 2


@needs_root
def test_22_proc_without_mount_program_or_mtab(tmp_path, monkeypatch):
    def facts(path):
        try:
            status = os.lstat(path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    before = facts("/etc/mtab"), facts("/run/mount/utab")
    monkeypatch.setenv("PATH", "/nonexistent")
    script = "read pid rest </proc/self/stat; echo $pid $$"
    seen, own = script_output(script, tmp_path, unshare_pid=True, unshare_mount=True).split()
    assert seen == own  # its own numbers: /proc is that of the namespace
    assert (facts("/etc/mtab"), facts("/run/mount/utab")) == before


@needs_root
def test_25_no_exec_after_unshare_of_the_pid_namespace(tmp_path):
    """What execs is in its pid namespace already, from spawn() as from _exec()."""
    # By exec: a child of the shell would be in the namespace for children anyway.
    script = "exec stat -L -c %i /proc/self/ns/pid /proc/self/ns/pid_for_children"
    inside, children = script_output(script, tmp_path, unshare_pid=True).split()
    assert inside == children
    assert int(inside) != os.stat("/proc/self/ns/pid").st_ino
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        process._exec(
            "/bin/sh", ["sh", "-c", script], None, {0: 0, 1: writer, 2: 2}, os.environ, None, None,
            None, None, None, None, False, False, False, False, True, 0, None,
        )  # fmt: skip
    os.close(writer)
    with open(reader) as stream:
        inside, children = stream.read().split()
    assert os.waitpid(pid, 0) == (pid, 0)
    assert inside == children
    assert int(inside) != os.stat("/proc/self/ns/pid").st_ino


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_27_a_dropped_object_forgets_no_process(tmp_path):
    """It runs on, and a later call reaps it."""
    reader, writer = os.pipe()
    done, tell = os.pipe()
    command = ["/bin/sh", "-c", "read x; echo done >&9"]
    pid = spawn(command, fd_pipes={0: reader, 9: tell}, returnproc=True).pid
    os.close(reader), os.close(tell)
    os.kill(pid, 0)
    os.close(writer)
    assert os.read(done, 10) == b"done\n"
    os.close(done)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert spawn(["/bin/true"]) == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_28_nothing_is_pickled(probe):
    marks = []

    def closure():
        marks.append(1)

    path = probe.report_path()
    assert spawn([str(probe.program), path], env=os.environ, pre_exec=closure) == 0
    probe.read(path)
    proc = spawn([str(probe.program), path], env=os.environ, pre_exec=closure, returnproc=True)
    assert asyncio.run(proc.wait()) == 0
    probe.read(path)


def test_30_no_polling():
    """The fastest of many is far below any polling interval."""
    spent = []
    for _ in range(20):
        start = time.perf_counter()
        assert spawn(["/bin/true"]) == 0
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.05


MULTIPROCESSING = """
import asyncio, multiprocessing, sys
from spawnhelper import process

def work(queue, parents):
    found = [process.spawn(["/bin/sh", "-c", "exit 4"])]
    if parents is not None:
        try:
            parents.handle.wait(0)
            found.append("waited for a stranger")
        except RuntimeError:
            found.append("refused")
    queue.put(found)

if __name__ == "__main__":
    method = sys.argv[1]
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    ours = None
    if method == "fork":
        ours = process.spawn(["/bin/sleep", "600"], returnproc=True)
    child = context.Process(target=work, args=(queue, ours))
    child.start()
    found = queue.get()
    child.join()
    assert child.exitcode == 0
    assert found == ([4] if ours is None else [4, "refused"]), found
    if ours is not None:
        ours.kill()
        assert asyncio.run(ours.wait()) == -9
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_31_every_start_method(method, tmp_path):
    command = [*write_all(tmp_path, MULTIPROCESSING), method]
    subprocess.run(command, check=True, timeout=60)


def test_32_terminated_at_once(tmp_path):
    """Every end of every pipe is closed, whatever the moment."""
    null = os.open("/dev/null", os.O_WRONLY)
    for number in range(30):
        reader, writer = os.pipe()
        proc = spawn(
            ["/bin/sleep", "600"],
            fd_pipes={0: 0, 1: null, 2: null, 9: writer},
            logfile=tmp_path / "log" if number % 2 else None,
            returnproc=True,
        )
        os.close(writer)
        proc.terminate()
        assert asyncio.run(proc.wait()) == -15
        assert os.read(reader, 1) == b""
        os.close(reader)
    os.close(null)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_33_signals_are_blocked_around_the_clone(tmp_path):
    program = "from spawnhelper import process; process.spawn(['/bin/true'])"
    output = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=rt_sigprocmask,clone,clone3,vfork,fork"]
    subprocess.run([*command, "-o", output, sys.executable, "-c", program], check=True)
    lines = output.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if re.search(r" (clone3|clone|vfork|fork)\(", line))
    before = [line for line in lines[:at] if "rt_sigprocmask(" in line]
    assert before
    assert re.search(r"SIG_(BLOCK|SETMASK), ~\[\]", before[-1]), before[-1]
