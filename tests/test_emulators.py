"""The C core where vfork is not real, with another libc, without /proc, on another architecture."""

import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, needs_root
from instruments import toolchain

CHILD_FLAGS = ["-ffreestanding", "-fno-builtin", "-fno-stack-protector"]
CLONE3, CLONE, PIPE = range(3)


def build(directory, compiler, *flags):
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    objects = []
    for name in [*(file.removesuffix(".c") for file in toolchain.CORE), "portable"]:
        folder = "tests/instruments" if name == "portable" else "csrc"
        extra = CHILD_FLAGS if name == "spawnhelper" else []
        command = [compiler, "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
        target = directory / f"{name}.o"
        command += [*extra, "-c", f"{folder}/{name}.c", "-o", target]
        subprocess.run(command, check=True, cwd=ROOT)
        objects.append(target)
    program = directory / "portable"
    subprocess.run([compiler, *flags, *objects, "-o", program, "-pthread"], check=True)
    return program


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    return lines[-1]


def test_native(tmp_path):
    assert run(build(tmp_path, "cc")) == f"mode {CLONE3} OK"


def test_musl(tmp_path):
    assert run(build(tmp_path, "musl-gcc", "-static")) == f"mode {CLONE3} OK"


def test_musl_builds_the_helper_programs(tmp_path):
    if not shutil.which("musl-gcc"):
        pytest.skip("needs musl-gcc")
    flags = ["-Os", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *CHILD_FLAGS, "-nostdlib"]
    command = ["musl-gcc", *flags, "-static", "csrc/tee.c", "-o", tmp_path / "tee"]
    subprocess.run(command, check=True, cwd=ROOT)


def test_valgrind(tmp_path):
    """It turns vfork into fork: the result would be lost in the child's copy."""
    if not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    program = build(tmp_path, "cc")
    assert run("valgrind", "-q", "--error-exitcode=9", program) == f"mode {PIPE} OK"


def test_aarch64_under_qemu(tmp_path):
    if not shutil.which("qemu-aarch64-static"):
        pytest.skip("needs qemu-aarch64-static")
    program = build(tmp_path, "aarch64-linux-gnu-gcc", "-static")
    assert run("qemu-aarch64-static", program) == f"mode {PIPE} OK"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_both_compilers(tmp_path, compiler):
    assert run(build(tmp_path, compiler)) == f"mode {CLONE3} OK"


@needs_root
def test_without_proc(tmp_path):
    """Descriptors are closed one by one; an id change, of unknown safety, forks."""
    program = build(tmp_path, "cc")
    script = "mount -t tmpfs none /proc && exec " + str(program)
    assert run("unshare", "--mount", "sh", "-c", script) == f"mode {CLONE3} OK"
    script = f"""mount -t tmpfs none /proc && {sys.executable} -c '
import os
from spawnhelper import _core, spawn
fd = os.open("/dev/null", os.O_RDWR)
os.set_inheritable(fd, True)
for avoid in ("", "close_range"):
    _core.avoid(avoid)
    assert spawn(["sh", "-c", "true <&9"], fd_pipes={{9: fd}}) == 0
    assert spawn(["sh", "-c", f"true <&{{fd}}"], close_fds=True) == 2
    assert spawn(["sh", "-c", "exit $(id -u)"], uid=7, gid=7, groups=[]) == 7
print("right")' """
    assert run("unshare", "--mount", "sh", "-c", script) == "right"
