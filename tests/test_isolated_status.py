"""Exit codes, fatal signals and core dumps: exact, with and without a pid namespace."""

import os
import resource
import signal

import pytest

from instruments.isolation import needs_isolation, reap_helpers, sandbox
from spawnhelper import spawn

HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
FATAL = [
    number
    for number in range(1, 65)  # valid_signals() leaves out libc's own two
    if number not in {getattr(signal, name) for name in HARMLESS}
]
DUMPING = {
    *(signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE),
    *(signal.SIGSEGV, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSYS),
}
CORE_FLAG = 0x80

places = pytest.mark.parametrize(
    "place",
    [
        "plain",
        pytest.param("one-shot", marks=needs_isolation),
        pytest.param("reused", marks=needs_isolation),
    ],
)
modes = pytest.mark.parametrize("mode", ["wait", "pid", "proc"])


@pytest.fixture
def core_limit():
    before = resource.getrlimit(resource.RLIMIT_CORE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_CORE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_CORE, before)


def run(mode, command, **keywords):
    """The returncode; with returnpid the whole wait status."""
    if mode == "wait":
        return spawn(command, **keywords)
    if mode == "proc":
        return spawn(command, returnproc=True, **keywords).wait()
    (pid,) = spawn(command, returnpid=True, **keywords)
    reaped, status = os.waitpid(pid, 0)
    assert reaped == pid
    return status


def run_all(mode, place, commands, **more):
    kinds = () if place == "plain" else ("pid",)
    with sandbox(place, kinds, **more) as keywords:
        results = [run(mode, command, **keywords) for command in commands]
    if mode == "pid":
        reap_helpers()
    return results


@pytest.mark.core
@places
@modes
def test_every_exit_code(ending, mode, place):
    results = run_all(mode, place, [[ending, f"e{code}"] for code in range(256)])
    shift = 8 if mode == "pid" else 0
    assert results == [code << shift for code in range(256)]


@pytest.mark.core
@places
@modes
def test_every_fatal_signal(ending, mode, place, core_limit):
    core_limit(0)
    results = run_all(mode, place, [[ending, f"s{number}"] for number in FATAL])
    sign = 1 if mode == "pid" else -1
    assert results == [sign * number for number in FATAL]


@places
@modes
def test_core_dumps(ending, mode, place, core_limit, tmp_path):
    """The flag is there with returnpid exactly where it is without this library."""
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if limit == 0:
        pytest.skip("core dumps are forbidden here (ulimit -H -c)")
    core_limit(limit)
    commands = [[ending, f"s{number}"] for number in sorted(DUMPING)]
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        expected = []
        for command in commands:
            pid = os.posix_spawn(ending, command, {}, setsigdef=[signal.SIGXFSZ])
            expected.append(os.waitpid(pid, 0)[1])
        if not any(status & CORE_FLAG for status in expected):
            pytest.skip("this kernel writes no core dumps (kernel.core_pattern)")
        assert {status & 0x7F for status in expected} == DUMPING
        results = run_all(mode, place, commands, cwd=tmp_path)
    finally:
        os.chdir(before)
    if mode == "pid":
        assert results == expected
    else:
        assert results == [-number for number in sorted(DUMPING)]


@needs_isolation
def test_a_signal_from_outside():
    """Pid 1's protection is the holder's, not the command's."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        process = spawn(["sleep", "60"], unshare_pid=True, returnproc=True)
        process.send_signal(number)
        assert process.wait() == -number


@needs_isolation
def test_usage_is_the_commands_own(ending):
    """Not the holder's, nor that of whoever made it."""
    script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    busy = spawn(["sh", "-c", script], unshare_pid=True, returnproc=True)
    assert busy.wait() == 0
    idle = spawn([ending, "e0"], unshare_pid=True, returnproc=True)
    assert idle.wait() == 0
    assert busy.rusage.ru_utime > 0.02
    assert idle.rusage.ru_utime + idle.rusage.ru_stime < 0.02
