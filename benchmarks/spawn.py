"""Start and wait: every way in one process, alternating, as ratios to the C reference."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import common

import spawnhelper

NOBODY = 65534
Candidates = dict[str, Callable[[], object]]


def ours(argv: list[str], env: dict[str, str], null: int, log: Path) -> Candidates:
    spawn = spawnhelper.spawn
    name, value = next(iter(env.items()))
    serial = itertools.count()
    pipes = {0: null, 1: null, 2: null}

    def changed() -> None:
        # Another value of the same length at every call.
        env_now = {**env, name: f"{next(serial):0{len(value)}}"}
        spawn(argv, env=env_now)

    found: Candidates = {
        "spawn()": lambda: spawn(argv),
        "spawn(env=) unchanged": lambda: spawn(argv, env=env),
        "spawn(env=) changed at every call": changed,
        "spawn(fd_pipes=) 3 pairs": lambda: spawn(argv, fd_pipes=pipes),
        "spawn(close_fds=True)": lambda: spawn(argv, close_fds=True),
        "spawn(env=, 3 fd_pipes, close_fds)": lambda: spawn(
            argv, env=env, fd_pipes=pipes, close_fds=True
        ),
        "spawn(logfile=)": lambda: spawn(argv, fd_pipes=pipes, logfile=log),
        "spawn(returnproc=True).wait()": lambda: spawn(argv, returnproc=True).wait(),
    }
    if os.geteuid() == 0:
        found["spawn(uid=, gid=, groups=)"] = lambda: spawn(
            argv, uid=NOBODY, gid=NOBODY, groups=[NOBODY]
        )
    return found


def others(argv: list[str], env: dict[str, str]) -> Candidates:
    path = argv[0]
    return {
        "os.posix_spawn() + waitpid()": lambda: os.waitpid(os.posix_spawn(path, argv, env), 0),
        "Popen().wait()": lambda: subprocess.Popen(argv, env=env).wait(),
        "subprocess.run()": lambda: subprocess.run(argv, env=env, check=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="calls of each candidate")
    parser.add_argument("--target", choices=["static", "dynamic", "both"], default="both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    options = parser.parse_args()
    record: dict[str, object] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "spawnhelper": spawnhelper.__version__,
        "rounds": options.rounds,
    }
    with common.work_directory() as directory, open(os.devnull, "r+b") as null:
        floor = common.Floor(directory)
        targets = {"static": common.build_target(directory), "dynamic": common.DYNAMIC_TARGET}
        env = common.make_env()
        common.use_env(env)
        for title, path in targets.items():
            if options.target not in (title, "both"):
                continue
            argv = [path]
            reference = floor.prepare(argv, env)
            candidates = {
                "R0 as Python sees it (ctypes)": reference,
                **ours(argv, env, null.fileno(), directory / "log"),
                **others(argv, env),
            }
            figures = common.compare(reference, candidates, options.rounds)
            common.print_table(title, figures)
            print(flush=True)
            record[title] = [figure._asdict() for figure in figures]
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
