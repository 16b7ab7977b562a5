"""Dispositions and mask of the command, and what a spawn does to ours."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from conftest import needs_vfork
from spawnhelper import SpawnError, spawn

pytestmark = pytest.mark.core

RESET = {
    signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ,
}  # fmt: skip
SETTABLE = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def members(mask: str) -> set[int]:
    bits = int(mask, 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


@pytest.fixture
def dispositions():
    """Restores every disposition that a test changes."""
    before = {number: signal.getsignal(number) for number in SETTABLE}
    yield
    for number, handler in before.items():
        if handler is not None:
            signal.signal(number, handler)


@pytest.mark.parametrize("pre_exec", [None, lambda: None], ids=["plain", "pre_exec"])
@pytest.mark.parametrize("disposition", ["default", "ignored", "caught"])
def test_every_signal(probe, dispositions, disposition, pre_exec):
    handler = {
        "default": signal.SIG_DFL,
        "ignored": signal.SIG_IGN,
        "caught": lambda *_: None,
    }[disposition]
    for number in set(SETTABLE) - {signal.SIGCHLD}:
        signal.signal(number, handler)
    report = probe.report(pre_exec=pre_exec)
    expected = set(SETTABLE) - RESET if disposition == "ignored" else set()
    # 32 and 33 belong to libc; nobody here changed them.
    assert members(report["SigIgn"]) - {32, 33} == expected
    assert members(report["SigCgt"]) - {32, 33} == set()


def test_sigchld_ignored_here_is_default_there(probe, dispositions):
    process_report = probe.report_path()
    program = f"""
import signal, spawnhelper
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    spawnhelper.spawn([{str(probe.program)!r}, {str(process_report)!r}])
except ChildProcessError:
    pass
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert signal.SIGCHLD not in members(probe.read(process_report)["SigIgn"])


@pytest.mark.parametrize("pre_exec", [None, lambda: None], ids=["plain", "pre_exec"])
def test_mask_as_before_the_call(probe, pre_exec):
    for blocked in ([], [signal.SIGUSR1, signal.SIGINT, signal.SIGRTMAX], SETTABLE):
        before = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            report = probe.report(pre_exec=pre_exec)
            assert members(report["SigBlk"]) == set(map(int, blocked)) - {32, 33}
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(blocked)
            with pytest.raises(SpawnError):
                spawn("/nonexistent", pre_exec=pre_exec)
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_pre_exec_sees_default_dispositions_and_no_signals():
    def look():
        if not set(SETTABLE) <= signal.pthread_sigmask(signal.SIG_BLOCK, []):
            raise AssertionError("a signal could run Python code of the parent")

    assert spawn("true", pre_exec=look) == 0


@needs_vfork
def test_failed_start_raises_no_sigchld(dispositions):
    seen = []
    signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    for _ in range(20):
        with pytest.raises(FileNotFoundError):
            spawn("/nonexistent")
    assert seen == []
    spawn("true")
    assert seen == [1]


@needs_vfork
def test_strangers_waitpid_does_not_see_a_failed_start():
    stop = threading.Event()
    seen = []

    def reap():
        while not stop.is_set():
            try:
                seen.append(os.waitpid(-1, os.WNOHANG))
            except ChildProcessError:
                continue

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        for _ in range(200):
            with pytest.raises(FileNotFoundError):
                spawn("/nonexistent")
    finally:
        stop.set()
        thread.join()
    assert [pid for pid, _ in seen if pid] == []
