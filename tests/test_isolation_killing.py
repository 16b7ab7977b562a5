"""Whoever is killed, whenever: the rest of the set goes, all of it, at once.

SPAWNHELPER_CAMPAIGN=1 kills the owner at 200 moments instead of 20.
"""

import contextlib
import errno
import os
import random
import select
import signal
import subprocess
import threading
import time
import traceback
from pathlib import Path

import pytest

from conftest import HERE, compile_c
from instruments.isolation import (
    KINDS,
    PR_SET_NAME,
    WAYS,
    adopt_orphans,
    await_end,
    await_true,
    cgroup_members,
    children_of,
    holder_of,
    in_fork,
    libc,
    members,
    namespace_of,
    needs_isolation,
    new_cgroup,
    none_left,
    open_gate,
    reap_helpers,
    sandbox,
    size,
    state_of,
)
from spawnhelper import Namespaces, spawn

pytestmark = needs_isolation

every_way = pytest.mark.parametrize("way", WAYS)
UNRULY = ["daemon", "stopped", "blocked", "spinning", "vforked"]
UNRULY_PROCESSES = len(UNRULY) + 1  # the one that waits for vfork's end, too


@pytest.fixture(scope="module")
def unruly(public_dir):
    return str(compile_c(HERE / "instruments" / "unruly.c", public_dir / "unruly"))


def start_unruly(unruly, gate, behaviours, **keywords):
    """It is in place; the process and its pid namespace."""
    command = [unruly, str(gate.ready), str(gate.hold), *behaviours]
    process = spawn(command, returnproc=True, **keywords)
    gate.await_ready(len(behaviours))
    return process, namespace_of(process.pid)


def report_failure(function):
    try:
        function()
    except BaseException:
        traceback.print_exc()
        raise


# ---- the command ends ----


@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_everything_left_is_gone_when_wait_returns(unruly, end):
    with open_gate() as gate:
        process, inside = start_unruly(unruly, gate, UNRULY, unshare_pid=True)
        assert len(members(inside)) == UNRULY_PROCESSES + 2
        if end == "killed":
            process.kill()
        gate.release()
        assert process.wait() == (-9 if end == "killed" else 7)
        assert members(inside) == []
        assert children_of(os.getpid()) == []


def test_the_waiting_call_returns_when_everything_is_gone(unruly):
    """No handle here: the processes hold a pipe, whose end of file must be there at once."""
    start, end = os.pipe()
    os.set_inheritable(end, True)
    try:
        with open_gate() as gate:
            command = [unruly, str(gate.ready), str(gate.hold), *UNRULY]
            gate.release()
            assert spawn(command, unshare_pid=True) == 7
        os.close(end)
        end = -1
        assert select.select([start], [], [], 0)[0]
        assert os.read(start, 1) == b""
    finally:
        os.close(start)
        if end >= 0:
            os.close(end)


def test_in_a_reused_set_close_ends_it(unruly):
    with open_gate() as gate, Namespaces(pid=True) as namespaces:
        process, inside = start_unruly(unruly, gate, UNRULY, namespaces=namespaces)
        gate.release()
        assert process.wait() == 7
        # What is left lives on until close: documented.
        await_true(lambda: len(members(inside)) == UNRULY_PROCESSES + 1)
        namespaces.close()
        assert members(inside) == []


@pytest.mark.parametrize("mode", ["wait", "poll", "with", "waitpid", "somebody else"])
def test_every_way_to_wait(unruly, mode):
    with open_gate() as gate:
        command = [unruly, str(gate.ready), str(gate.hold), "daemon"]
        if mode == "waitpid":
            (pid,) = spawn(command, unshare_pid=True, returnpid=True)
            gate.await_ready()
            inside = namespace_of(pid)
            gate.release()
            assert os.waitpid(pid, 0) == (pid, 7 << 8)
            await_true(lambda: [p for p in members(inside) if state_of(p) != "Z"] == [])
            reap_helpers()
        else:
            process, inside = start_unruly(unruly, gate, ["daemon"], unshare_pid=True)
            if mode == "with":
                with process:
                    pass
            elif mode == "somebody else":
                gate.release()
                assert os.waitpid(process.pid, 0) == (process.pid, 7 << 8)
                with contextlib.suppress(ChildProcessError):  # before Linux 6.15
                    assert process.wait() == 7
            else:
                gate.release()
                await_end(process.fileno())
                if mode == "poll":  # which never blocks: the rest may need a moment
                    await_true(lambda: process.poll() is not None)
                assert process.wait() == 7
        assert members(inside) == []


