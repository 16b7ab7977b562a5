"""Every system call of an isolated start fails, or somebody dies there, or sleeps.

The full sweep takes minutes: SPAWNHELPER_SWEEP=full python -m pytest tests/test_isolation_faults.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruments import toolchain

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FULL = os.environ.get("SPAWNHELPER_SWEEP") == "full"
SOURCES = toolchain.CORE
WRAPPED = [
    *("mmap", "munmap", "mprotect", "calloc", "malloc", "free"),
    *("sh_isolation_open", "sh_isolation_close", "sh_take_stack", "sh_return_stack"),
    *("sh_release", "sh_child", "sh_intermediate"),
]
INSTRUMENT = "isolation_fault.c"


def build_program(directory: Path, name: str, source: Path) -> None:
    flags = [*toolchain.STRICT, *toolchain.FREESTANDING, f"-I{toolchain.CSRC}"]
    command = [*toolchain.find_compiler(), *flags, str(source), "-o", str(directory / name)]
    toolchain.run_checked(command)
    (directory / name).chmod(0o755)


def link(directory: Path, parts: list[Path]) -> Path:
    return toolchain.link_parts(directory / "isolation_fault", parts, WRAPPED)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    with toolchain.open_workshop() as directory:
        build_program(directory, "target", toolchain.HERE / "isolation_target.c")
        build_program(directory, "holder", toolchain.CSRC / "holder.c")
        sources = [toolchain.HERE / INSTRUMENT, *(toolchain.CSRC / name for name in SOURCES)]
        link(directory, [toolchain.compile_part(directory, source) for source in sources])
        yield directory


# A seeded bug that isolates less would give the host's lo addresses, and the host a name.
IN_A_HOST_OF_ITS_OWN = ["unshare", "--net", "--uts", "--ipc", "--mount"]


def run(program: Path, workshop: Path, *arguments: str) -> Any:
    command = [
        *IN_A_HOST_OF_ITS_OWN,
        str(program),
        str(workshop / "target"),
        str(workshop / "holder"),
        *arguments,
    ]
    return toolchain.run_instrument(command, timeout=1800)


@pytest.fixture(scope="module")
def found(workshop: Path) -> Any:
    return run(workshop / "isolation_fault", workshop, *([] if FULL else ["quick"]))


def test_nothing_is_left_and_nothing_runs_less_isolated(found: Any) -> None:
    assert found["bad"] == []
    assert found["bad_count"] == 0
    assert found["finished"]
    assert found["cases"] > (50_000 if FULL else 2_000)


def test_every_process_was_hit(found: Any) -> None:
    assert len(found["scenarios"]) + len(found["skipped"]) >= (50 if FULL else 10)
    assert all(found["calls"].values())
    assert all(found["kinds"].values())
    assert 0 < found["successes"] < found["cases"]
    if found["skipped"]:
        pytest.skip(f"no cgroup v2 here: {sorted(found['skipped'])}")


# name: (scenario that must notice, file to compile, file to change, sound, broken)
BUGS = {
    "holder not killed": (
        *("full", "isolate.c", "isolate.c"),
        *("    kill_birth(&births->holder);\n    kill_birth(&births->command);", ""),
    ),
    "holder reaped first": (
        *("full, program missing", "isolate.c", "isolate.c"),
        "    int status = reap_birth(&births->command);\n"
        "    int holder_status = reap_birth(&births->holder);",
        "    int holder_status = reap_birth(&births->holder);\n"
        "    int status = reap_birth(&births->command);",
    ),
    "command does not wait for pid 1": (
        *("full", "spawnhelper.c", "isolation.h"),
        *("error = SYS(read, isolation->ready,", "error = SYS(getpid, isolation->ready,"),
    ),
    "stack recycled too early": (
        *("full", "isolate.c", "isolate.c"),
        "    isolation->holder_stack = sh_take_stack(&isolation->stack_size);\n",
        "    isolation->holder_stack = sh_take_stack(&isolation->stack_size);\n"
        "    sh_return_stack(isolation->holder_stack);\n",
    ),
    "command not waited for": (
        *("full", "spawnhelper.c", "isolation.h"),
        *("CLONE_VFORK | CLONE_PARENT | SH_CLONE_CLEAR", "CLONE_PARENT | SH_CLONE_CLEAR"),
    ),
    "unborn awaited": (
        *("full", "isolate.c", "isolate.c"),
        *("(*(volatile int32_t *)&birth->pid <= 0)", "(0)"),
    ),
    "thread does not return": (
        *("set", "isolate.c", "isolate.c"),
        *("    long error = SYS(setns, isolation->home, SH_NEWPID);", "    long error = 0;"),
    ),
    "refused, but the command runs": (
        *("net", "spawnhelper.c", "isolation.h"),
        *("fail(orders, SH_STAGE_NAMESPACES, error, SH_UNSHARE_REFUSED);", ";"),
    ),
    "missing piece not noted": (
        *("full, best effort", "spawnhelper.c", "isolation.h"),
        *("&result->notes[result->nnotes++]", "&result->notes[result->nnotes]"),
    ),
    "/proc mounted where it propagates": (
        *("full, best effort", "spawnhelper.c", "isolation.h"),
        *("    if (contained)\n", "    if (contained >= 0)\n"),
    ),
    "host name unchecked": (
        *("net", "spawnhelper.c", "isolation.h"),
        *("give_up(orders, SH_STAGE_HOSTNAME, error, 0);", ";"),
    ),
    "holder fails in silence": (
        *("full", "spawnhelper.c", "isolation.h"),
        *("    births->holder_error = (int)-error;\n", ""),
    ),
    "descriptor left open": (
        *("full", "isolate.c", "isolate.c"),
        *("    close_channels(isolation);\n    for (unsigned i", "    for (unsigned i"),
    ),
    "the intermediate's descriptor left open": (
        *("preparing", "isolate.c", "isolate.c"),
        *("        SYS(close, births->directory);", "        ;"),
    ),
    "use of the set does not end": (
        *("set", "sets.c", "sets.c"),
        *("    set->starts--;\n", ""),
    ),
    "close waits for a set in use": (
        *("set, closed meanwhile", "sets.c", "sets.c"),
        *("int blocked = set->commands > 0 ||", "int blocked ="),
    ),
    "dumpable not restored": (
        *("full, ids, fds, cwd", "launch.c", "launch.c"),
        *("SYS(prctl, PR_SET_DUMPABLE, sh_state.dumpable)", "SYS(prctl, PR_SET_DUMPABLE, 0)"),
    ),
    "mask not restored": (
        *("net", "launch.c", "launch.c"),
        *("SYS(rt_sigprocmask, SIG_SETMASK, before, NULL", "SYS(rt_sigprocmask, 9, before, NULL"),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_seeded_bug_is_caught(workshop: Path, tmp_path: Path, name: str) -> None:
    only, part, *bug = BUGS[name]
    source = toolchain.seed_bug(tmp_path, *bug).parent / "csrc" / part
    parts = [workshop / f"{name}.o" for name in [INSTRUMENT, *SOURCES] if name != part]
    program = link(tmp_path, [*parts, toolchain.compile_part(tmp_path, source, "-w")])
    found = run(program, workshop, "quick", "first", f"only={only}")
    assert found["bad_count"] > 0
