"""What spawn() returns."""

import os
import signal

import pytest

import spawnhelper
from spawnhelper import Process, spawn

pytestmark = pytest.mark.core

FATAL = [
    number
    for number in signal.valid_signals()
    if number
    not in {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP,
            signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_core_files():
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize("mode", ["wait", "pid", "proc"])
def test_every_exit_code(mode):
    for code in range(256):
        command = ["/bin/sh", "-c", f"exit {code}"]
        if mode == "wait":
            assert spawn(command) == code
        elif mode == "pid":
            (pid,) = spawn(command, returnpid=True)
            assert os.waitpid(pid, 0) == (pid, code << 8)
        else:
            assert spawn(command, returnproc=True).wait() == code


@pytest.mark.parametrize("mode", ["wait", "pid", "proc"])
def test_every_fatal_signal(mode):
    for number in FATAL:
        # dash knows numbers of real-time signals, too
        command = ["/bin/sh", "-c", f"kill -{int(number)} $$"]
        if mode == "wait":
            assert spawn(command) == -number
        elif mode == "pid":
            (pid,) = spawn(command, returnpid=True)
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == number
        else:
            assert spawn(command, returnproc=True).wait() == -number


def test_return_types():
    assert type(spawn("true")) is int
    process = spawn("true", returnproc=True)
    assert type(process) is Process
    process.wait()


def test_returnpid_is_a_list_of_ints_that_the_caller_reaps():
    pids = spawn(["true"], returnpid=True)
    assert [type(pid) for pid in pids] == [int]
    assert os.waitpid(pids[0], 0) == (pids[0], 0)


def test_returnpid_and_returnproc_exclude_each_other():
    with pytest.raises(ValueError, match="exclude"):
        spawn("true", returnpid=True, returnproc=True)


def test_unknown_keyword():
    with pytest.raises(TypeError):
        spawn("true", nonsense=1)


def test_documented_signature():
    import inspect

    names = list(inspect.signature(spawnhelper.spawn).parameters)
    assert names == [
        "mycommand", "env", "opt_name", "fd_pipes", "returnpid", "uid", "gid", "groups", "umask",
        "cwd", "logfile", "path_lookup", "pre_exec", "close_fds", "unshare_net", "unshare_ipc",
        "unshare_mount", "unshare_pid", "cgroup", "returnproc", "namespaces", "isolation",
        "start_new_session", "unshare_user",
    ]  # fmt: skip