def capped_cgroup(limit):
    """In whichever hierarchy has the pids controller; the limit is set."""

    @contextlib.contextmanager
    def open_it():
        with contextlib.ExitStack() as stack:
            for controller in (None, "pids"):
                try:
                    cgroup = stack.enter_context(new_cgroup(controller))
                    (cgroup / "pids.max").write_text(str(limit))
                except (pytest.skip.Exception, OSError):
                    continue
                yield cgroup
                return
            pytest.skip("no pids controller here")

    return open_it()


def test_a_fork_bomb(unruly):
    """Capped by pids.max; the rest of the machine only sees it end."""
    with capped_cgroup(48) as cgroup, open_gate() as gate:
        keywords = {"unshare_pid": True, "cgroup": cgroup}
        process, inside = start_unruly(unruly, gate, ["bomb"], **keywords)
        assert len(members(inside)) > 40
        gate.release()
        assert process.wait() == 7
        assert members(inside) == []
        assert cgroup_members(cgroup) == []


@pytest.mark.parametrize("kinds", [("pid",), KINDS], ids="+".join)
@every_way
def test_too_few_processes_allowed(way, kinds):
    """Whichever clone is refused, of three, nothing is left, and the way is free again."""
    results = {}

    def run():
        (cgroup / "cgroup.procs").write_text("0")
        for limit in range(1, 6):
            (cgroup / "pids.max").write_text(str(limit))
            for mode in ({}, {"returnproc": True}, {"pre_exec": int}):
                try:
                    with sandbox(way, kinds) as keywords:
                        started = spawn("/bin/true", **mode, **keywords)
                        assert (started if mode.keys() != {"returnproc"} else started.wait()) == 0
                except OSError as error:
                    assert error.errno == errno.EAGAIN, error
                    assert limit < 4 and "pids.max" in str(error), (limit, error)
                    results[limit] = True
                assert cgroup_members(cgroup) == [os.getpid()], (limit, mode)
                assert children_of(os.getpid()) == []
        assert results.keys() >= {1, 2}

    with capped_cgroup(48) as cgroup:
        in_fork(run)


# ---- orphans ----


@every_way
def test_the_holder_reaps_a_thousand_orphans(unruly, way):
    with open_gate() as gate, sandbox(way, ("pid",)) as keywords:
        command = [unruly, str(gate.ready), str(gate.hold), "orphans=1000"]
        process = spawn(command, returnproc=True, **keywords)
        gate.close_ready()
        gate.await_ready()
        inside = namespace_of(process.pid)
        assert len(members(inside)) == 2
        gate.release()
        assert process.wait() == 7


# ---- the holder is not left to us ----


def test_a_handle_takes_its_holder_along():
    for end in (lambda p: p.wait(), lambda p: p.__exit__(None, None, None)):
        process = spawn(["sleep", "60"], unshare_pid=True, returnproc=True)
        holder = holder_of(process.pid)
        assert holder in children_of(os.getpid())
        process.kill()
        end(process)
        assert state_of(holder) is None


def test_returnpid_leaves_its_holder_to_the_next_call():
    (pid,) = spawn(["sleep", "60"], unshare_pid=True, returnpid=True)
    holder = holder_of(pid)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0) == (pid, 9)
    await_true(lambda: state_of(holder) == "Z")
    assert spawn("/bin/true") == 0
    assert state_of(holder) is None


