"""What the benchmarks share: the C reference in this process, and the alternating comparison."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent
DYNAMIC_TARGET = "/bin/true"
WARM_UP_ROUNDS = 5
STRICT = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
SHARED = ["-O2", "-fPIC", "-shared"]
STATIC = ["-Os", "-ffreestanding", "-fno-stack-protector", "-nostdlib", "-static"]


def compile_c(name: str, flags: Sequence[str], output: Path) -> Path:
    command = shlex.split(os.environ.get("CC") or "cc")
    source = str(SOURCES / f"{name}.c")
    subprocess.run([*command, *STRICT, *flags, source, "-o", str(output)], check=True)
    return output


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """A temporary directory that other users may enter: some commands run as nobody."""
    with tempfile.TemporaryDirectory(prefix="spawnhelper-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def build_target(directory: Path) -> str:
    return str(compile_c("target", STATIC, directory / "target"))


def make_env(count: int = 20, size: int = 30) -> dict[str, str]:
    """So many variables of so many bytes, ``NAME=value`` counted."""
    names = [f"BENCHMARK_{number:02}" for number in range(count)]
    return {name: "x" * (size - len(name) - 1) for name in names}


def use_env(env: dict[str, str]) -> None:
    """Make it this process's environment, so that all candidates pass the same."""
    os.environ.clear()
    os.environ.update(env)


class Floor:
    """R0: the reference in floor.c, with everything prepared."""

    def __init__(self, directory: Path) -> None:
        library = ctypes.CDLL(str(compile_c("floor", SHARED, directory / "floor.so")))
        self._spawn = library.floor_spawn
        self._spawn.restype = ctypes.c_int64
        self._spawn.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]

    def prepare(self, argv: Sequence[str], env: dict[str, str]) -> Callable[[], int]:
        """A function that starts the command, waits, and returns C's own nanoseconds."""
        words = [os.fsencode(word) for word in argv]
        pairs = [os.fsencode(f"{name}={value}") for name, value in env.items()]
        argv_c = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        env_c = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
        spawn, path = self._spawn, ctypes.c_char_p(words[0])

        def run() -> int:
            nanoseconds: int = spawn(path, argv_c, env_c)
            if nanoseconds < 0:
                raise RuntimeError(f"the reference could not run {argv[0]}")
            return nanoseconds

        return run


class Figure(NamedTuple):
    """One candidate's times in microseconds, and their ratios to the reference's."""

    name: str
    median: float
    p10: float
    ratio: float
    p10_ratio: float


def p10(values: Sequence[float]) -> float:
    """What a quiet machine would show."""
    return sorted(values)[len(values) // 10]


def timed(candidate: Callable[[], object]) -> Callable[[], int]:
    def run() -> int:
        start = perf_counter_ns()
        candidate()
        return perf_counter_ns() - start

    return run


def compare(
    reference: Callable[[], int], candidates: dict[str, Callable[[], object]], rounds: int
) -> list[Figure]:
    """Run them in turn: A B C, C B A, then the same in another order, and so on.

    Noise that lasts longer than a round falls on all of them alike. Each turn
    is two calls, of which the second counts: it finds what a repeated call
    finds, in the library's caches as in the processor's, not what the
    candidate before it left there. ``reference`` measures itself and comes
    first in the result.
    """
    runners = [("R0", reference), *((name, timed(c)) for name, c in candidates.items())]
    times: dict[str, list[int]] = {name: [] for name, _ in runners}
    shuffle = random.Random(0).shuffle
    order = list(runners)
    for number in range(WARM_UP_ROUNDS + (rounds + 1) // 2):
        shuffle(order)
        for name, runner in [*order, *reversed(order)]:
            runner()
            nanoseconds = runner()
            if number >= WARM_UP_ROUNDS:
                times[name].append(nanoseconds)
    base, base_p10 = statistics.median(times["R0"]), p10(times["R0"])
    return [
        Figure(
            name,
            statistics.median(values) / 1000,
            p10(values) / 1000,
            statistics.median(values) / base,
            p10(values) / base_p10,
        )
        for name, values in times.items()
    ]


def print_table(title: str, figures: Sequence[Figure]) -> None:
    width = max(len(figure.name) for figure in figures)
    print(f"{title:{width}}  {'median us':>10} {'p10 us':>9} {'/ R0':>7} {'p10 / R0':>9}")
    for figure in figures:
        print(
            f"{figure.name:{width}}  {figure.median:10.1f} {figure.p10:9.1f}"
            f" {figure.ratio:7.2f} {figure.p10_ratio:9.2f}"
        )
