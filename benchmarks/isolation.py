"""Sandboxed starts: reused sets, one-shots, cgroups and portage, as ratios to the C reference."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import common

import spawnhelper
from spawnhelper import Namespaces, spawn

IDLE_SECONDS = 0.06
Candidates = dict[str, Callable[[], object]]


class Goal(NamedTuple):
    """The most that a candidate may cost."""

    name: str
    limit: float


REUSED = Goal("reused set, everything", 1.4)
PID = Goal("unshare_pid", 4.5)
FULL = Goal("everything, one-shot", 11)
CGROUP = Goal("cgroup at birth", 1.2)
IDLE_CGROUP = Goal("cgroup at birth, after 60 ms idle", 1.8)
PORTAGE_LEAST = 40.0  # times what the full one-shot costs


def find_unified() -> Path | None:
    """Where cgroup v2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    return None


@contextlib.contextmanager
def new_cgroup() -> Iterator[Path | None]:
    root = find_unified()
    if root is None:
        yield None
        return
    path = Path(tempfile.mkdtemp(prefix="spawnhelper-bench-", dir=root))
    try:
        yield path
    finally:
        path.rmdir()


def full_candidate(argv: list[str]) -> Callable[[], object]:
    def run() -> None:
        spawn(argv, unshare_net=True, unshare_ipc=True, unshare_mount=True, unshare_pid=True)

    return run


def sandboxes(argv: list[str], box: Namespaces, cgroup: Path | None) -> Candidates:
    """Those that make no network namespace."""
    found: Candidates = {
        "spawn()": lambda: spawn(argv),
        REUSED.name: lambda: spawn(argv, namespaces=box),
        "unshare_ipc": lambda: spawn(argv, unshare_ipc=True),
        "unshare_mount": lambda: spawn(argv, unshare_mount=True),
        PID.name: lambda: spawn(argv, unshare_pid=True),
    }
    if cgroup is not None:
        found[CGROUP.name] = lambda: spawn(argv, cgroup=cgroup)
        found["unshare_pid, cgroup at birth"] = lambda: spawn(argv, unshare_pid=True, cgroup=cgroup)
    return found


def networks(argv: list[str]) -> Candidates:
    """Apart, because the kernel goes on for a while to clean up what these leave."""
    return {
        "unshare_net": lambda: spawn(argv, unshare_net=True),
        FULL.name: full_candidate(argv),
    }


def compare_idle(
    reference: Callable[[], int], candidates: Candidates, rounds: int
) -> list[common.Figure]:
    """After each has been left alone for 60 ms: RCU and the processors have gone to rest."""
    runners = [("R0", reference), *((name, common.timed(one)) for name, one in candidates.items())]
    times: dict[str, list[int]] = {name: [] for name, _ in runners}
    for number in range(rounds):
        for name, runner in runners if number % 2 else reversed(runners):
            time.sleep(IDLE_SECONDS)
            times[name].append(runner())
    base, base_p10 = statistics.median(times["R0"]), common.p10(times["R0"])
    return [
        common.Figure(
            f"{name}, after 60 ms idle",
            statistics.median(values) / 1000,
            common.p10(values) / 1000,
            statistics.median(values) / base,
            common.p10(values) / base_p10,
        )
        for name, values in times.items()
    ]


def portage_candidate(argv: list[str], env: dict[str, str]) -> Callable[[], object]:
    """The whole sandbox of portage.process.spawn(), as ebuild phases have it."""
    import portage.process

    def run() -> None:
        status = portage.process.spawn(
            argv, env=env, unshare_net=True, unshare_ipc=True, unshare_mount=True, unshare_pid=True
        )
        if status != 0:
            sys.exit(f"portage's sandbox does not work here: status {status}")

    return run


class Report:
    """Tables, verdicts on the goals, and the record of both."""

    def __init__(self, rounds: int) -> None:
        self.met = True
        self._record: dict[str, object] = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "spawnhelper": spawnhelper.__version__,
            "rounds": rounds,
        }

    def add(self, title: str, figures: list[common.Figure], goals: list[Goal]) -> None:
        common.print_table(title, figures)
        ratios = {figure.name: figure.ratio for figure in figures}
        for goal in goals:
            if goal.name in ratios:
                ratio = ratios[goal.name]
                self._judge(ratio <= goal.limit, f"{goal.name} {ratio:.2f} <= {goal.limit}")
        self._record[title] = [figure._asdict() for figure in figures]
        print()

    def compare_with_portage(self, figures: list[common.Figure]) -> None:
        self.add("against portage", figures, [])
        times = figures[2].median / figures[1].median
        self._judge(times >= PORTAGE_LEAST, f"{times:.0f} >= {PORTAGE_LEAST:.0f} times")

    def _judge(self, good: bool, text: str) -> None:
        self.met = self.met and good
        print(f"goal {'met' if good else 'MISSED'}: {text}")

    def write(self, path: Path) -> None:
        record = {**self._record, "goals_met": self.met}
        path.write_text(json.dumps(record, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="calls of each candidate")
    parser.add_argument("--idle-rounds", type=int, default=100, help="likewise after idleness")
    parser.add_argument("--portage", action="store_true", help="compare with portage's sandbox")
    parser.add_argument("--portage-rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if os.geteuid() != 0:
        sys.exit("isolation.py: needs root")
    report = Report(options.rounds)
    env = common.make_env()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(common.work_directory())
        cgroup = stack.enter_context(new_cgroup())
        box = stack.enter_context(Namespaces(net=True, ipc=True, mount=True, pid=True))
        argv = [common.build_target(directory)]
        reference = common.Floor(directory).prepare(argv, env)
        common.use_env(env)

        figures = common.compare(reference, sandboxes(argv, box, cgroup), options.rounds)
        report.add("static", figures, [REUSED, PID, CGROUP])
        figures = common.compare(reference, networks(argv), options.rounds)
        report.add("network", figures, [FULL])
        if cgroup is not None and options.idle_rounds:
            path = cgroup
            idle: Candidates = {"cgroup at birth": lambda: spawn(argv, cgroup=path)}
            figures = compare_idle(reference, idle, options.idle_rounds)
            report.add("idle", figures, [IDLE_CGROUP])
        if options.portage:
            candidates: Candidates = {
                FULL.name: full_candidate(argv),
                "portage, everything": portage_candidate(argv, env),
            }
            rounds = options.portage_rounds
            report.compare_with_portage(common.compare(reference, candidates, rounds))
    if options.json:
        report.write(options.json)
    sys.exit(not report.met)


if __name__ == "__main__":
    main()
