"""Spawns in many threads under a rain of signals: instruments/storm.c.

SPAWNHELPER_STORM_SPAWNS sets how many (20,000 by default).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from instruments import toolchain

SOURCES = toolchain.CORE
NOTHING = ["lost", "wrong_answer", "wrong_pid", "fds", "zombies", "dumpable"]


def raise_storm(directory: Path, csrc: Path, spawns: int, threads: int = 4) -> Any:
    target = toolchain.build_target(directory, "-DPLAIN")
    program = directory / "storm"
    sources = [str(toolchain.HERE / "storm.c"), *(str(csrc / name) for name in SOURCES)]
    flags = [*toolchain.STRICT, "-O2", "-D_GNU_SOURCE=", "-fno-stack-protector", f"-I{csrc}"]
    command = [*toolchain.find_compiler(), *flags, *sources, "-o", str(program)]
    toolchain.run_checked([*command, "-pthread", "-Wl,-z,now"])
    command = [str(program), str(target), str(spawns), str(threads)]
    return toolchain.run_instrument(command, timeout=60 + spawns / 500)


@pytest.mark.parametrize("threads", [4, 8])
def test_nothing_is_lost(tmp_path: Path, threads: int) -> None:
    spawns = int(os.environ.get("SPAWNHELPER_STORM_SPAWNS", "20000"))
    found = raise_storm(tmp_path, toolchain.CSRC, spawns, threads)
    assert {name: found[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0), found
    assert found["ended"] + found["killed"] + found["refused"] == spawns
    assert found["ended"] > 0
    assert found["handled"] > 0


def test_seeded_bug_is_caught(tmp_path: Path) -> None:
    """Unmasked and with the parent's handlers, the child runs them in the parent's memory."""
    csrc = toolchain.seed_bug(tmp_path, "launch.c", "all = ~(uint64_t)0;", "all = 0;")
    unmasked = tmp_path / "unmasked"
    shutil.move(csrc, unmasked)
    text = (unmasked / "launch.c").read_text()
    assert text.count("| SH_CLONE_CLEAR_SIGHAND") == 1
    (unmasked / "launch.c").write_text(text.replace("| SH_CLONE_CLEAR_SIGHAND", ""))
    assert raise_storm(tmp_path, unmasked, 5000)["wrong_pid"] > 0
