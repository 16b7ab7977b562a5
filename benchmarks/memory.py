"""Does a start cost more in a large process? A large and two small workers, in turn.

The second small one is the control: its ratio to the first is the noise. Luck
with the addresses of a process stays for its life, so the set is made anew
several times.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import common

import spawnhelper

NOBODY = 65534
PAGE = 4096


def allocate(gib: float) -> mmap.mmap | None:
    """Private memory in small pages, as a Python heap has it, every page touched."""
    if gib == 0:
        return None
    size = int(gib * 2**30)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, size, PAGE):
        memory[offset] = 1
    return memory


def work(gib: float, path: str) -> None:
    """The worker: one start for each line, answered by its nanoseconds."""
    argv = [path]
    common.use_env(common.make_env())
    calls: dict[str, Callable[[], object]] = {
        "spawn()": lambda: spawnhelper.spawn(argv),
        "spawn(uid=)": lambda: spawnhelper.spawn(argv, uid=NOBODY),
        "spawn(returnproc=True).wait()": lambda: spawnhelper.spawn(argv, returnproc=True).wait(),
        "Popen().wait()": lambda: subprocess.Popen(argv).wait(),
        "Popen(user=).wait()": lambda: subprocess.Popen(argv, user=NOBODY).wait(),
    }
    memory = allocate(gib)
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    print(resident * os.sysconf("SC_PAGE_SIZE"), flush=True)
    for line in sys.stdin:
        call = calls[line.rstrip("\n")]
        start = perf_counter_ns()
        call()
        print(perf_counter_ns() - start, flush=True)
    if memory is not None:
        memory.close()


class Worker:
    def __init__(self, gib: float, path: str) -> None:
        command = [sys.executable, __file__, "--worker", path, "--gib", str(gib)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.resident = self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def measure(self, name: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.communicate()


class Times(NamedTuple):
    """Nanoseconds of one call in the large, the small and the other small process."""

    large: list[int]
    small: list[int]
    control: list[int]


def measure(name: str, workers: Sequence[Worker], rounds: int, times: Times) -> None:
    for _ in range(5):
        for worker in workers:
            worker.measure(name)
    turns = list(zip(times, workers, strict=True))
    for _ in range(rounds):
        random.shuffle(turns)
        for values, worker in turns:
            values.append(worker.measure(name))


def summarize(times: Times) -> dict[str, float]:
    large, small, control = (statistics.median(values) for values in times)
    return {
        "pairs": len(times.small),
        "large_us": large / 1000,
        "small_us": small / 1000,
        "ratio": large / small,
        "p10_ratio": common.p10(times.large) / common.p10(times.small),
        "paired_ratio": statistics.median(
            one / other for one, other in zip(times.large, times.small, strict=True)
        ),
        "control_ratio": control / small,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="memory of the large process")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--fork-pairs", type=int, default=50, help="for calls that fork")
    parser.add_argument("--restarts", type=int, default=10, help="sets of fresh processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    parser.add_argument("--worker", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.gib, options.worker)
        return
    plan = {
        "spawn()": options.pairs,
        "spawn(returnproc=True).wait()": options.pairs,
        "Popen().wait()": options.pairs,
    }
    if os.geteuid() == 0:
        plan |= {"spawn(uid=)": options.pairs, "Popen(user=).wait()": options.fork_pairs}
    times = {name: Times([], [], []) for name in plan}
    with common.work_directory() as directory:
        target = common.build_target(directory)
        for _ in range(options.restarts):
            workers = [Worker(gib, target) for gib in (options.gib, 0, 0)]
            resident = [f"{worker.resident >> 20} MiB" for worker in workers]
            for name, pairs in plan.items():
                measure(name, workers, -(-pairs // options.restarts), times[name])
            for worker in workers:
                worker.close()
    print("resident:", ", ".join(resident))
    record = {name: summarize(values) for name, values in times.items()}
    titles = list(record["spawn()"])
    print(f"{'':30}" + "".join(f"{title:>14}" for title in titles))
    for name, figures in record.items():
        print(f"{name:30}" + "".join(f"{figures[title]:14.4g}" for title in titles))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
