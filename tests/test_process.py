"""The handle."""

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from conftest import AVOIDED, needs_pidfd
from spawnhelper import SpawnError, _core, spawn

pytestmark = pytest.mark.core


@pytest.fixture
def sleeper():
    process = spawn(["sleep", "60"], returnproc=True)
    yield process
    process.kill()
    process.wait()


def test_running(sleeper):
    assert sleeper.returncode is None
    assert sleeper.poll() is None
    assert sleeper.pid > 0
    assert repr(sleeper) == f"<Process pid={sleeper.pid} running ['sleep', '60']>"


@needs_pidfd
def test_pidfd(sleeper):
    assert sleeper.fileno() == sleeper.pidfd > 2
    assert not os.get_inheritable(sleeper.pidfd)


def test_without_pidfd():
    program = """
import spawnhelper
with spawnhelper.spawn(["sleep", "60"], returnproc=True) as process:
    assert process.pidfd == -1
    try:
        process.fileno()
    except ValueError as error:
        assert "no pidfd" in str(error)
    else:
        raise AssertionError
assert process.returncode == -9
"""
    env = {**os.environ, "SPAWNHELPER_AVOID": "pidfd"}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)


def test_timeout(sleeper):
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        sleeper.wait(0.2)
    assert 0.2 <= time.monotonic() - start < 5
    assert (caught.value.cmd, caught.value.timeout) == (["sleep", "60"], 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0)


@pytest.mark.parametrize(
    ("method", "number"), [("terminate", 15), ("kill", 9), ("send_signal", signal.SIGUSR1)]
)
def test_signals(method, number):
    process = spawn(["sleep", "60"], returnproc=True)
    getattr(process, method)(*([number] if method == "send_signal" else []))
    assert process.wait() == -number
    assert process.returncode == process.wait() == process.poll() == -number
    process.kill()  # silently nothing
    process.send_signal(0)
    assert repr(process) == f"<Process pid={process.pid} returncode {-number} ['sleep', '60']>"


def test_bad_signal(sleeper):
    with pytest.raises(OSError, match="Invalid argument"):
        sleeper.send_signal(1000)


@needs_pidfd
def test_readable_when_ended(sleeper):
    poller = select.poll()
    poller.register(sleeper, select.POLLIN)
    assert poller.poll(0) == []
    sleeper.kill()
    assert poller.poll(10000)
    assert sleeper.poll() == -9
    assert sleeper.pidfd == -1
    with pytest.raises(ValueError, match="has ended"):
        sleeper.fileno()


def test_context_manager_kills_and_reaps():
    with spawn(["sleep", "60"], returnproc=True) as process:
        assert process.poll() is None
    assert process.returncode == -9
    with spawn(["sh", "-c", "exit 5"], returnproc=True) as process:
        process.wait()
    assert process.returncode == 5
    with pytest.raises(ZeroDivisionError), spawn(["sleep", "60"], returnproc=True) as process:
        raise ZeroDivisionError
    assert process.returncode == -9


def test_two_waiters_get_the_status():
    process = spawn(["sleep", "60"], returnproc=True)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(process.wait())) for _ in range(8)]
    for thread in threads:
        thread.start()
    process.terminate()
    for thread in threads:
        thread.join()
    assert statuses == [-15] * 8


@needs_pidfd
def test_dropped_while_running():
    process = spawn(["sleep", "60"], returnproc=True)
    pid, pidfd = process.pid, os.dup(process.pidfd)
    with pytest.warns(ResourceWarning, match=f"pid={pid}"):
        del process
        gc.collect()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], 10)
    os.close(pidfd)
    spawn("true")  # reaps it
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_dropped_after_its_end_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = spawn("true", returnproc=True)
        process.wait()
        del process
        gc.collect()


@pytest.fixture
def without_exit_info():
    """As before Linux 6.15: a pidfd forgets the status of what somebody else reaped."""
    avoided = os.environ.get("SPAWNHELPER_AVOID", "")
    _core.avoid(f"{avoided},pidfd_info")
    yield
    _core.avoid(avoided)


KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
KEEPS_EXIT_INFO = KERNEL >= (6, 15) and "pidfd_info" not in AVOIDED


@needs_pidfd
@pytest.mark.skipif(not KEEPS_EXIT_INFO, reason="needs Linux 6.15")
def test_reaped_by_somebody_else_but_the_pidfd_knows():
    for script, code in (("exit 7", 7), ("kill -9 $$", -9)):
        process = spawn(["sh", "-c", script], returnproc=True)
        os.waitpid(process.pid, 0)
        assert process.wait() == process.returncode == code
        with pytest.raises(ChildProcessError, match="rusage is lost"):
            process.rusage


@needs_pidfd
@pytest.mark.skipif(not KEEPS_EXIT_INFO, reason="needs Linux 6.15")
def test_sigchld_ignored_but_the_pidfd_knows():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert [spawn(["sh", "-c", f"exit {n}"]) for n in range(100)] == list(range(100))
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_usage_and_wall_time():
    process = spawn(["sh", "-c", "sleep 0.2; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"],
                    returnproc=True)  # fmt: skip
    assert process.rusage is process.wall_time is None
    process.wait()
    assert process.rusage.ru_utime + process.rusage.ru_stime > 0
    assert process.rusage.ru_minflt > 10
    assert process.rusage.ru_maxrss > 100
    assert 0.2 <= process.wall_time < 60


def test_reaped_by_somebody_else(without_exit_info):
    process = spawn("true", returnproc=True)
    os.waitpid(process.pid, 0)
    with pytest.raises(ChildProcessError, match="somebody else"):
        process.wait()
    process.kill()
    assert "reaped by somebody else" in repr(process)


def test_sigchld_ignored_does_not_hang(without_exit_info):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ChildProcessError):
            spawn("true")
        with pytest.raises(FileNotFoundError):
            spawn("/nonexistent")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_in_an_exit_stack():
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(spawn(["sleep", "60"], returnproc=True))
        assert process.poll() is None
    assert process.returncode == -9


def test_no_other_child_is_reaped():
    other = os.fork()
    if other == 0:
        os._exit(7)
    for _ in range(10):
        assert spawn("true") == 0
    assert os.waitpid(other, 0) == (other, 7 << 8)


def test_a_failed_start_leaves_nothing():
    for _ in range(50):
        with pytest.raises(SpawnError):
            spawn(["true"], cwd="/nonexistent", returnproc=True)


def test_many_at_once():
    processes = [spawn(["sh", "-c", f"exit {n}"], returnproc=True) for n in range(200)]
    assert [process.wait() for process in processes] == list(range(200))


def test_takes_no_further_attributes():
    process = spawn("true", returnproc=True)
    with pytest.raises(AttributeError):
        process.anything = 1
    process.wait()
