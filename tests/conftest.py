"""The probe, and the promise that no test leaves anything behind."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import spawnhelper

HERE = Path(__file__).parent
ROOT = HERE.parent
CC = os.environ.get("CC", "cc").split()
NOBODY = 65534

# Forced modes (tests/run_modes.py): what they lack by design is not asked for.
AVOIDED = os.environ.get("SPAWNHELPER_AVOID", "").split(",")
needs_pidfd = pytest.mark.skipif("pidfd" in AVOIDED, reason="forced mode without pidfd")
needs_vfork = pytest.mark.skipif("vfork" in AVOIDED, reason="forced mode without vfork")
needs_portage = pytest.mark.skipif(
    importlib.util.find_spec("portage") is None, reason="needs portage"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def find_ordinary_python() -> tuple[list[str], dict[str, str]] | None:
    """An interpreter that every user may run and that can import the library, and its environment.

    The one that runs the tests is often below a private home directory.
    """
    if os.geteuid() != 0:
        return [sys.executable], {**os.environ}
    import _cffi_backend

    places = (Path(module.__file__).parent for module in (_cffi_backend, spawnhelper._core))
    paths = [str(place.parent if place.name == "spawnhelper" else place) for place in places]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-c", "import spawnhelper"]
        try:
            done = subprocess.run(
                command, env=env, cwd="/", capture_output=True, check=False,
                user=NOBODY, group=NOBODY, extra_groups=[],
            )  # fmt: skip
        except OSError:
            continue
        if done.returncode == 0:
            return [python], env
    return None


ORDINARY = find_ordinary_python()
needs_ordinary_python = pytest.mark.skipif(
    ORDINARY is None, reason="no Python here that an ordinary user may run"
)


class SkipGate:
    """In CI a skip that allowed_skips.txt does not list fails the run."""

    def __init__(self) -> None:
        section = "[root]" if os.geteuid() == 0 else "[user]"
        self.allowed: list[tuple[str, str]] = []
        current = ""
        for line in (HERE / "allowed_skips.txt").read_text().splitlines():
            if line.startswith("["):
                current = line.strip()
            elif line.strip() and not line.startswith("#") and current == section:
                test, _, reason = line.partition(" ")
                self.allowed.append((test, reason.strip()))
        self.refused: list[str] = []

    def pytest_runtest_logreport(self, report):
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        name = report.nodeid.removeprefix("tests/")
        if not any(name.startswith(test) and reason.startswith(why) for test, why in self.allowed):
            self.refused.append(f"{name}: {reason}")

    def pytest_collectreport(self, report):
        if report.skipped:
            self.refused.append(f"{report.nodeid}: skipped as a whole")

    def pytest_sessionfinish(self, session, exitstatus):
        if self.refused and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.refused:
            terminalreporter.write_line(f"skip not in tests/allowed_skips.txt: {line}", red=True)


def pytest_configure(config):
    if os.environ.get("CI"):
        config.pluginmanager.register(SkipGate())


def pytest_collection_finish():
    """What is there before the first test is never garbage: each test's collection is short."""
    gc.collect()
    gc.freeze()


def compile_c(source: Path, target: Path, *flags: str) -> Path:
    command = [*CC, "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(target), *flags]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="session")
def public_dir():
    """A directory that every user may enter and write, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="spawnhelper-test-"))
    path.chmod(0o777)
    owner = os.getpid()
    yield path
    if os.getpid() == owner:  # pytest-forked's children end the session, too
        shutil.rmtree(path)


class Probe:
    """Starts the probe and reads what it saw."""

    # What differs between any two processes, or at any two times.
    CHANGING = ("pid", "argv", "processes", "mounts")

    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self._directory = directory
        self._numbers = itertools.count()

    def report_path(self) -> Path:
        return self._directory / f"report-{os.getpid()}-{next(self._numbers)}.json"

    def read(self, path: Path) -> dict:
        path.chmod(0o600)  # the umask of the command may have left nothing
        report = json.loads(path.read_text())
        path.unlink()
        report["argv"].remove(str(path))
        report["fds"] = {int(fd): tuple(facts) for fd, facts in report["fds"].items()}
        return report

    def report(self, *arguments, first=None, **keywords) -> dict:
        """Everything that a probe started with these keywords of spawn() sees."""
        path = self.report_path()
        command = [first or str(self.program), str(path), *arguments]
        status = spawnhelper.spawn(command, **keywords)
        assert status == 0, status
        return self.read(path)

    def changes(self, *arguments, **keywords) -> dict:
        """What differs from a probe started without any keyword."""
        plain, report = self.report(), self.report(*arguments, **keywords)
        assert plain.keys() == report.keys()
        return {
            key: value
            for key, value in report.items()
            if key not in self.CHANGING and value != plain[key]
        }


@pytest.fixture(scope="session")
def deny(public_dir):
    """A launcher that denies system calls."""
    found = subprocess.run(
        [*CC, "-E", "-include", "seccomp.h", "-x", "c", "/dev/null"],
        capture_output=True,
        check=False,
    )
    if found.returncode:
        pytest.skip("needs libseccomp's header")
    return compile_c(HERE / "instruments" / "deny.c", public_dir / "deny", "-lseccomp")


@pytest.fixture(scope="session")
def probe(public_dir):
    program = compile_c(HERE / "probe.c", public_dir / "probe")
    program.chmod(0o755)
    return Probe(program, public_dir)


@pytest.fixture(scope="session")
def ending(public_dir):
    """A program without libc, because thousands are started, and for where there is no loader."""
    from instruments.toolchain import FREESTANDING

    source = HERE / "instruments" / "ending.c"
    return str(compile_c(source, public_dir / "ending", *FREESTANDING, f"-I{ROOT / 'csrc'}"))


def fd_facts(fd: int) -> tuple[int, int, int, int]:
    """What the probe should report for a descriptor that it inherits."""
    import fcntl

    status = os.fstat(fd)
    return status.st_dev, status.st_ino, 0, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


@pytest.fixture
def files(tmp_path):
    """Open descriptors of distinct files, closed afterwards."""
    opened = []

    def open_files(count: int) -> list[int]:
        for number in range(count):
            fd = os.open(tmp_path / f"file{len(opened)}-{number}", os.O_RDWR | os.O_CREAT)
            opened.append(fd)
        return opened[-count:]

    yield open_files
    for fd in opened:
        os.close(fd)


def open_fds() -> set[int]:
    fds = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue
        fds.add(int(name))
    return fds


def await_threads(known: set[str]) -> None:
    """Until the threads that have ended are gone for the kernel too.

    Thread.join() returns a little earlier. Until then /proc lists the thread, and
    os.fork() warns of it.
    """
    deadline = time.monotonic() + 10
    while not set(os.listdir("/proc/self/task")) <= known:
        assert time.monotonic() < deadline, "a thread was left behind"
        os.sched_yield()


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """No child, no descriptor, no thread, no changed mask, after every test."""
    import signal

    if request.node.get_closest_marker("leaves_helpers"):
        yield
        return
    before = open_fds(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    threads = set(os.listdir("/proc/self/task"))
    yield
    gc.collect()
    await_threads(threads)
    after = open_fds(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert after == before
    with pytest.raises(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG | 0x40000000) is None  # __WALL
