"""The portage door against portage itself (PyPI): one process, alternating, medians.

portage forks this process for each command, so its cost grows with it:
--ballast sets how much memory this process holds. R0 is the least that a start
and wait can cost in C (floor.c), so portage / R0 is what no library can exceed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import common
import portage.process as theirs

import spawnhelper
import spawnhelper.process as ours

PAGE = 4096


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def fill(target: int) -> bytearray:
    """So much memory, written to, that this process has the target size (bytes)."""
    ballast = bytearray(max(0, target - resident()))
    ballast[::PAGE] = b"x" * len(ballast[::PAGE])
    return ballast


def scenarios(static: str, log: Path, null: int) -> dict[str, tuple[float, dict[str, Any]]]:
    """Name -> (least ratio wanted, keywords of both)."""
    pipes = {0: null, 1: null, 2: null}
    found: dict[str, tuple[float, dict[str, Any]]] = {
        "default, static target": (60, {"mycommand": [static]}),
        "default, /bin/true": (12, {"mycommand": [common.DYNAMIC_TARGET]}),
        "fd_pipes, static target": (0, {"mycommand": [static], "fd_pipes": pipes}),
        "logfile, static target": (
            60,
            {"mycommand": [static], "fd_pipes": pipes, "logfile": str(log)},
        ),
    }
    if os.geteuid() == 0:
        sandbox = {f"unshare_{name}": True for name in ("net", "ipc", "mount", "pid")}
        found["sandboxed, static target"] = (
            40,
            {"mycommand": [static], "fd_pipes": pipes, **sandbox},
        )
    return found


def call(spawn: Callable[..., Any], keywords: dict[str, Any]) -> int:
    """Nanoseconds of one call. portage changes the fd_pipes that it is given."""
    given = dict(keywords)
    if "fd_pipes" in given:
        given["fd_pipes"] = dict(given["fd_pipes"])
    start = perf_counter_ns()
    status = spawn(**given)
    spent = perf_counter_ns() - start
    if status != 0:
        raise SystemExit(f"status {status} of {keywords}")
    return spent


def compare(
    keywords: dict[str, Any], reference: Callable[[], int], rounds: int, each: int
) -> tuple[float, float, float]:
    """Medians in nanoseconds: portage's, ours, R0. The two are called more often, they are fast."""
    runners: dict[str, Callable[[], int]] = {
        "theirs": lambda: call(theirs.spawn, keywords),
        "ours": lambda: call(ours.spawn, keywords),
        "R0": reference,
    }
    spent: dict[str, list[int]] = {name: [] for name in runners}
    for run in runners.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        turns = ["theirs", *["ours", "R0"] * each]
        random.shuffle(turns)
        for turn in turns:
            runners[turn]()  # as in spawn.py: the second of two calls is timed
            spent[turn].append(runners[turn]())
    slow, fast, floor = (statistics.median(found) for found in spent.values())
    return slow, fast, floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--each", type=int, default=5, help="calls of ours for each of portage's")
    parser.add_argument("--ballast", type=int, default=30, help="MB that this process holds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "spawnhelper": spawnhelper.__version__,
        "figures": {},
    }
    with common.work_directory() as directory, open(os.devnull, "r+b") as null:
        static = common.build_target(directory)
        ballast = fill(options.ballast * 1_000_000)
        print(f"{resident() / 1e6:.0f} MB resident ({len(ballast) / 1e6:.0f} MB of them ballast)")
        print(
            f"{'':28} {'portage':>10} {'ours':>10} {'R0':>10} {'ratio':>8} {'wanted':>8}"
            f" {'portage/R0':>11} {'ours/R0':>8}"
        )
        reference = common.Floor(directory)
        for name, (wanted, keywords) in scenarios(static, directory / "log", null.fileno()).items():
            least = reference.prepare(keywords["mycommand"], dict(os.environ))
            slow, fast, floor = compare(keywords, least, options.rounds, options.each)
            ratio = slow / fast
            goal = f"≥ {wanted:g}" if wanted else ""
            print(
                f"{name:28} {slow / 1e3:8.0f}µs {fast / 1e3:8.0f}µs {floor / 1e3:8.0f}µs"
                f" {ratio:8.1f} {goal:>8} {slow / floor:11.1f} {fast / floor:8.2f}"
            )
            figure = {"portage_ns": slow, "ours_ns": fast, "r0_ns": floor, "ratio": ratio}
            record["figures"][name] = figure
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
