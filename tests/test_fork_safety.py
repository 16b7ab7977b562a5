"""README "Fork-safety guarantees", by number; each test in a process of its own."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import spawnhelper
from conftest import AVOIDED, NOBODY, needs_root, open_fds
from spawnhelper import Process, spawn

pytestmark = [pytest.mark.core, pytest.mark.forked]


def in_fork(function) -> None:
    """Run in a plain os.fork() child; the test fails if it raises."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0) == (pid, 0)


# 1. Importing has no side effects.


def test_1_import_does_nothing():
    program = """
import os, signal, threading
def state():
    fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in range(100)
           if os.path.exists(f"/proc/self/fd/{fd}")}
    handlers = [signal.getsignal(n) for n in sorted(signal.valid_signals())]
    return fds, handlers, threading.active_count(), len(os.listdir("/proc/self/task"))
before = state()
import spawnhelper
assert state() == before, (state(), before)
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a process was run")
except ChildProcessError:
    pass
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_1_import_in_a_forked_child():
    program = """
import os, sys
pid = os.fork()
if pid == 0:
    import spawnhelper
    os._exit(spawnhelper.spawn(["sh", "-c", "exit 7"]))
sys.exit(os.waitpid(pid, 0)[1] != 7 << 8)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_1_a_second_import_is_harmless():
    program = """
import importlib, os, sys
import spawnhelper
from spawnhelper import _core
importlib.reload(_core)
pid = os.fork()
if pid == 0:
    os._exit(spawnhelper.spawn("true"))
sys.exit(os.waitpid(pid, 0)[1])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# 2. No Python code, no lock and no allocation between clone and exec.
#    (tests/test_child_object.py: the child has no undefined symbol.)


def test_2_at_fork_hooks_do_not_run():
    ran = []
    os.register_at_fork(
        before=lambda: ran.append("before"),
        after_in_parent=lambda: ran.append("parent"),
        after_in_child=lambda: os._exit(99),
    )
    assert spawn("true") == 0
    assert spawn("true", returnproc=True).wait() == 0
    assert ran == []
    assert spawn("true", logfile="/dev/null") == 0
    assert ran == []


def test_2_works_while_other_threads_hold_every_lock():
    """The child would deadlock on any of them."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            bytearray(1000000)
            print("x" * 1000, file=null, flush=True)

    with open("/dev/null", "w") as null:
        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                assert spawn("true") == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


# 3. After a fork the module works at once in the child.


def test_3_spawn_after_fork():
    assert spawn("true") == 0
    in_fork(lambda: [spawn(["sh", "-c", "exit 3"]) == 3 or os._exit(5) for _ in range(5)])


def test_3_spawn_inside_an_at_fork_hook():
    statuses = []
    os.register_at_fork(
        before=lambda: statuses.append(spawn(["sh", "-c", "exit 1"])),
        after_in_parent=lambda: statuses.append(spawn(["sh", "-c", "exit 2"])),
        after_in_child=lambda: statuses.append(spawn(["sh", "-c", "exit 3"])),
    )

    def child():
        assert statuses == [1, 3]

    in_fork(child)
    assert statuses == [1, 2]


def test_3_forks_while_threads_spawn():
    """The copies of locks held by other threads are free in the child."""
    stop = threading.Event()
    keywords = {"uid": os.getuid(), "gid": os.getgid()}

    def work():
        while not stop.is_set():
            spawn("true", **keywords)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            in_fork(lambda: spawn("true", **keywords) == 0 or os._exit(5))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@needs_root
def test_3_a_fork_during_an_id_change_stays_dumpable():
    libc = ctypes.CDLL(None)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            spawn("true", uid=NOBODY)

    def child():
        assert libc.prctl(3) == 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(200):
            in_fork(child)
    finally:
        stop.set()
        thread.join()


# 4. A handle answers only in the process that started the child.


@pytest.mark.parametrize("keywords", [{}, {"logfile": "/dev/null"}], ids=["plain", "logfile"])
def test_4_parents_handle_in_a_forked_child(keywords):
    process = spawn(["sleep", "60"], returnproc=True, **keywords)
    pidfd = process.pidfd

    def child():
        start = time.monotonic()
        for call in (process.wait, process.poll, process.kill, lambda: process.wait(5)):
            with pytest.raises(RuntimeError, match="was forked from"):
                call()
        assert time.monotonic() - start < 2
        assert process.returncode is None
        process.__exit__(None, None, None)
        if pidfd >= 0:
            os.fstat(pidfd)  # the number may be anybody's: it is left alone

    in_fork(child)
    assert process.poll() is None
    process.kill()
    assert process.wait() == -9
    in_fork(lambda: process.wait() == -9 or os._exit(5))


def test_4_dropped_handles_of_the_parent_are_not_the_childs():
    process = spawn(["sleep", "60"], returnproc=True)
    pid = process.pid
    with pytest.warns(ResourceWarning):
        del process
    in_fork(lambda: spawn("true") == 0 or os._exit(5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    spawn("true")  # notices


# 5. Nothing of the library reaches the command or a stranger's child.


def test_5_no_private_descriptor_is_inheritable():
    before = open_fds()
    process = spawn(["sleep", "60"], returnproc=True, logfile="/dev/null")
    try:
        new = open_fds() - before
        assert len(new) == (0 if "pidfd" in AVOIDED else 2)
        assert not any(os.get_inheritable(fd) for fd in new)
        status = spawn(["sh", "-c", "ls /proc/self/fd | wc -l"], close_fds=True)
        assert status == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("keywords", [{}, {"pre_exec": int}], ids=["plain", "pre_exec"])
def test_5_other_threads_forks_do_not_delay_a_start(keywords):
    """A stranger's fork that holds every descriptor (cpython's error pipe would wait for it)."""
    stop = threading.Event()
    pids = []

    def fork_without_exec():
        while not stop.is_set() and len(pids) < 100:
            pid = os.fork()
            if pid == 0:
                time.sleep(30)  # not synchronisation: a process that lives on
                os._exit(0)
            pids.append(pid)

    thread = threading.Thread(target=fork_without_exec)
    thread.start()
    try:
        start = time.monotonic()
        for _ in range(100):
            assert spawn("true", **keywords) == 0
        assert time.monotonic() - start < 20
    finally:
        stop.set()
        thread.join()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# 6. multiprocessing, in any start method.


def _spawn_in_worker(code: int) -> int:
    return spawnhelper.spawn(["sh", "-c", f"exit {code}"])


@pytest.mark.leaves_helpers  # multiprocessing's own: resource tracker, fork server
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_6_multiprocessing(method):
    import multiprocessing

    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(_spawn_in_worker, range(6)) == list(range(6))


def test_handles_cannot_be_pickled():
    import pickle

    process = spawn("true", returnproc=True)
    process.wait()
    assert isinstance(process, Process)
    with pytest.raises(TypeError):
        pickle.dumps(process)
