"""Every system call of a start fails, or kills the child, in turn: instruments/fault.c."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruments import toolchain

SOURCES = toolchain.CORE
WRAPPED = ["mmap", "munmap", "mprotect"]


def link_fault(directory: Path, parts: list[Path]) -> Path:
    return toolchain.link_parts(directory / "fault", parts, WRAPPED)


def is_root() -> bool:
    return os.geteuid() == 0


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    with toolchain.open_workshop() as directory:
        toolchain.build_target(directory)
        sources = [toolchain.HERE / "fault.c", *(toolchain.CSRC / name for name in SOURCES)]
        link_fault(directory, [toolchain.compile_part(directory, source) for source in sources])
        yield directory


@pytest.fixture(scope="module")
def found(workshop: Path) -> Any:
    return toolchain.run_instrument([str(workshop / "fault"), str(workshop / "target")])


def test_every_failure_is_reported_and_leaves_nothing(found: Any) -> None:
    assert found["bad"] == []
    assert found["bad_count"] == 0
    assert found["errnos"] >= 24
    assert found["cases"] > (25_000 if is_root() else 20_000)


def test_every_feature_set_was_swept(found: Any) -> None:
    skipped = set(found["skipped"])
    assert len(found["sets"]) + len(skipped) == 49
    for name, calls in found["sets"].items():
        if name.startswith(("ended", "running", "log")):  # after a start, or without
            assert calls["parent"] >= 3
        else:
            assert calls["child"] >= 8
    if skipped:
        assert not is_root()
        pytest.skip(f"without root these were not swept: {sorted(skipped)}")


@pytest.mark.skipif(not is_root(), reason="drops root; otherwise the others do this already")
def test_the_same_without_privileges(workshop: Path, found: Any) -> None:
    command = [str(workshop / "fault"), str(workshop / "target"), "quick", "unprivileged"]
    found = toolchain.run_instrument(command)
    assert found["bad"] == []
    assert found["skipped"]
    assert found["cases"] > 5_000


def unchecked(stage: str) -> tuple[str, str, str]:
    return (
        "spawnhelper.c",
        f"    if (error < 0)\n        fail(orders, SH_STAGE_{stage},",
        f"    if (error < -4096)\n        fail(orders, SH_STAGE_{stage},",
    )


# name: (set that must notice, needs root, file, sound, broken)
BUGS = {
    "chdir unchecked": ("umask cwd", False, *unchecked("CHDIR")),
    "umask unchecked": ("umask cwd", False, *unchecked("UMASK")),
    "uid unchecked": ("own ids", False, *unchecked("UID")),
    "gid unchecked": ("own ids, own memory", False, *unchecked("GID")),
    "groups unchecked": ("groups", True, *unchecked("GROUPS")),
    "wrong stage": (
        *("own ids", False, "spawnhelper.c"),
        *("enter(orders, SH_STAGE_UID)", "enter(orders, SH_STAGE_GID)"),
    ),
    "dup3 not repeated": (
        *("fds", False, "spawnhelper.c"),
        *("error != -EBUSY && error != -EINTR", "error != -EBUSY"),
    ),
    "exec not repeated": ("plain", False, "spawnhelper.c", "error != -ETXTBSY ||", "1 ||"),
    "exec repeated for ever": ("plain", False, "spawnhelper.c", "|| tries == 60", ""),
    "listing closes too little": (
        *("close listed", False, "spawnhelper.c"),
        *("fd >= from && fd <= to", "fd > from && fd <= to"),
    ),
    "counting is not tried": (
        *("close listed", False, "spawnhelper.c"),
        *("return (int)length;", "return 0;"),
    ),
    "child not reaped": (
        *("plain", False, "wait.c"),
        *("reap(pid, pidfd, 0, &info, NULL)", "reap(pid, pidfd, WNOHANG | WNOWAIT, &info, NULL)"),
    ),
    "pidfd not closed": (
        *("plain", False, "wait.c"),
        *("    if (pidfd >= 0)\n        SYS(close, pidfd);", "    if (pidfd >= 1000)\n        ;"),
    ),
    "pidfd of somebody else counted": (
        *("running, crowded", False, "wait.c"),
        *("    sh_disown_pidfd(process->pidfd);\n    process->pidfd", "    process->pidfd"),
    ),
    "pidfd not counted down": (
        *("ended, crowded", False, "pidfds.c"),
        *(
            "    atomic_fetch_sub(&sh_state.pidfd_count, 1);\n}\n\nvoid sh_close",
            "}\n\nvoid sh_close",
        ),
    ),
    "foreign file left out": (
        *("crowded, a foreign file", False, "pidfds.c"),
        *("|| !stays_behind(base + __builtin_ctzll(others))", ""),
    ),
    "mask not restored": (
        *("plain", False, "launch.c"),
        *("SYS(rt_sigprocmask, SIG_SETMASK, before, NULL", "SYS(rt_sigprocmask, 9, before, NULL"),
    ),
    "dumpable not restored": (
        *("ids", True, "launch.c"),
        *("SYS(prctl, PR_SET_DUMPABLE, sh_state.dumpable)", "SYS(prctl, PR_SET_DUMPABLE, 0)"),
    ),
    "log not closed": (
        *("logged", False, "launch.c"),
        *("        return 0;\n    sh_log_close(log);", "        return 0;"),
    ),
    "shared result leaked": (
        *("own ids, own memory", False, "launch.c"),
        *("    munmap(shared, sizeof *shared);\n", ""),
    ),
    "extra room leaked": (
        *("huge", False, "orders.c"),
        *("        munmap(scratch->extra, scratch->extra_size);", "        ;"),
    ),
    "ids in shared memory": (
        *("own ids, own memory", False, "launch.c"),
        *("    if (fd < 0)\n        return 1;", "    if (fd < 0)\n        return 0;"),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_seeded_bug_is_caught(workshop: Path, tmp_path: Path, name: str) -> None:
    only, needs_root, *bug = BUGS[name]
    if needs_root and not is_root():
        pytest.skip("this set needs root")
    mutant = toolchain.seed_bug(tmp_path, *bug) / bug[0]
    parts = [workshop / f"{name}.o" for name in ["fault.c", *SOURCES] if name != bug[0]]
    program = link_fault(tmp_path, [*parts, toolchain.compile_part(tmp_path, mutant, "-w")])
    command = [str(program), str(workshop / "target"), "quick", f"only={only}"]
    found = toolchain.run_instrument(command)
    assert found["bad_count"] > 0
