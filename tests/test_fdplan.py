"""The planner of the fd map against a model, for every small map: instruments/plan.c.

SPAWNHELPER_PLAN_FDS=7 checks maps over seven descriptors, in about half a minute.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from instruments import toolchain

CASES = {6: 4_000_000, 7: 100_000_000}


def check_plans(directory: Path, csrc: Path, fds: int, *flags: str) -> Any:
    program = directory / "plan"
    sources = [str(toolchain.HERE / "plan.c"), str(csrc / "fdplan.c")]
    command = [*toolchain.find_compiler(), *toolchain.STRICT, "-O2", f"-I{csrc}", *flags, *sources]
    toolchain.run_checked([*command, "-o", str(program)])
    return toolchain.run_instrument([str(program), str(fds)], timeout=1800)


def test_every_map_over_few_fds(tmp_path: Path) -> None:
    fds = int(os.environ.get("SPAWNHELPER_PLAN_FDS", "6"))
    found = check_plans(tmp_path, toolchain.CSRC, fds)
    assert found["first"] == ""
    assert found["bad"] == 0
    assert found["cases"] > CASES.get(fds, 0)


BUGS = {
    "never parks": ("return index >= 0 && pairs[index].source", "return 0 && pairs[index].source"),
    "fetches its own slot": ("SH_FD_FETCH, index,", "SH_FD_FETCH, (int)i,"),
    "keeps without clearing": ("SH_FD_KEEP, pair->source, pair->target", "SH_FD_CLOSE, 0, 0"),
    "gap one too far": ("first = keep + 1;", "first = keep + 2;"),
    "gap takes the target": ("(int)(keep - 1)", "(int)keep"),
    "reserved forgotten": ("int pending = reserved >= 0;", "int pending = 0; (void)reserved;"),
    "sources stay open": ("close_sources(pairs, n, step);\n    return", "step;\n    return"),
    "rest stays open above": ("if (first <= INT32_MAX)", "if (first > INT32_MAX)"),
    "last number overflows": ("if (first <= INT32_MAX)", "if ((int32_t)first <= INT32_MAX)"),
}


@pytest.mark.parametrize("name", BUGS)
def test_seeded_bug_is_caught(tmp_path: Path, name: str) -> None:
    csrc = toolchain.seed_bug(tmp_path, "fdplan.c", *BUGS[name])
    found = check_plans(tmp_path, csrc, 4, "-w")
    assert found["bad"] > 0
    assert found["first"]