def test_a_dropped_handle():
    process = spawn(["sleep", "60"], unshare_pid=True, returnproc=True)
    pid, inside = process.pid, namespace_of(process.pid)
    with pytest.warns(ResourceWarning):
        del process
    assert len(members(inside)) == 2  # it runs on
    os.kill(pid, signal.SIGKILL)
    reap_helpers()
    assert members(inside) == []


def test_somebody_reaps_everything():
    """os.waitpid(-1) may take the holder; no call then hangs or fails."""
    for _ in range(20):
        process = spawn(["sleep", "60"], unshare_pid=True, returnproc=True)
        holder = holder_of(process.pid)
        os.kill(holder, signal.SIGKILL)
        command = process.pid
        reaped = {os.waitpid(-1, 0)[0]}
        reaped.add(os.waitpid(-1, 0)[0])
        assert reaped == {holder, command}
        with contextlib.suppress(ChildProcessError):  # before Linux 6.15
            assert process.wait(5) == -9
        del process
        assert spawn("true", unshare_pid=True) == 0


# ---- stopped ----


def check_timeout(process):
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert 0.1 <= time.monotonic() - start < 5


@every_way
@pytest.mark.parametrize("who", ["command", "holder", "both"])
def test_stopped(unruly, who, way):
    """wait(timeout) keeps its time, and killing works."""
    with open_gate() as gate, sandbox(way, ("pid",)) as keywords:
        process, inside = start_unruly(unruly, gate, ["daemon", "stopped"], **keywords)
        holder = holder_of(process.pid)
        stopped = {"command": [process.pid], "holder": [holder], "both": [process.pid, holder]}[who]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
            await_true(lambda pid=pid: state_of(pid) == "T")
        check_timeout(process)
        assert process.poll() is None
        process.kill()
        start = time.monotonic()
        assert process.wait(10) == -9
        assert time.monotonic() - start < 5
        if way == "one-shot":
            assert members(inside) == []
    assert members(inside) == []


@every_way
def test_the_command_ends_while_the_holder_is_stopped(unruly, way):
    with open_gate() as gate, sandbox(way, ("pid",)) as keywords:
        process, inside = start_unruly(unruly, gate, ["daemon"], **keywords)
        holder = holder_of(process.pid)
        os.kill(holder, signal.SIGSTOP)
        await_true(lambda: state_of(holder) == "T")
        gate.release()
        start = time.monotonic()
        assert process.wait() == 7
        assert time.monotonic() - start < 5
        if way == "one-shot":
            assert members(inside) == []
        else:  # a stopped holder serves on
            assert spawn("true", **keywords) == 0
    assert members(inside) == []


# ---- interrupted ----


@every_way
@pytest.mark.parametrize("mode", ["spawn", "logfile", "wait"])
def test_control_c(unruly, mode, way, tmp_path):
    """In a session of its own the terminal no longer reaches the set: the waiting call ends it."""
    with open_gate() as gate:

        def run():
            command = [unruly, str(gate.ready), str(gate.hold), "daemon", "blocked"]
            log = {"logfile": tmp_path / "log", "fd_pipes": {
                0: 0, 1: 1, 2: 2, gate.ready: gate.ready, gate.hold: gate.hold,
            }} if mode == "logfile" else {}  # fmt: skip
            with sandbox(way, ("pid",)) as keywords:
                try:
                    if mode == "wait":
                        with spawn(command, returnproc=True, **keywords) as process:
                            process.wait()
                    else:
                        spawn(command, **keywords, **log)
                except KeyboardInterrupt:
                    # Once more, for the pid namespace that outlives the call.
                    if way == "one-shot":
                        assert children_of(os.getpid()) == []
                else:
                    raise AssertionError("not interrupted")
            assert children_of(os.getpid()) == []

        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = 1
            try:
                report_failure(run)
                status = 0
            finally:
                os._exit(status)
        gate.await_ready(2)
        inside = {namespace_of(child) for child in children_of(pid)} - {namespace_of(pid)}
        (inside,) = inside - {None}
        os.kill(pid, signal.SIGINT)
        start = time.monotonic()
        assert os.waitpid(pid, 0) == (pid, 0)
        assert time.monotonic() - start < 5
        assert members(inside) == []


