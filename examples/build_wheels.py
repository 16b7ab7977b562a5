"""Build wheels from source: several at a time, offline, as an unprivileged user.

    python build_wheels.py [--dir wheelhouse] [--jobs N] [--uid N] [--reuse] [--prove]
                           [PACKAGE[:MODULE] ...]

Needs spawnhelper[examples], a C compiler, Python.h (and for cffi libffi's headers). pip
puts sdists, and wheels of what their builds need, into DIR/downloads, for later runs too.
Then each wheel is built in DIR/builds (made anew), installed into a fresh venv and
imported, each step in network, IPC, mount and pid namespaces of its own; with --reuse,
in a set of them that one of the N workers keeps. Any failure: exit status 1.

Root's steps run as --uid, if that can; those of others in a user namespace. --prove adds
two packages: a build that tries the network, and one that leaves a daemon behind.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from spawnhelper import Namespaces, spawn

DEFAULT = """cffi:_cffi_backend markupsafe:markupsafe._speedups msgpack:msgpack._cmsgpack
    pyyaml:yaml wrapt:wrapt._wrappers attrs:attr jinja2 pycparser idna packaging six wheel"""
PIP = (sys.executable, "-m", "pip")
ONLINE = {**os.environ, "PIP_USE_PEP517": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
OFFLINE = {**ONLINE, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
FDS = dict.fromkeys((0, 1, 2), os.open(os.devnull, os.O_RDWR))


IN_USER = os.geteuid() != 0  # a user namespace gives the right for the others
ALL = dict.fromkeys(("unshare_net", "unshare_ipc", "unshare_mount", "unshare_pid"), True)
ALL["unshare_user"] = IN_USER
TREE = {"unshare_pid": True, "unshare_user": IN_USER}  # with the network: for downloads


class Package:
    """Something to build, and how far that is."""

    def __init__(self, word: str, root: Path, user: dict[str, Any]) -> None:
        self.name, self.module = (word.split(":") * 2)[:2]
        self.status, self.seconds, self.cpu, self.peak, self.wheel = "waiting", 0.0, 0.0, 0, "-"
        self.download = root / "downloads" / f"{self.name}-{sys.implementation.cache_tag}"
        self.folder, self.log = root / "builds" / self.name, root / "builds" / f"{self.name}.log"
        self.folder.mkdir(parents=True)
        os.chown(self.folder, user.get("uid", -1), user.get("gid", -1))
        self.options = user | {"cwd": self.folder, "umask": 0o022, "logfile": self.log}
        self.isolation: dict[str, Any] = ALL
        self.cgroup = CGROUP and CGROUP / f"wheels-{os.getpid()}-{self.name}"
        if self.cgroup:
            self.cgroup.mkdir()

    async def run(self, *command: str, online: bool = False) -> None:
        """Run a step; however it ends, and if we are cancelled, nothing of it is left."""
        env, isolation = (ONLINE, TREE) if online else (OFFLINE, self.isolation)
        env = env | {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        options = self.options | isolation | {"cgroup": self.cgroup}
        async with spawn(command, env, None, FDS, returnproc=True, **options) as step:
            await step
        if step.rusage:
            self.cpu += step.rusage.ru_utime + step.rusage.ru_stime
        if self.cgroup:
            self.peak = int((self.cgroup / "memory.peak").read_text())
        if step.returncode != 0:
            raise RuntimeError(f"exit status {step.returncode}")

    async def fetch(self) -> None:
        """Download the sdist, and as wheels what pip says it installed to prepare it."""
        if self.download.exists():
            return
        options = ("-v", "--no-deps", "--no-binary", self.name, "--dest", "download")
        await self.run(*PIP, "download", *options, self.name, online=True)
        lines = re.findall("Successfully installed (.*)", self.log.read_text(errors="replace"))
        pins = {"==".join(word.rsplit("-", 1)) for word in " ".join(lines).split()}
        if pins:
            await self.run(*PIP, "wheel", "--no-deps", "-w", "download", *pins, online=True)
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

    async def attempt(self, phase: str, workers: "asyncio.Queue[dict[str, Any]]") -> None:
        """Go through a phase; if it fails, show the end of the log."""
        self.isolation = await workers.get()
        self.status, began = phase, time.monotonic()
        try:
            await getattr(self, phase)()
            self.status = "ok" if phase == "check" else "waiting"
        except (OSError, RuntimeError) as error:
            self.status = "failed"
            print(f"--- {self.name}: {error}\n{self.log.read_text(errors='replace')[-1500:]}")
        finally:
            workers.put_nowait(self.isolation)
        self.seconds += time.monotonic() - began

    def conclude(self) -> None:
        """When all that ran is gone."""
        if self.cgroup:
            self.cgroup.rmdir()


class Proof(Package):
    """A package that does what it should not; its build backend is its own."""

    async def fetch(self) -> None:
        """Write it."""
        self.download.mkdir(exist_ok=True)
        (self.download / "pyproject.toml").write_text(PYPROJECT)
        (self.download / "backend.py").write_text(BACKENDS[self.name])

    async def build(self) -> None:
        """What it says is in the log."""
        with contextlib.suppress(RuntimeError):  # pip's: the network is not there
            await self.run(*PIP, "wheel", "-v", "--no-deps", str(self.download))

    async def check(self) -> None:
        """Wait for ``conclude``."""

    def conclude(self) -> None:
        """Look for the proof."""
        super().conclude()
        text, self.status = self.log.read_text(errors="replace"), "failed"
        if re.search("(?m)^ *OSError.*Network is unreachable", text):
            self.status = "ok: no network"
        if "a daemon runs" in text:
            with open(self.folder / "daemon.lock") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.status = "ok: daemon gone"


PYPROJECT = 'build-system = {requires = [], build-backend = "backend", backend-path = ["."]}'
BACKENDS = {
    "proof-network": """import socket
