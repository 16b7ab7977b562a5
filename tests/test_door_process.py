"""returnproc=True: an object whose wait() is a coroutine, for any number of waiters."""

import asyncio
import os
import signal
import threading

import pytest

from spawnhelper import process
from spawnhelper.process import spawn

pytestmark = pytest.mark.core


@pytest.fixture
def blocked():
    """A command that ends with status 3 once it is released."""
    reader, writer = os.pipe()
    proc = spawn(["/bin/sh", "-c", "read x; exit 3"], fd_pipes={0: reader}, returnproc=True)
    os.close(reader)
    state = {"writer": writer}

    def release():
        if state["writer"] is not None:
            os.close(state["writer"])
            state["writer"] = None

    yield proc, release
    release()
    asyncio.run(proc.wait())


def test_what_it_shows(blocked):
    proc, release = blocked
    assert isinstance(proc, process.AwaitableProcess)
    assert proc.returncode is None
    assert str(proc.pid) in repr(proc)
    os.kill(proc.pid, 0)
    release()
    assert asyncio.run(proc.wait()) == 3
    assert proc.returncode == 3


def test_any_number_of_times_in_any_loop(blocked):
    proc, release = blocked
    release()
    for _ in range(3):
        assert asyncio.run(proc.wait()) == 3

    async def twice():
        return await proc.wait(), await proc.wait()

    assert asyncio.run(twice()) == (3, 3)


def test_many_waiters_at_once(blocked):
    proc, release = blocked

    async def main():
        waiters = [asyncio.ensure_future(proc.wait()) for _ in range(20)]
        await asyncio.sleep(0)
        assert not any(waiter.done() for waiter in waiters)
        release()
        return await asyncio.gather(*waiters)

    assert asyncio.run(main()) == [3] * 20


def test_a_cancelled_waiter_disturbs_nobody(blocked):
    proc, release = blocked

    async def main():
        first, second = (asyncio.ensure_future(proc.wait()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert proc.returncode is None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.001)
        release()
        return await second

    assert asyncio.run(main()) == 3


def test_threads_with_loops_of_their_own(blocked):
    proc, release = blocked
    results = []
    started = threading.Barrier(5)

    def work():
        async def main():
            waiter = asyncio.ensure_future(proc.wait())
            await asyncio.sleep(0)
            started.wait()
            return await waiter

        results.append(asyncio.run(main()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    release()
    for thread in threads:
        thread.join()
    assert results == [3] * 4


def test_started_in_a_loop_that_is_gone():
    async def main():
        return spawn(["/bin/sh", "-c", "exit 6"], returnproc=True)

    proc = asyncio.run(main())
    assert asyncio.run(proc.wait()) == 6


def test_started_without_a_loop_and_other_children_are_left_alone():
    other = os.fork()
    if other == 0:
        os._exit(9)
    proc = spawn(["/bin/true"], returnproc=True)
    assert asyncio.run(proc.wait()) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 9


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (lambda proc: proc.terminate(), -signal.SIGTERM),
        (lambda proc: proc.kill(), -signal.SIGKILL),
        (lambda proc: proc.send_signal(signal.SIGHUP), -signal.SIGHUP),
        (lambda proc: os.kill(proc.pid, signal.SIGTERM), -signal.SIGTERM),
    ],
)
def test_signals(act, status):
    proc = spawn(["/bin/sleep", "60"], returnproc=True)
    act(proc)
    assert asyncio.run(proc.wait()) == status
    for again in (proc.terminate, proc.kill, lambda: proc.send_signal(signal.SIGUSR1)):
        assert again() is None
    assert proc.returncode == status


def test_the_callers_descriptors_may_be_closed_at_once(tmp_path):
    reader, writer = os.pipe()
    file = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    proc = spawn(
        ["/bin/sh", "-c", "cat <&7 >&9"], fd_pipes={0: 0, 7: reader, 9: file}, returnproc=True
    )
    os.close(reader), os.close(file)
    os.write(writer, b"late")
    os.close(writer)
    assert asyncio.run(proc.wait()) == 0
    assert (tmp_path / "out").read_bytes() == b"late"


def test_works_with_any_signature_of_the_loop_policy():
    """No child watcher, no SIGCHLD handler, no thread is made for it."""
    threads = threading.active_count()
    before = signal.getsignal(signal.SIGCHLD)
    proc = spawn(["/bin/true"], returnproc=True)

    async def main():
        waiter = asyncio.ensure_future(proc.wait())
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        assert signal.getsignal(signal.SIGCHLD) == before
        return await waiter

    assert asyncio.run(main()) == 0


def test_wait_is_a_coroutine_function():
    import inspect

    assert inspect.iscoroutinefunction(process.AwaitableProcess.wait)


def test_a_log_and_a_handle(tmp_path):
    log = tmp_path / "log"
    null = os.open("/dev/null", os.O_WRONLY)
    proc = spawn(
        ["/bin/sh", "-c", "echo out; echo err >&2; exit 5"],
        fd_pipes={1: null, 2: null},
        logfile=log,
        returnproc=True,
    )
    os.close(null)
    assert asyncio.run(proc.wait()) == 5
    assert log.read_text() == "out\nerr\n"