def test_an_interrupt_ends_commands_that_ignore_sigterm(tmp_path):
    """SIGTERM, one second, SIGKILL, as without isolation; then the set."""

    class Struck(BaseException):
        pass

    def strike(*_):
        raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    pid_file = tmp_path / "pid"
    script = (
        f"trap '' TERM; readlink /proc/self/ns/pid >{pid_file}; while :; do sleep 60 & wait; done"
    )
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Struck):
            spawn(["sh", "-c", script], unshare_pid=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert members(pid_file.read_text().strip()) == []


# ---- the owner is killed ----


def own(unruly, ready, siblings):
    """Starts sandboxes for ever, in all ways; every moment is that of some step of a start."""

    def fork_siblings():
        libc.prctl(PR_SET_NAME, b"sibling", 0, 0, 0)  # this thread's, and theirs from the first
        for _ in range(siblings):
            pid = os.fork()
            if pid == 0:  # holds every descriptor, and lives on
                while True:
                    signal.pause()
            time.sleep(0.002)  # not synchronisation: spreads them over the starts

    hold = os.pipe()
    for fd in hold:
        os.set_inheritable(fd, True)
    null = os.open(os.devnull, os.O_RDWR)
    command = [unruly, str(null), str(hold[0]), "daemon", "blocked"]
    # Both ends of the pipe, so that the command never ends by itself.
    pipes = {0: null, 1: null, 2: 2, null: null, hold[0]: hold[0], hold[1]: hold[1]}
    long = {"returnproc": True, "fd_pipes": pipes, "close_fds": True}
    threading.Thread(target=fork_siblings).start()
    with Namespaces(pid=True) as first, Namespaces(net=True):
        kept = [spawn(command, namespaces=first, **long), spawn(command, unshare_pid=True, **long)]
        os.write(ready, b"x")
        while True:
            assert spawn("/bin/true", unshare_pid=True) == 0
            kept.append(spawn(command, unshare_pid=True, unshare_ipc=True, **long))
            assert spawn("/bin/true", namespaces=first) == 0
            spawn("/bin/true", unshare_pid=True, pre_exec=int)
            with Namespaces(pid=True, ipc=True) as second:
                assert spawn("/bin/true", namespaces=second) == 0
                spawn(command, namespaces=second, **long).__exit__(None, None, None)
            kept.pop().__exit__(None, None, None)


@pytest.mark.parametrize("siblings", [0, 5])
def test_owner_killed_at_any_moment(unruly, siblings):
    """Also during the start, and with forks alive that hold every descriptor."""

    def run():
        adopt_orphans()
        for moment in range(size(20, 200)):
            start, end = os.pipe()
            owner = os.fork()
            if owner == 0:
                try:
                    report_failure(lambda end=end: own(unruly, end, siblings))
                finally:
                    os._exit(1)
            os.close(end)
            assert select.select([start], [], [], 20)[0], "it has not begun"
            assert os.read(start, 1) == b"x", "it failed: see the captured stderr"
            time.sleep(random.Random(moment).uniform(0, 0.03))  # the moment, not synchronisation
            os.kill(owner, signal.SIGKILL)
            assert os.waitpid(owner, 0) == (owner, 9)
            os.close(start)
            forks = [pid for pid in children_of(os.getpid()) if is_sibling(pid)]
            left = none_left(1, apart_from=tuple(forks))
            names = [describe(pid) for one in left for pid in [one, *members(namespace_of(one))]]
            for pid in forks:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            assert not names, "\n".join(map(repr, names))

    in_fork(run)


def is_sibling(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "sibling\n"
    return False


def describe(pid):
    """For the message: what a process is that should not be there."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        waits = Path(f"/proc/{pid}/wchan").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return pid, fields[0], *fields[2].split()[:4], waits, command
    return (pid,)