def build_wheel(folder, settings=None, metadata=None):
    socket.create_connection(("192.0.2.1", 80), timeout=5)
""",
    "proof-daemon": """import fcntl, os, time
def build_wheel(folder, settings=None, metadata=None):
    lock = open(os.environ["HOME"] + "/daemon.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    daemon = os.fork()
    if daemon == 0:  # it has the lock as long as it lives
        os.closerange(0, 3)
        time.sleep(3600)
    raise SystemExit(f"a daemon runs, pid {daemon}, and the build fails")
""",
}


def find_cgroup() -> Path | None:
    """Our own v2 cgroup, if cgroups with a memory.peak can be made in it."""
    with contextlib.suppress(OSError, IndexError):
        mounts, paths = Path("/proc/self/mountinfo"), Path("/proc/self/cgroup")
        place = re.findall(r"(?m)^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", mounts.read_text())[0]
        own = Path(place, re.findall("(?m)^0::/(.*)$", paths.read_text())[0])
        with contextlib.suppress(OSError):  # EBUSY: only where no processes are, or in the root
            (own / "cgroup.subtree_control").write_text("+memory")
        trial = own / f"wheels-{os.getpid()}"
        trial.mkdir()
        has_peak = (trial / "memory.peak").exists()
        trial.rmdir()
        return own if has_peak else None
    return None


CGROUP = find_cgroup()


async def drive(args: argparse.Namespace, packages: list[Package]) -> None:
    """Take the packages through all phases; a signal cancels that, it interrupts nothing."""
    (task,) = asyncio.all_tasks()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    shutil.rmtree(args.dir / "builds", ignore_errors=True)
    (args.dir / "downloads").mkdir(parents=True, exist_ok=True)
    user = choose_user(args.uid, args.dir) if os.geteuid() == 0 else {}
    packages += [Package(word, args.dir, user) for word in args.words]
    packages += [Proof(name, args.dir, user) for name in (BACKENDS if args.prove else ())]
    workers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    with contextlib.ExitStack() as stack:
        for package in packages:
            stack.callback(package.conclude)
        for _ in range(args.jobs):
            made = stack.enter_context(Namespaces(*[True] * 4, user=IN_USER)) if args.reuse else 0
            workers.put_nowait({"namespaces": made} if made else ALL)
        for phase in ("fetch", "build", "check"):
            waiting = [package for package in packages if package.status == "waiting"]
            await asyncio.gather(*[package.attempt(phase, workers) for package in waiting])


def table(packages: list[Package]) -> Table:
    """What is known now."""
    rows = Table("package", "version", "seconds", "cpu", "peak MiB", "status")
    rows.add_column("log", overflow="fold")
    for p in packages:
        version, log = p.wheel.split("-")[1], os.path.relpath(p.log)
        peak = f"{p.peak / 2**20:.0f}" if p.peak else "-"
        times = f"{p.seconds:.1f}", f"{p.cpu:.1f}"
        rows.add_row(p.name, version, *times, peak, p.status, log)
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--uid", type=int, default=65534)
    parser.add_argument("--reuse", action="store_true", help="one set of namespaces per worker")
    parser.add_argument("--prove", action="store_true", help="add builds that misbehave")
    args = parser.parse_args()
    os.umask(0o022)  # the steps' user is to enter our folders
    packages: list[Package] = []
    with Live(get_renderable=lambda: table(packages)), contextlib.suppress(asyncio.CancelledError):
        asyncio.run(drive(args, packages))
    return int(not packages or any(not package.status.startswith("ok") for package in packages))


if __name__ == "__main__":
    sys.exit(main())
