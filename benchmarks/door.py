"""The portage door against portage itself (PyPI): one process, alternating, medians.

portage forks this process for each command, so its cost grows with it:
--ballast sets how much memory this process holds.
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


def compare(keywords: dict[str, Any], rounds: int, each: int) -> tuple[float, float]:
    """Medians in nanoseconds: portage's, ours. Ours is called more often, it is faster."""
    spent: dict[str, list[int]] = {"theirs": [], "ours": []}
    for _ in range(3):
        call(theirs.spawn, keywords)
        call(ours.spawn, keywords)
    for _ in range(rounds):
        turns = ["theirs", *["ours"] * each]
        random.shuffle(turns)
        for turn in turns:
            module: Any = theirs if turn == "theirs" else ours
            call(module.spawn, keywords)  # as in spawn.py: the second of two calls is timed
            spent[turn].append(call(module.spawn, keywords))
    return statistics.median(spent["theirs"]), statistics.median(spent["ours"])


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
        print(f"{'':28} {'portage':>10} {'ours':>10} {'ratio':>8} {'wanted':>8}")
        for name, (wanted, keywords) in scenarios(static, directory / "log", null.fileno()).items():
            slow, fast = compare(keywords, options.rounds, options.each)
            ratio = slow / fast
            goal = f"≥ {wanted:g}" if wanted else ""
            print(f"{name:28} {slow / 1e3:8.0f}µs {fast / 1e3:8.0f}µs {ratio:8.1f} {goal:>8}")
            record["figures"][name] = {"portage_ns": slow, "ours_ns": fast, "ratio": ratio}
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
