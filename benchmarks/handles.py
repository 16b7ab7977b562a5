"""Many handles, and asyncio: ratios of medians, measured in turn."""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import time
from collections.abc import Awaitable, Callable

import common

import spawnhelper


def limit_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 200, hard), hard))


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def median_of(argv: list[str], calls: int) -> float:
    return statistics.median(
        common.timed(lambda: spawnhelper.spawn(argv, returnproc=True).wait())()
        for _ in range(calls)
    )


def many(argv: list[str], count: int, turns: int) -> None:
    """Start and wait with none and with so many alive; then reap them all."""
    limit_descriptors(count)
    ratios, costs, sizes = [], [], []
    median_of(argv, 200)
    for _ in range(turns):
        before = median_of(argv, 300)
        size = resident()
        alive = [spawnhelper.spawn(["/bin/sleep", "600"], returnproc=True) for _ in range(count)]
        sizes.append((resident() - size) / count)
        for process in alive:  # what is measured shall not be how they begin
            while b") S" not in _stat(process.pid):
                time.sleep(0.001)
        during = median_of(argv, 300)
        for process in alive:
            process.kill()
        for process in alive:  # ended, not reaped: what is measured is the reaping
            while b") Z" not in _stat(process.pid):
                time.sleep(0.001)
        start = time.process_time()
        for process in spawnhelper.as_completed(alive):
            process.returncode  # noqa: B018
        costs.append((time.process_time() - start) / count * 1e6)
        del alive
        after = median_of(argv, 300)
        ratios.append(2 * during / (before + after))
    print(f"start and wait, {count} alive / none: {statistics.median(ratios):.3f}")
    print(f"as_completed, us of CPU for each:     {statistics.median(costs):.1f}")
    print(f"bytes for each live handle:           {sizes[0]:.0f}")


def _stat(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read()


async def ours(path: str) -> object:
    return await spawnhelper.spawn([path], returnproc=True)


async def asyncios(path: str) -> object:
    process = await asyncio.create_subprocess_exec(path)
    return await process.wait()


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await work()
    return time.perf_counter() - start


async def compare(path: str, rounds: int) -> None:
    """One after the other, and a hundred at once."""
    for name, width in (("sequential", 1), ("gather(100)", 100)):
        times: dict[Callable[[str], Awaitable[object]], list[float]] = {ours: [], asyncios: []}
        for number in range(rounds // width + 10):
            for start, found in times.items():

                async def work(start: Callable[[str], Awaitable[object]] = start) -> None:
                    await asyncio.gather(*(start(path) for _ in range(width)))  # noqa: B023

                alone = (lambda start=start: start(path)) if width == 1 else work
                elapsed = await _timed(alone)
                if number >= 5:
                    found.append(elapsed)
        mine, theirs = (statistics.median(found) for found in times.values())
        print(
            f"{name}: {mine * 1e6:.0f} us, asyncio {theirs * 1e6:.0f} us, ratio {mine / theirs:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alive", type=int, default=5000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1000)
    options = parser.parse_args()
    with common.work_directory() as directory:
        target = common.build_target(directory)
        many([target], options.alive, options.turns)
        asyncio.run(compare(target, options.rounds))


if __name__ == "__main__":
    main()
