"""Build wheels from source: several at a time, offline, as an unprivileged user.

    python build_wheels.py [--dir wheelhouse] [--jobs N] [--uid N] [PACKAGE[:MODULE] ...]

Needs spawnhelper[examples], a C compiler, Python.h (and for cffi libffi's headers). pip
puts sdists, and wheels of what their builds need, into DIR/downloads, for later runs too.
Then, with no index, each wheel is built in DIR/builds (made anew), installed into a fresh
venv and imported. Any failure: exit status 1. Root's steps run as --uid, if that can.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Column, Table

from spawnhelper import spawn

DEFAULT = """cffi:_cffi_backend markupsafe:markupsafe._speedups msgpack:msgpack._cmsgpack
    pyyaml:yaml wrapt:wrapt._wrappers attrs:attr jinja2 pycparser idna packaging six wheel"""
PIP = (sys.executable, "-m", "pip")
ONLINE = {**os.environ, "PIP_USE_PEP517": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
OFFLINE = {**ONLINE, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
FDS = dict.fromkeys((0, 1, 2), os.open(os.devnull, os.O_RDWR))


class Package:
    """Something to build, and how far that is."""

    def __init__(self, word: str, root: Path, user: dict[str, Any]) -> None:
        self.name, self.module = (word.split(":") * 2)[:2]
        self.status, self.seconds, self.wheel = "waiting", 0.0, "-"
        self.download = root / "downloads" / f"{self.name}-{sys.implementation.cache_tag}"
        self.folder, self.log = root / "builds" / self.name, root / "builds" / f"{self.name}.log"
        self.folder.mkdir(parents=True)
        os.chown(self.folder, user.get("uid", -1), user.get("gid", -1))
        self.options = user | {"cwd": self.folder, "umask": 0o022, "logfile": self.log}

    async def run(self, *command: str, env: dict[str, str] = OFFLINE) -> None:
        """Run a step in its own session: Ctrl-C reaches only us, and we kill the session."""
        env = env | {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        with spawn(["setsid", *command], env, None, FDS, returnproc=True, **self.options) as step:
            loop.add_reader(step, end.set)
            try:
                await end.wait()
            finally:  # it is not reaped yet, so that the pid is its own
                loop.remove_reader(step)
                with contextlib.suppress(ProcessLookupError):  # setsid(1) has just begun
                    os.killpg(step.pid, signal.SIGKILL)
        if step.returncode != 0:
            raise RuntimeError(f"exit status {step.returncode}")

    async def fetch(self) -> None:
        """Download the sdist, and as wheels what pip says it installed to prepare it."""
        if self.download.exists():
            return
        options = ("-v", "--no-deps", "--no-binary", self.name, "--dest", "download")
        await self.run(*PIP, "download", *options, self.name, env=ONLINE)
        lines = re.findall("Successfully installed (.*)", self.log.read_text(errors="replace"))
        pins = {"==".join(word.rsplit("-", 1)) for word in " ".join(lines).split()}
        if pins:
            await self.run(*PIP, "wheel", "--no-deps", "-w", "download", *pins, env=ONLINE)
        os.rename(self.folder / "download", self.download)

    async def build(self) -> None:
        """Build the wheel from its download alone."""
        sdist = next(file for file in self.download.iterdir() if file.suffix != ".whl")
        await self.run(*PIP, "wheel", "--no-deps", "-f", str(self.download), str(sdist))
        self.wheel = next(self.folder.glob("*.whl")).name
        shutil.copyfile(self.folder / self.wheel, self.folder.parents[1] / self.wheel)

    async def check(self) -> None:
        """Install it, and those of our wheels that it needs, into a fresh venv; import it."""
        await self.run(sys.executable, "-m", "venv", "--without-pip", "venv")
        await self.run(*PIP, "--python", "venv/bin/python", "install", "-f", "../..", self.wheel)
        await self.run("venv/bin/python", "-c", f"import {self.module.replace('-', '_')}")

    async def attempt(self, phase: str, free: asyncio.Semaphore) -> None:
        """Go through a phase; if it fails, show the end of the log."""
        async with free:
            self.status, began = phase, time.monotonic()
            try:
                await getattr(self, phase)()
                self.status = "ok" if phase == "check" else "waiting"
            except (OSError, RuntimeError) as error:
                self.status = "failed"
                print(f"--- {self.name}: {error}\n{self.log.read_text(errors='replace')[-1500:]}")
            self.seconds += time.monotonic() - began


async def drive(args: argparse.Namespace, packages: list[Package]) -> None:
    """Take the packages through all phases; a signal cancels that, it interrupts nothing."""
    free, (task,) = asyncio.Semaphore(args.jobs), asyncio.all_tasks()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    shutil.rmtree(args.dir / "builds", ignore_errors=True)
    (args.dir / "downloads").mkdir(parents=True, exist_ok=True)
    user = choose_user(args.uid, args.dir) if os.geteuid() == 0 else {}
    packages += [Package(word, args.dir, user) for word in args.words]
    for phase in ("fetch", "build", "check"):
        await asyncio.gather(*[p.attempt(phase, free) for p in packages if p.status == "waiting"])


def table(packages: list[Package]) -> Table:
    """What is known now."""
    rows = Table("package", "version", "seconds", "status", Column("log", overflow="fold"))
    for p in packages:
        version, log = p.wheel.split("-")[1], os.path.relpath(p.log)
        rows.add_row(p.name, version, f"{p.seconds:.1f}", p.status, log)
    return rows


def choose_user(uid: int, folder: Path) -> dict[str, Any]:
    """The uid for root's steps, if that can run this Python in the folder."""
    user: dict[str, Any] = {"uid": uid, "gid": uid, "groups": []}
    with contextlib.suppress(OSError):
        if spawn([*PIP, "--version"], cwd=folder, fd_pipes=FDS, **user) == 0:
            return user
    print(f"uid {uid} cannot run {sys.executable} in {folder}: the steps run as root")
    return {}


def main() -> int:
    """Parse the arguments and do it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*", metavar="PACKAGE[:MODULE]", default=DEFAULT.split())
    parser.add_argument("--dir", type=lambda word: Path(word).resolve(), default="wheelhouse")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--uid", type=int, default=65534)
    args = parser.parse_args()
    os.umask(0o022)  # the steps' user is to enter our folders
    packages: list[Package] = []
    with Live(get_renderable=lambda: table(packages)), contextlib.suppress(asyncio.CancelledError):
        asyncio.run(drive(args, packages))
    return int(not packages or any(package.status != "ok" for package in packages))


if __name__ == "__main__":
    sys.exit(main())
