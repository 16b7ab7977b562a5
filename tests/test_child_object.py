"""The child's object calls nothing outside itself, with either compiler at any level."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from instruments import toolchain

CHILD = toolchain.CSRC / "spawnhelper.c"
LEVELS = ["-O0", "-O1", "-O2", "-O3", "-Os"]
COMPILERS = ["gcc", "clang"]
WANTED = {"CHILD_FLAGS", "ROOT", "run", "gate_symbols"}


def read_setup() -> dict[str, Any]:
    """The flags and the gate of setup.py, without running the rest of it."""
    path = toolchain.ROOT / "setup.py"
    tree = ast.parse(path.read_text())
    wanted: list[ast.stmt] = []
    for node in tree.body:
        names = {node.name} if isinstance(node, ast.FunctionDef) else set()
        if isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if names & WANTED or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            wanted.append(node)
    namespace: dict[str, Any] = {
        "__file__": str(path),
        "Path": Path,
        "os": os,
        "subprocess": subprocess,
        "sys": sys,
        "sysconfig": sysconfig,
    }
    exec(compile(ast.Module(wanted, []), str(path), "exec"), namespace)
    assert namespace.keys() >= WANTED
    return namespace


SETUP = read_setup()


def compile_child(directory: Path, compiler: str, level: str, source: Path = CHILD) -> Path:
    child = directory / "child.o"
    command = [*toolchain.find_compiler(compiler), *SETUP["CHILD_FLAGS"], level, "-Werror"]
    toolchain.run_checked([*command, f"-I{toolchain.CSRC}", "-c", str(source), "-o", str(child)])
    return child


def list_undefined(child: Path) -> set[str]:
    listed = toolchain.run_checked(["nm", "-u", str(child)])
    # Position-independent code may name its own table; nothing calls it.
    return {line.split()[-1] for line in listed.splitlines()} - {"_GLOBAL_OFFSET_TABLE_"}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_undefined_symbol(tmp_path: Path, compiler: str, level: str) -> None:
    child = compile_child(tmp_path, compiler, level)
    SETUP["gate_symbols"](str(child))
    if sysconfig.get_platform().endswith(("x86_64", "aarch64")):
        assert list_undefined(child) == set()


BUGS = {
    "memcpy": "void *memcpy(void *, const void *, unsigned long);\n"
    "void bug(void *a, const void *b, unsigned long n) { memcpy(a, b, n); }\n",
    "strlen": "unsigned long strlen(const char *);\n"
    "unsigned long bug(const char *a) { return strlen(a); }\n",
    "getpid": "int getpid(void);\nint bug(void) { return getpid(); }\n",
    "errno": "int *bug(void) { return &errno; }\n",
    "a copied struct": "struct big { char bytes[512]; };\n"
    "void bug(struct big *a, const struct big *b) { *a = *b; }\n",
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("bug", BUGS)
def test_seeded_bug_is_caught(tmp_path: Path, bug: str, compiler: str, level: str) -> None:
    source = tmp_path / "spawnhelper.c"
    source.write_text(CHILD.read_text() + BUGS[bug])
    child = compile_child(tmp_path, compiler, level, source)
    if bug == "a copied struct" and not list_undefined(child):
        SETUP["gate_symbols"](str(child))  # copied inline: no bug here
        return
    with pytest.raises(SystemExit, match="may use no symbol"):
        SETUP["gate_symbols"](str(child))
