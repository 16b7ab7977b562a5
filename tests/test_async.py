"""await, async with, wait_any_async() and async for: in asyncio, uvloop and trio."""

import asyncio
import contextlib
import os
import signal
import sys
import threading

import pytest

from conftest import needs_pidfd, open_fds
from spawnhelper import Process, as_completed, spawn, wait_any_async

pytestmark = pytest.mark.core

SLEEP = ["sleep", "60"]


try:
    import uvloop
except ImportError:
    pass
else:
    uvloop.new_event_loop().close()  # opens descriptors that it keeps


def start(script: str) -> Process:
    return spawn(["sh", "-c", script], returnproc=True)


def run_asyncio(main):
    return asyncio.run(main())


def run_uvloop(main):
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def run_trio(main):
    trio = pytest.importorskip("trio")
    return trio.run(main)


everywhere = pytest.mark.parametrize(
    "run", [run_asyncio, run_uvloop, run_trio], ids=["asyncio", "uvloop", "trio"]
)
in_asyncio = pytest.mark.parametrize("run", [run_asyncio, run_uvloop], ids=["asyncio", "uvloop"])


@everywhere
def test_await(run):
    async def main():
        assert await start("exit 7") == 7
        assert await start("kill -9 $$").wait_async() == -9
        ended = start("exit 3")
        assert ended.wait() == 3
        assert await ended == await ended == 3

    run(main)


@everywhere
def test_async_with_kills_and_reaps(run):
    async def main():
        async with start("exec sleep 60") as process:
            assert process.poll() is None
        assert process.returncode == -9

    run(main)


@everywhere
def test_async_for(run):
    async def main():
        processes = [start(f"exit {n}") for n in range(100)]
        async with processes[0]:
            found = [process.returncode async for process in as_completed(processes[1:])]
        assert sorted(found) == list(range(1, 100))

    run(main)


@everywhere
def test_wait_any_async(run):
    async def main():
        with spawn(SLEEP, returnproc=True) as slow:
            quick = start("exit 5")
            assert await wait_any_async([slow, quick]) is quick
            with pytest.raises(TimeoutError):
                await wait_any_async([slow], 0.05)
            assert slow.poll() is None

    run(main)


@in_asyncio
def test_other_tasks_run_meanwhile(run):
    async def main():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.ensure_future(count())
        assert await start("sleep 0.2; exit 4") == 4
        counter.cancel()
        assert turns > 20

    run(main)


@in_asyncio
def test_cancelling_harms_no_other_waiter(run):
    async def main():
        process = start("read line; exit 6 <&-")
        process.kill()
        await process
        process = spawn(SLEEP, returnproc=True)
        waiters = [asyncio.ensure_future(process.wait_async()) for _ in range(10)]
        await asyncio.sleep(0)
        for waiter in waiters[::2]:
            waiter.cancel()
        await asyncio.sleep(0)
        process.terminate()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert results[1::2] == [-15] * 5
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])

    before = open_fds()
    run(main)
    assert open_fds() == before


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in 3.11")
def test_timeout():
    async def main():
        with spawn(SLEEP, returnproc=True) as process:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await process
            assert process.poll() is None

    asyncio.run(main())


def test_async_with_cancelled():
    async def hold(entered):
        async with spawn(SLEEP, returnproc=True) as process:
            entered.set_result(process)
            await asyncio.sleep(60)

    async def main():
        entered = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(hold(entered))
        process = await entered
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert process.returncode == -9

    asyncio.run(main())


@in_asyncio
def test_a_thread_that_reaps_first(run):
    async def main():
        process = spawn(SLEEP, returnproc=True)
        thread = threading.Thread(target=process.wait)
        thread.start()
        waiter = asyncio.ensure_future(process.wait_async())
        await asyncio.sleep(0)
        process.kill()
        thread.join()
        assert await waiter == -9

    run(main)


def test_two_loops_in_two_threads():
    process = spawn(SLEEP, returnproc=True)
    ready = threading.Barrier(3)
    statuses = []

    async def wait():
        waiter = asyncio.ensure_future(process.wait_async())
        await asyncio.sleep(0)
        ready.wait()
        statuses.append(await waiter)

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    process.terminate()
    for thread in threads:
        thread.join()
    assert statuses == [-15, -15]


def test_reaped_by_somebody_else():
    async def main():
        process = start("exit 0")
        os.waitid(os.P_PID, process.pid, os.WEXITED)
        with contextlib.suppress(ChildProcessError):
            assert await process == 0

    asyncio.run(main())


def test_neither_watcher_nor_thread():
    async def main():
        before = signal.getsignal(signal.SIGCHLD)
        assert await asyncio.gather(*(start("exit 0") for _ in range(50))) == [0] * 50
        assert threading.active_count() == 1
        assert signal.getsignal(signal.SIGCHLD) == before

    asyncio.run(main())


def test_no_loop_at_all():
    with (
        spawn(SLEEP, returnproc=True) as process,
        pytest.raises(RuntimeError, match="no running event loop"),
    ):
        process.__await__().send(None)


def test_import_brings_no_event_loop():
    program = "import sys, spawnhelper; assert 'asyncio' not in sys.modules"
    assert spawn([sys.executable, "-c", program]) == 0


@needs_pidfd
def test_fileno_in_a_loop_of_ones_own():
    trio = pytest.importorskip("trio")

    async def main():
        process = start("exit 9")
        await trio.lowlevel.wait_readable(process.fileno())
        assert process.poll() == 9

    trio.run(main)
