"""Exceptions that strike a call: the child is ended and reaped."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from spawnhelper import spawn

pytestmark = pytest.mark.core


class Struck(BaseException):
    pass


@pytest.fixture
def strike():
    """SIGALRM raises after the given time."""

    def handler(*_):
        raise Struck

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("keywords", [{}, {"pre_exec": int}, {"logfile": "/dev/null"}])
def test_waiting_call_ends_its_child(strike, keywords, tmp_path):
    pid_file = tmp_path / "pid"
    script = f"echo $$ >{pid_file}; exec sleep 60"
    start = time.monotonic()
    strike(0.3)
    with pytest.raises(Struck):
        spawn(["sh", "-c", script], **keywords)
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_child_that_ignores_sigterm_is_killed(strike, tmp_path):
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ >{pid_file}; while :; do sleep 60 & wait; done"
    strike(0.3)
    with pytest.raises(Struck):
        spawn(["sh", "-c", script])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_second_interrupt_only_hastens_it(strike, tmp_path):
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ >{pid_file}; while :; do sleep 60 & wait; done"
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
    with pytest.raises(Struck):
        spawn(["sh", "-c", script])
    signal.setitimer(signal.ITIMER_REAL, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_interrupted_during_pre_exec(strike):
    strike(0.3)
    start = time.monotonic()
    with pytest.raises(Struck):
        spawn("true", pre_exec=lambda: time.sleep(60))  # the child, not the test, waits
    assert time.monotonic() - start < 10


def test_wait_is_interrupted_and_the_handle_lives_on(strike):
    process = spawn(["sleep", "60"], returnproc=True)
    strike(0.2)
    with pytest.raises(Struck):
        process.wait()
    assert process.poll() is None
    process.kill()
    assert process.wait() == -9


def test_handlers_run_and_the_wait_goes_on():
    count = []
    before = signal.signal(signal.SIGALRM, lambda *_: count.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        assert spawn(["sleep", "0.5"]) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(count) >= 5


def test_a_signal_taken_by_another_thread_still_interrupts(strike):
    """Only the main thread runs handlers, but the kernel may choose any thread."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    sent, delays = [], []

    def kick():
        sent.append(time.monotonic())
        signal.pthread_kill(thread.ident, signal.SIGALRM)

    try:
        with spawn(["sleep", "60"], returnproc=True) as process:
            for _ in range(10):
                timer = threading.Timer(0.05, kick)
                timer.start()
                with pytest.raises(Struck):
                    process.wait()
                delays.append(time.monotonic() - sent[-1])
                timer.join()
    finally:
        release.set()
        thread.join()
    assert sorted(delays)[len(delays) // 2] < 0.1  # others use this machine, too


def test_ctrl_c_in_a_program(tmp_path):
    """KeyboardInterrupt in a real program: no process is left."""
    import sys

    program = """
import sys, spawnhelper
print("ready", flush=True)
try:
    spawnhelper.spawn(["sleep", "60"])
except KeyboardInterrupt:
    sys.exit(42)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"ready\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 42
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
