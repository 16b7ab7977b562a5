"""Builds the C instruments, from the sources as they are or from copies with one seeded bug."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent
CORE = [
    *(
        "state.c",
        "orders.c",
        "report.c",
        "launch.c",
        "wait.c",
        "pidfds.c",
        "drop.c",
        "logpipe.c",
        "fdplan.c",
        "isolate.c",
        "sets.c",
        "spawnhelper.c",
    ),
]
STRICT = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g"]
FREESTANDING = [
    *("-Os", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-lto"),
    *("-fno-pie", "-nostdlib", "-static"),
]


def find_compiler(name: str | None = None) -> list[str]:
    """The command of the compiler `name`, of $CC or of cc; the test is skipped without one."""
    command = [name] if name else shlex.split(os.environ.get("CC") or "cc")
    if not shutil.which(command[0]):
        pytest.skip(f"no C compiler {command[0]!r} here")
    return command


def run_checked(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def open_workshop() -> Iterator[Path]:
    """A directory whose programs any user may run; pytest's own are private."""
    directory = Path(tempfile.mkdtemp(prefix="instruments-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def build_target(directory: Path, *flags: str) -> Path:
    """The program that the instruments start."""
    program = directory / "target"
    source = str(HERE / "target.c")
    command = [*find_compiler(), *STRICT, *FREESTANDING, *flags, f"-I{CSRC}", source]
    run_checked([*command, "-o", str(program)])
    program.chmod(0o755)
    return program


def seed_bug(directory: Path, file: str, old: str, new: str) -> Path:
    """A copy of csrc in which `old`, which `file` holds once, is replaced by `new`."""
    copy = directory / "csrc"
    shutil.copytree(CSRC, copy)
    text = (copy / file).read_text()
    assert text.count(old) == 1, f"the seeded bug no longer fits {file}: {old!r}"
    (copy / file).write_text(text.replace(old, new))
    return copy


def run_instrument(command: list[str], timeout: float = 300) -> Any:
    """What the instrument found; its exit status says nothing, its JSON does."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.PIPE
    )
    assert done.stdout, f"{shlex.join(command)} ended with {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)


def compile_part(directory: Path, source: Path, *flags: str) -> Path:
    """One file of the library, its system calls led through an instrument, or that itself."""
    part = directory / f"{source.name}.o"
    command = [*find_compiler(), *STRICT, "-DSH_FAULT", "-pthread", "-O1"]
    if source.parent != HERE:
        # Empty, as the sources define it; the shim comes before their own definition.
        command += ["-D_GNU_SOURCE=", "-include", str(HERE / "shim.h")]
    command += ["-fno-stack-protector", *flags, f"-I{CSRC}", "-c", str(source)]
    run_checked([*command, "-o", str(part)])
    return part


def link_parts(program: Path, parts: list[Path], wrapped: list[str]) -> Path:
    """The instrument; it has functions of its own for the wrapped ones."""
    command = [*find_compiler(), *map(str, parts), "-o", str(program), "-pthread"]
    run_checked([*command, "-Wl,-z,now", *(f"-Wl,--wrap={name}" for name in wrapped)])
    program.chmod(0o755)
    return program
