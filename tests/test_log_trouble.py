"""logfile under bad conditions, through both doors, in every form: nothing that could be kept
is lost, and trouble is never a wrong status."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections import deque

import pytest

import spawnhelper
from conftest import AVOIDED
from spawnhelper import LogWarning, _core, process

pytestmark = pytest.mark.core

DOORS = {"strict": spawnhelper.spawn, "portage": process.spawn}
FORMS = [(door, form) for door in DOORS for form in ("wait", "proc", "pid")]
in_every_form = pytest.mark.parametrize(("door", "form"), FORMS)


def finish(door, form, script, **keywords):
    """Run to the end: status of the command, and that of the copier (None: nobody's business)."""
    spawn, command = DOORS[door], ["/bin/sh", "-c", script]
    if form == "wait":
        return spawn(command, **keywords), None
    if form == "proc":
        proc = spawn(command, returnproc=True, **keywords)
        return (proc.wait() if door == "strict" else asyncio.run(proc.wait())), None
    copier, pid = spawn(command, returnpid=True, **keywords)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (pid, copier)]
    return tuple(statuses)


@pytest.fixture
def output(tmp_path):
    """A stand-in for the original stdout."""
    fd = os.open(tmp_path / "stdout", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd, (tmp_path / "stdout").read_bytes
    os.close(fd)


def expected_warning(form, text):
    """In the forms with a status of its own the copier's says it."""
    if form == "pid":
        return warnings.catch_warnings()
    return pytest.warns(LogWarning, match=text)


@in_every_form
def test_log_on_a_full_disk(door, form, output):
    fd, written = output
    with expected_warning(form, "No space left"):
        status, copier = finish(
            door, form, "echo all of it; exit 3", logfile="/dev/full", fd_pipes={1: fd, 2: fd}
        )
    assert status == 3
    assert copier in (None, errno.ENOSPC)
    assert written() == b"all of it\n"


@in_every_form
def test_stdout_that_nobody_reads(door, form, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    log = tmp_path / "log"
    try:
        with expected_warning(form, "stdout: Broken pipe"):
            status, copier = finish(
                door, form, "echo all of it; exit 3", logfile=log, fd_pipes={1: writer, 2: writer}
            )
    finally:
        os.close(writer)
    assert status == 3
    assert copier in (None, 128 + errno.EPIPE)
    assert log.read_bytes() == b"all of it\n"


@in_every_form
def test_unwritable_log_is_an_error_before_the_start(door, form, tmp_path):
    with pytest.raises(NotADirectoryError):
        finish(door, form, f"touch {tmp_path}/marker", logfile="/dev/null/log")
    assert not (tmp_path / "marker").exists()


@in_every_form
def test_single_bytes(door, form, tmp_path, output):
    fd, written = output
    log = tmp_path / "log"
    code = 'import os\nfor n in range(3000): os.write(1 + n % 2, b"%d" % (n % 10))'
    script = f"exec {sys.executable} -c '{code}'"
    status, _ = finish(door, form, script, logfile=log, fd_pipes={1: fd, 2: fd})
    assert status == 0
    assert log.read_bytes() == written() == b"0123456789" * 300


@in_every_form
def test_last_words_of_a_command_that_is_gone(door, form, tmp_path, output):
    """The pipe is full when the command ends."""
    fd, written = output
    log = tmp_path / "log"
    script = "head -c 65536 /dev/zero; kill -9 $$"
    status, _ = finish(door, form, script, logfile=log, fd_pipes={1: fd, 2: fd})
    assert status == -9
    assert log.read_bytes() == written() == bytes(65536)


@in_every_form
def test_slow_terminal(door, form, tmp_path):
    """Nobody reads the terminal before the command has ended; the terminal holds 4 KB."""
    master, slave = os.openpty()
    log = tmp_path / "log"
    done, tell = os.pipe()
    shown = bytearray()
    size = 40000

    def read():
        os.read(done, 1)  # the command's last act
        while shown.count(b"x") < size:
            shown.extend(os.read(master, 1000))

    reader = threading.Thread(target=read)
    reader.start()
    script = f"head -c {size} /dev/zero | tr '\\0' x; echo >&9; exit 3"
    fds = {1: slave, 2: slave, 9: tell}
    try:
        status, copier = finish(door, form, script, logfile=log, fd_pipes=fds)
    finally:
        os.close(tell)
        reader.join()
        for fd in (master, slave, done):
            os.close(fd)
    assert (status, copier) in ((3, None), (3, 0))
    assert log.read_bytes() == b"x" * size
    assert shown.count(b"x") == size


@in_every_form
def test_a_daemon_delays_nothing_and_its_pipe_breaks(door, form, tmp_path, output):
    if form != "wait" and "pidfd" in AVOIDED:
        pytest.skip("a copier process needs a pidfd for this (docs/kernels.md)")
    fd, written = output
    log = tmp_path / "log"
    ready, release = os.pipe()
    verdict, tell = os.pipe()
    script = (
        "(trap '' PIPE; read x <&5; echo late 2>/dev/null; echo $? >&7) & echo early; exec 7>&-"
    )
    fds = {1: fd, 2: fd, 5: ready, 7: tell}
    try:
        status, _ = finish(door, form, script, logfile=log, fd_pipes=fds)
        os.close(tell)
        os.write(release, b"\n")
        with open(verdict, "rb", closefd=False) as stream:
            assert stream.read().strip() not in (b"", b"0")
    finally:
        for number in (ready, release, verdict):
            os.close(number)
    assert status == 0
    assert log.read_bytes() == written() == b"early\n"


@in_every_form
def test_log_that_somebody_truncates(door, form, tmp_path, output):
    """O_APPEND: no hole where the old content was."""
    fd, _ = output
    log = tmp_path / "log"
    log.write_bytes(b"old" * 1000)
    script = f": >{log}; echo new"
    finish(door, form, script, logfile=log, fd_pipes={1: fd, 2: fd})
    assert log.read_bytes() == b"new\n"


CLOSED = """
import asyncio, os, sys
import spawnhelper, spawnhelper.process
door, form, log = sys.argv[1:]
os.close(1)
spawn = {"strict": spawnhelper.spawn, "portage": spawnhelper.process.spawn}[door]
command = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]
if form == "wait":
    status = spawn(command, logfile=log)
elif form == "proc":
    found = spawn(command, logfile=log, returnproc=True)
    status = found.wait() if door == "strict" else asyncio.run(found.wait())
else:
    copier, pid = spawn(command, logfile=log, returnpid=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert os.waitpid(copier, 0)[1] == 0
os._exit(status)
"""


@in_every_form
def test_closed_stdout(door, form, tmp_path):
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLOSED, door, form, log],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert log.read_text() == "out\nerr\n"


PRIVATE = """
import os, sys
from test_log_trouble import finish
os.set_inheritable(0, False)
os.close(1)
assert os.open(sys.argv[2], os.O_RDWR) == 1  # close-on-exec, as all that Python opens
script = "echo out; readlink /proc/self/fd/0 /proc/self/fd/1"
finish("strict", sys.argv[1], script, logfile=sys.argv[3])
"""


@pytest.mark.parametrize("form", ["wait", "proc", "pid"])
def test_a_private_stdout_is_none(form, tmp_path):
    """Of the two standard streams that are close-on-exec, none is given to the command."""
    database, log = tmp_path / "database", tmp_path / "log"
    database.write_text("data")
    subprocess.run(
        [sys.executable, "-c", PRIVATE, form, database, log],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    assert database.read_text() == "data"
    out, *links = log.read_text().splitlines()
    assert out == "out"
    assert len(links) == 1
    assert links[0].startswith("pipe:")


@pytest.mark.parametrize("first", ["full", "null"])
def test_trouble_is_of_the_call_that_had_it(first, monkeypatch):
    """A handler's logged call between the end of another and its answer."""
    logs = {"full": "/dev/full", "null": "/dev/null"}
    second = "null" if first == "full" else "full"
    null = os.open(os.devnull, os.O_RDWR)
    keywords = {"fd_pipes": {1: null, 2: null}}
    told = []

    class Struck(deque):
        def append(self, log):
            super().append(log)
            if not told:
                told.append(0)
                with warnings.catch_warnings(record=True) as inner:
                    warnings.simplefilter("always")
                    spawnhelper.spawn(["echo", "x"], logfile=logs[second], **keywords)
                told[0] = len(inner)

    monkeypatch.setattr(_core, "_spare_logs", Struck())
    with warnings.catch_warnings(record=True) as outer:
        warnings.simplefilter("always")
        spawnhelper.spawn(["echo", "x"], logfile=logs[first], **keywords)
    os.close(null)
    assert (len(outer), *told) == ((1, 0) if first == "full" else (0, 1))


def where(call, category):
    with pytest.warns(category) as caught:
        call()
    return [warning.filename for warning in caught]


@pytest.mark.parametrize("spawn", DOORS.values(), ids=DOORS)
def test_the_warning_points_at_the_caller(spawn):
    null = os.open(os.devnull, os.O_RDWR)
    keywords = {"fd_pipes": {1: null, 2: null}, "logfile": "/dev/full"}
    echo = ["/bin/echo", "x"]
    assert where(lambda: spawn(echo, **keywords), LogWarning) == [__file__]
    slow = where(lambda: spawn(echo, pre_exec=lambda: None, **keywords), LogWarning)
    assert slow == [__file__]
    os.close(null)


def test_trouble_of_an_interrupted_call_is_said():
    null = os.open(os.devnull, os.O_RDWR)
    # More than a pipe holds: when it is through, some has been copied.
    script = f"head -c 200000 /dev/zero; kill -INT {os.getpid()}; sleep 60"
    command = ["/bin/sh", "-c", script]
    with pytest.warns(LogWarning), pytest.raises(KeyboardInterrupt):
        spawnhelper.spawn(command, fd_pipes={1: null, 2: null}, logfile="/dev/full")
    os.close(null)


@pytest.mark.parametrize("door", DOORS)
def test_copier_that_is_killed_is_no_status(door, tmp_path, output):
    fd, _ = output
    ready, release = os.pipe()
    proc = DOORS[door](
        ["/bin/sh", "-c", "read x; exit 3"],
        fd_pipes={0: ready, 1: fd, 2: fd},
        logfile=tmp_path / "log",
        returnproc=True,
    )
    os.close(ready)
    handle = proc if door == "strict" else proc.handle
    os.kill(handle._copier.pid, signal.SIGKILL)
    os.close(release)
    with pytest.warns(LogWarning, match="signal 9"):
        status = proc.wait() if door == "strict" else asyncio.run(proc.wait())
    assert status == 3


def test_trouble_is_said_once(output):
    fd, _ = output
    proc = spawnhelper.spawn(
        ["echo", "x"], fd_pipes={1: fd, 2: fd}, logfile="/dev/full", returnproc=True
    )
    with pytest.warns(LogWarning):
        proc.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (proc.wait(), proc.poll(), asyncio.run(proc.wait_async())) == (0, 0, 0)


def test_copier_is_libc_free_and_first_in_the_list(tmp_path, output):
    fd, _ = output
    ready, release = os.pipe()
    copier, pid = process.spawn(
        ["/bin/sh", "-c", "read x"],
        fd_pipes={0: ready, 1: fd, 2: fd},
        logfile=tmp_path / "log",
        returnpid=True,
    )
    os.close(ready)
    try:
        program = os.readlink(f"/proc/{copier}/exe")
        with open(f"/proc/{copier}/maps") as maps:
            assert "libc" not in maps.read()
        assert os.path.basename(program) == "_tee"
        with open(f"/proc/{copier}/fdinfo/3") as facts:
            flags = int(facts.read().split("flags:")[1].split()[0], 8)
        assert flags & os.O_APPEND
    finally:
        os.close(release)
    assert os.waitpid(pid, 0) == (pid, 256)
    assert os.waitpid(copier, 0) == (copier, 0)


def test_every_spawn_has_its_own_copier_reaped_by_the_handle(tmp_path, output):
    fd, _ = output
    procs = [
        process.spawn(
            ["echo", str(number)],
            fd_pipes={1: fd, 2: fd},
            logfile=tmp_path / f"log{number}",
            returnproc=True,
        )
        for number in range(10)
    ]
    copiers = {proc.handle._copier.pid for proc in procs}
    assert len(copiers) == 10

    async def main():
        return await asyncio.gather(*(proc.wait() for proc in procs))

    assert asyncio.run(main()) == [0] * 10
    for number in range(10):
        assert (tmp_path / f"log{number}").read_text() == f"{number}\n"
