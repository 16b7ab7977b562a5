"""Container profiles: clone3, close_range, pidfd_open and others denied, by ENOSYS or EPERM."""

import errno
import itertools
import subprocess
import sys

import pytest

CHECKS = """
import os, subprocess, sys, tempfile, time
from spawnhelper import SpawnError, Stage, spawn

mode = sys.argv[1]

def failure(*arguments, **keywords):
    try:
        spawn(*arguments, **keywords)
    except SpawnError as error:
        return error.stage, error.errno
    raise AssertionError("started")

for _ in range(3):
    assert spawn(["true"]) == 0
    assert spawn(["sh", "-c", "exit 7"]) == 7
    assert spawn(["sh", "-c", "kill -9 $$"]) == -9
    assert failure(["/nonexistent"]) == (Stage.EXEC, 2)
    assert failure(["true"], cwd="/nonexistent") == (Stage.CHDIR, 2)
    assert failure(["true"], fd_pipes={0: 999}) == (Stage.FDS, 9)
    assert spawn(["true"], pre_exec=int) == 0
    assert failure(["true"], pre_exec=lambda: 1 / 0)[0] is Stage.PRE_EXEC

fd = os.open("/dev/null", os.O_RDWR)
os.set_inheritable(fd, True)
inherited = f"test -e /proc/self/fd/{fd}"
assert spawn(["sh", "-c", inherited]) == 0
assert spawn(["sh", "-c", inherited], close_fds=True) == 1
assert spawn(["sh", "-c", "test -e /proc/self/fd/9"], fd_pipes={9: fd}, close_fds=True) == 0

with tempfile.TemporaryDirectory() as directory:
    log = os.path.join(directory, "log")
    assert spawn(["echo", "x"], logfile=log, fd_pipes={1: fd, 2: fd}) == 0
    assert spawn(["echo", "y"], logfile=log, fd_pipes={1: fd, 2: fd}, returnproc=True).wait() == 0
    assert open(log).read() == "x\\ny\\n"

process = spawn(["sleep", "60"], returnproc=True)
assert process.poll() is None
try:
    process.wait(0.05)
    raise AssertionError("no timeout")
except subprocess.TimeoutExpired:
    pass
process.terminate()
assert process.wait() == -15
process.kill()
many = [spawn(["sh", "-c", f"exit {n}"], returnproc=True) for n in range(20)]
assert [process.wait(60) for process in many] == list(range(20))
try:
    os.waitpid(-1, os.WNOHANG | 0x40000000)
    raise AssertionError("a child is left")
except ChildProcessError:
    pass
from spawnhelper import _core
assert _core.start_mode() == mode, _core.start_mode()
"""

NAMES = ("clone3", "close_range", "pidfd_open")
CASES = [
    (error, names)
    for error in ("ENOSYS", "EPERM")
    for size in range(len(NAMES) + 1)
    for names in itertools.combinations(NAMES, size)
]
CASES += [
    ("EPERM", ("clone3", "close_range", "unshare")),  # an old container's profile
    ("EPERM", ("close_range", "unshare")),
    ("ENOSYS", ("pidfd_open", "pidfd_send_signal")),
    ("EPERM", ("pidfd_open", "pidfd_send_signal")),
    ("EPERM", ("faccessat2", "openat2", "statx")),
]


@pytest.mark.parametrize(("error", "names"), CASES, ids=str)
def test_denied(deny, error, names):
    mode = "clone" if "clone3" in names else "clone3"
    command = [sys.executable, "-W", "error", "-c", CHECKS, mode]
    if names:
        command = [str(deny), str(getattr(errno, error)), ",".join(names), *command]
    subprocess.run(command, check=True, timeout=120)


def test_the_launcher_denies(deny):
    """The seeded case: an instrument that lets calls through would prove nothing."""
    command = [str(deny), "38", "getppid", sys.executable, "-c", "import os; print(os.getppid())"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "-38\n"
