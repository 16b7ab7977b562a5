"""What the kernel sees of a plain start."""

import re
import shutil
import subprocess
import sys

import pytest

from conftest import NOBODY, needs_root

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")

PROGRAM = """
import os, sys, threading, spawnhelper
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()  # libc's set*id would signal it
{setup}
os.write(2, b"")  # marks the beginning in the trace
{call}
os.write(2, b"")
stop.set()
"""


def trace(tmp_path, call, setup=""):
    """The system calls of the calling thread and of its child, between the marks."""
    output = tmp_path / "trace"
    program = PROGRAM.format(setup=setup, call=call)
    command = ["strace", "-f", "-qq", "-o", output, sys.executable, "-c", program]
    subprocess.run(command, check=True)
    lines = output.read_text().splitlines()
    marks = [n for n, line in enumerate(lines) if 'write(2, "", 0' in line]
    assert len(marks) == 2
    return lines[marks[0] + 1 : marks[1]]


def names(lines):
    return [match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line))]


def test_plain_path(tmp_path):
    lines = trace(tmp_path, 'spawnhelper.spawn(["/bin/true"])')
    called = names(lines)
    assert called.count("clone3") == 1
    (clone,) = [line for line in lines if "clone3(" in line]
    for flag in ("CLONE_VM", "CLONE_VFORK", "CLONE_PIDFD", "CLONE_CLEAR_SIGHAND"):
        assert flag in clone
    for never in ("pipe", "pipe2", "clone", "vfork", "fork", "tgkill", "wait4", "kill"):
        assert never not in called
    child = re.search(r"= (\d+)", next(line for line in lines if "clone3" in line and "= " in line))
    pid = int(child[1])
    before_exec = []
    for line in lines:
        if line.startswith(f"{pid} "):
            before_exec.append(line)
            if "execve(" in line:
                break
    assert [name for name in names(before_exec) if name != "rt_sigaction"] == [
        "rt_sigprocmask", "execve",
    ]  # fmt: skip


def test_all_64_signals_are_masked(tmp_path):
    lines = trace(tmp_path, 'spawnhelper.spawn(["/bin/true"])')
    masks = [line for line in lines if "rt_sigprocmask(SIG_SETMASK" in line]
    assert "~[], [], 8" in masks[0] or "~[]," in masks[0]


def test_cached_program_opens_nothing(tmp_path):
    """A path needs no lookup, a name one stat an entry, and no file is opened by the parent."""
    lines = trace(tmp_path, 'spawnhelper.spawn(["/bin/true"])', 'spawnhelper.spawn(["/bin/true"])')
    parent = lines[0].split()[0]
    ours = [line for line in lines if line.split()[0] == parent]
    assert not {"openat", "open", "mmap", "brk"} & set(names(ours))


@pytest.mark.parametrize(("avoid", "most"), [("close_range", 40), ("close_range,shared_files", 40)])
def test_closing_costs_what_is_open(tmp_path, avoid, most):
    """Without close_range: the entries of /proc/self/fd, not every number below the limit."""
    setup = f'from spawnhelper import _core; _core.avoid("{avoid}")'
    lines = trace(tmp_path, 'spawnhelper.spawn(["/bin/true"], close_fds=True)', setup)
    assert names(lines).count("close") < most
    assert names(lines).count("getdents64") >= 2


@needs_root
def test_id_changes_are_raw(tmp_path):
    call = f'spawnhelper.spawn(["/bin/true"], uid={NOBODY}, gid={NOBODY}, groups=[])'
    lines = trace(tmp_path, call)
    called = names(lines)
    order = [name for name in called if name.startswith("setres") or name == "setgroups"]
    assert order == ["setgroups", "setresgid", "setresuid"]
    assert "tgkill" not in called
    assert called.count("clone3") == 1
