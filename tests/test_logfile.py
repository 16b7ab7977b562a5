"""logfile: both streams, in order, to the original stdout and appended to the file."""

import os
import threading

import pytest

from conftest import AVOIDED
from spawnhelper import LogWarning, SpawnError, spawn

pytestmark = pytest.mark.core

MODES = ["wait", "proc", "pid"]


def finish(mode, command, **keywords):
    """Run to the end in this mode; the status."""
    if mode == "wait":
        return spawn(command, **keywords)
    if mode == "proc":
        return spawn(command, returnproc=True, **keywords).wait()
    copier, pid = spawn(command, returnpid=True, **keywords)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert os.waitpid(copier, 0) == (copier, 0)
    return status


@pytest.fixture
def output(tmp_path):
    """A stand-in for the original stdout."""
    fd = os.open(tmp_path / "stdout", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd, (tmp_path / "stdout").read_bytes
    os.close(fd)


@pytest.mark.parametrize("mode", MODES)
def test_both_streams_in_order(mode, tmp_path, output):
    fd, written = output
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    script = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done; exit 3"
    status = finish(mode, ["sh", "-c", script], logfile=log, fd_pipes={0: 0, 1: fd, 2: 2})
    expected = b"".join(b"out%d\nerr%d\n" % (i, i) for i in range(1, 6))
    assert status == 3
    assert written() == expected
    assert log.read_bytes() == b"before\n" + expected


@pytest.mark.parametrize("mode", MODES)
def test_large_output(mode, tmp_path, output):
    fd, written = output
    log = tmp_path / "log"
    script = "head -c 3000000 /dev/zero; kill -9 $$"
    assert finish(mode, ["sh", "-c", script], logfile=log, fd_pipes={1: fd, 2: fd}) == -9
    assert written() == log.read_bytes() == bytes(3000000)


@pytest.mark.parametrize("mode", MODES)
def test_a_daemon_delays_nothing(mode, tmp_path, output):
    """It holds the pipe for as long as it lives, but what counts is the command's end."""
    if mode != "wait" and "pidfd" in AVOIDED:
        pytest.skip("a copier process needs a pidfd for this (docs/kernels.md)")
    fd, _ = output
    log = tmp_path / "log"
    ready, release = os.pipe()
    try:
        script = "(read x <&5; exit 0) & echo done"
        fds = {1: fd, 2: fd, 5: ready}
        assert finish(mode, ["sh", "-c", script], logfile=log, fd_pipes=fds) == 0
        assert log.read_bytes() == b"done\n"
    finally:
        os.close(ready)
        os.close(release)


@pytest.mark.parametrize("mode", MODES)
def test_the_command_sees_one_pipe(mode, probe, tmp_path, files):
    path = probe.report_path()
    assert finish(mode, [probe.program, path], logfile=tmp_path / "log") == 0
    fds = probe.read(path)["fds"]
    assert fds[1] == fds[2]
    assert set(fds) == set(probe.report()["fds"])


@pytest.mark.parametrize("mode", MODES)
def test_unwritable_log_is_an_error_before_the_start(mode, tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(IsADirectoryError):
        finish(mode, ["touch", marker], logfile=tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("mode", MODES)
def test_failing_start(mode, tmp_path):
    with pytest.raises(FileNotFoundError):
        finish(mode, ["/nonexistent"], logfile=tmp_path / "log")
    with pytest.raises(SpawnError):
        finish(mode, ["true"], logfile=tmp_path / "log", fd_pipes={0: 999, 1: 1, 2: 2})
    with pytest.raises(ValueError, match="keys 1 and 2"):
        finish(mode, ["true"], logfile=tmp_path / "log", fd_pipes={1: 1})


def test_full_log_is_a_warning_not_a_status(tmp_path, output):
    fd, written = output
    with pytest.warns(LogWarning, match="No space left"):
        assert spawn(["echo", "x"], logfile="/dev/full", fd_pipes={1: fd, 2: fd}) == 0
    assert written() == b"x\n"


def test_broken_stdout_is_a_warning(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    log = tmp_path / "log"
    with pytest.warns(LogWarning, match="Broken pipe"):
        assert spawn(["echo", "x"], logfile=log, fd_pipes={1: writer, 2: 2}) == 0
    os.close(writer)
    assert log.read_bytes() == b"x\n"


@pytest.mark.parametrize("mode", MODES)
def test_slow_nonblocking_stdout_loses_nothing(mode, tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = []

    def read():
        while chunk := os.read(reader, 1000):
            received.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    log = tmp_path / "log"
    command = ["head", "-c", "500000", "/dev/zero"]
    assert finish(mode, command, logfile=log, fd_pipes={1: writer, 2: writer}) == 0
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(received) == log.read_bytes() == bytes(500000)


def test_concurrent_appenders(tmp_path):
    log = tmp_path / "log"
    null = os.open("/dev/null", os.O_WRONLY)

    def work(letter):
        script = f"for i in 1 2 3 4 5 6 7 8 9 10; do echo {letter * 50}; done"
        assert spawn(["sh", "-c", script], logfile=log, fd_pipes={1: null, 2: null}) == 0

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(null)
    text = log.read_text()
    assert {letter: text.count(letter) for letter in "abcd"} == dict.fromkeys("abcd", 500)


def test_with_pre_exec(tmp_path, output):
    fd, written = output
    log = tmp_path / "log"
    status = spawn(["echo", "x"], logfile=log, fd_pipes={1: fd, 2: fd}, pre_exec=int)
    assert (status, written(), log.read_bytes()) == (0, b"x\n", b"x\n")
