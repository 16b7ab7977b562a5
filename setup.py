"""What pyproject.toml cannot say: the child's compiler flags and gate, helper programs, abi3."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHILD_SOURCE = "csrc/spawnhelper.c"
# No libc, nothing that makes a call behind our back, and no LTO: an object
# that is only bytecode would prove nothing about its symbols.
CHILD_FLAGS = [
    "-O2",
    "-g",
    "-std=gnu11",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-lto",
    "-fvisibility=hidden",
]
HELPER_SOURCES = {
    "tee": "csrc/tee.c",
    "holder": "csrc/holder.c",
    "standin": "csrc/standin.c",
}
HELPER_FLAGS = [
    "-Os",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-lto",
    "-fno-pie",
    "-nostdlib",
    "-static",
    "-s",
    "-Wl,--build-id=none,-z,noseparate-code",
]


def compiler() -> list[str]:
    """The C compiler as a command, or a readable end."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not shutil.which(command[0]):
        command = ["cc"]
    if not shutil.which(command[0]):
        sys.exit(
            "spawnhelper: building from source needs a C compiler (gcc or clang); none was found. "
            "Install one (Debian: apt-get install gcc libc6-dev; Fedora: dnf install gcc) "
            "or set CC."
        )
    return command


def run(command: list[str]) -> str:
    print(" ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def gate_symbols(child: str) -> None:
    """Refuse a child that would call anything outside itself."""
    listed = run([os.environ.get("NM", "nm"), "-u", child])
    undefined = [line.split()[-1] for line in listed.splitlines() if line.strip()]
    machine = sysconfig.get_platform()
    # Elsewhere raw calls go through libc's syscall(); see csrc/sys.h.
    allowed = set() if machine.endswith(("x86_64", "aarch64")) else {"syscall"}
    wrong = sorted(set(undefined) - allowed - {"_GLOBAL_OFFSET_TABLE_"})
    if wrong:
        sys.exit(f"spawnhelper: the child may use no symbol of another object, but uses {wrong}")


class BuildExt(build_ext):
    def run(self) -> None:
        if not sys.platform.startswith("linux"):
            sys.exit("spawnhelper needs Linux: it uses clone3, pidfds and namespaces.")
        compiler()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        strict = ["-Werror"] if os.environ.get("SPAWNHELPER_WERROR") else []
        child = str(Path(self.build_temp).resolve() / "spawnhelper-child.o")
        run([*compiler(), *CHILD_FLAGS, *strict, "-c", CHILD_SOURCE, "-o", child])
        gate_symbols(child)
        ext.extra_objects = [child]
        ext.extra_compile_args = [*ext.extra_compile_args, *strict]
        super().build_extension(ext)
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        for name, source in HELPER_SOURCES.items():
            program = package / f"_{name}"
            run([*compiler(), *HELPER_FLAGS, *strict, source, "-o", str(program)])
            program.chmod(0o755)

    def copy_extensions_to_source(self) -> None:
        """Editable installs: the helper programs go where the extension goes."""
        super().copy_extensions_to_source()
        for name in HELPER_SOURCES:
            built = Path(self.build_lib) / "spawnhelper" / f"_{name}"
            target = ROOT / "src" / "spawnhelper" / f"_{name}"
            target.unlink(missing_ok=True)  # it may be running
            shutil.copy2(built, target)


# cp310-abi3 where the interpreter has a limited API.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
limited = sys.implementation.name == "cpython" and not free_threaded

setup(
    cffi_modules=["src/spawnhelper/_build.py:ffi"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
