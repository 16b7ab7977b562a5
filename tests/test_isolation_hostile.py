"""What a command, a chroot, a hook or a careless program could turn against its owner."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import spawnhelper
from conftest import HERE, compile_c, needs_root, open_fds
from instruments.isolation import children_of, in_fork, make_public, reap_helpers
from spawnhelper import Namespaces, SpawnError, Stage, _core, spawn

pytestmark = needs_root
KERNEL = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.parametrize("user", [False, True, "root"])
def test_pid_one_has_left_our_memory_before_the_command_runs(public_dir, user):
    program = compile_c(HERE / "instruments" / "burglar.c", public_dir / f"burglar-{user}")
    secret = ctypes.create_string_buffer(b"the secret of the parent")
    command = [str(program), hex(ctypes.addressof(secret))]
    for _ in range(300):
        assert spawn(command, unshare_pid=True, unshare_user=user) == 0


def test_a_set_that_was_never_made_kills_nobody():
    """An exception can strike before the set is prepared: its holder is then 0."""
    code = (
        "from spawnhelper._core import ffi, lib\n"
        "owned = ffi.gc(lib.sh_set_new(), lib.sh_set_discard)\n"
        "del owned\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, start_new_session=True, check=False).returncode == 0


def test_a_chroot_cannot_choose_our_holder(ending):
    """The path of the holder may lead to another file there, which would run with our rights."""
    stops_itself = ["/command", f"s{int(signal.SIGSTOP)}"]

    def run():
        root = make_public("hostile-root-")
        try:
            fake = Path(f"{root}{_core.HOLDER}")
            fake.parent.mkdir(parents=True)
            shutil.copy("/bin/true", fake)
            (root / "proc").mkdir()
            shutil.copy(ending, root / "command")
            outside = os.open("/", os.O_RDONLY)
            os.chroot(root)
            os.chdir("/")
            with spawn(stops_itself, unshare_pid=True, fd_pipes={}, returnproc=True) as process:
                os.fchdir(outside)
                os.chroot(".")
                executed = os.readlink(f"/proc/{process._handle.holder}/exe")
            assert executed.startswith("/memfd:spawnhelper-holder"), executed
            os.close(outside)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    in_fork(run)


@pytest.mark.skipif(KERNEL < (6, 9), reason="all pidfds look alike before Linux 6.9")
@pytest.mark.parametrize("how", ["wait", "reap", "signal", "drop", "as_completed", "asyncio"])
def test_a_stranger_on_our_number(how):
    """Another child's pidfd has got the number of ours: its status is not ours to take."""

    def run():
        command = ["sleep", "60"] if how in ("signal", "drop") else ["sh", "-c", "read x; exit 7"]
        start, go = os.pipe()
        process = spawn(command, returnproc=True, fd_pipes={0: start, 1: 1, 2: 2})
        number = process.fileno()
        os.close(number)
        other = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 9"], {})
        stranger = os.dup2(os.pidfd_open(other), number)
        os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
        if how == "reap":
            assert process.poll() is None
        elif how == "wait":
            assert process.pidfd == -1
            assert process.poll() is None
            os.write(go, b"\n")
            assert process.wait(20) == 7
        elif how == "signal":
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
        elif how == "drop":
            with pytest.warns(ResourceWarning):
                pid = process.pid
                del process
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            _core.sweep()
            assert not Path(f"/proc/{pid}").exists()
        elif how == "as_completed":
            os.write(go, b"\n")
            assert [done.wait() for done in spawnhelper.as_completed([process])] == [7]
        else:
            os.write(go, b"\n")
            assert asyncio.run(wait_for(process)) == 7
        assert os.fstat(stranger)
        assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 9
        if how == "reap":
            process.kill()
            process.wait()

    in_fork(run)


@pytest.mark.skipif(KERNEL < (6, 9), reason="all pidfds look alike before Linux 6.9")
def test_a_stranger_on_the_number_of_a_holder():
    """The holder of a command that was given away is looked for at every start."""

    def run():
        fds = open_fds()
        (pid,) = spawn(["sleep", "60"], unshare_pid=True, returnpid=True)
        (number,) = open_fds() - fds
        os.close(number)
        other = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 9"], {})
        os.dup2(os.pidfd_open(other), number)
        os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
        assert spawn("true") == 0
        assert os.fstat(number)
        assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 9
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        reap_helpers()
        assert children_of(os.getpid()) == []

    in_fork(run)


def await_text(path, text):
    limit = time.monotonic() + 20
    while not path.exists() or path.read_text() != text:
        assert time.monotonic() < limit
        os.sched_yield()


@pytest.mark.parametrize("stranger", [False, True])
def test_a_log_outlives_the_number(stranger, tmp_path):
    """What is not our pidfd any more says nothing about the command's end."""
    log = tmp_path / "log"
    script = "echo one; read x; echo two; read x; echo three; exit 3"

    def run():
        before = open_fds()
        start, go = os.pipe()
        results = []

        def wait():
            fds = {0: start, 1: 1, 2: 2}
            results.append(spawn(["sh", "-c", script], logfile=log, fd_pipes=fds))

        thread = threading.Thread(target=wait)
        thread.start()
        await_text(log, "one\n")
        names = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds() - before}
        (number,) = (fd for fd, name in names.items() if "pidfd" in name)
        os.close(number)
        if stranger:
            other = os.posix_spawn("/bin/true", ["true"], {})
            os.dup2(os.pidfd_open(other), number)
        for text in ("one\ntwo\n", "one\ntwo\nthree\n"):
            os.write(go, b"\n")
            await_text(log, text)
        thread.join()
        assert results == [3]

    in_fork(run)


async def wait_for(process):
    return await process


def test_descriptors_closed_behind_our_back():
    """Daemons close what they do not know; the numbers are then other files'."""

    def run():
        box = Namespaces(net=True)
        os.closerange(3, 64)
        strangers = [os.pidfd_open(os.getpid()) for _ in range(12)]
        with pytest.raises(SpawnError) as caught:
            spawn("true", namespaces=box)
        assert caught.value.stage is Stage.NAMESPACES
        box.close()
        for fd in strangers:
            os.close(fd)  # each is still open

    in_fork(run)


def test_a_reused_pidfd_number_is_not_killed():
    def run():
        process = spawn(["sleep", "60"], unshare_pid=True, returnproc=True)
        number = process._handle.holder_pidfd
        os.close(number)
        stranger = subprocess.Popen(["sleep", "60"])
        pidfd = os.pidfd_open(stranger.pid)
        os.dup2(pidfd, number)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        os.close(number)  # is still open
        os.close(pidfd)
        stranger.kill()
        stranger.wait()

    in_fork(run)


def test_hooks_of_fork_run_at_home():
    """What they start must not be born in the command's namespace."""

    def run():
        places = []

        def look():
            places.append(os.readlink("/proc/thread-self/ns/pid_for_children"))
            thread = threading.Thread(target=lambda: None)
            thread.start()  # refused to a thread that is not at home
            thread.join()

        os.register_at_fork(before=look, after_in_parent=look)
        home = os.readlink("/proc/self/ns/pid")
        assert spawn("true", unshare_pid=True, pre_exec=lambda: None) == 0
        with Namespaces(pid=True) as box:
            assert spawn("true", namespaces=box, pre_exec=lambda: None) == 0
        assert places == [home] * 4

    in_fork(run)


def test_a_set_does_not_lead_out_of_a_later_chroot(public_dir):
    def run():
        root = public_dir / "later-root"
        root.mkdir()
        with Namespaces(mount=True) as box:
            os.chroot(root)
            with pytest.raises(SpawnError, match="root directory") as caught:
                spawn("/bin/true", namespaces=box)
            assert caught.value.stage is Stage.NAMESPACES

    in_fork(run)


def test_close_waits_again_once_given_commands_are_reaped():
    with Namespaces(pid=True) as box:
        (pid,) = spawn("true", namespaces=box, returnpid=True)
        assert os.waitpid(pid, 0) == (pid, 0)
        holder = os.pidfd_open(box.pid)
        box.close()
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_PIDFD, holder, os.WEXITED | os.WNOHANG)
        os.close(holder)


def test_a_forked_child_keeps_no_namespace_alive():
    with Namespaces(net=True, mount=True, pid=True):

        def run():
            names = []
            for fd in range(1024):
                with contextlib.suppress(OSError):
                    names.append(os.readlink(f"/proc/self/fd/{fd}"))
            kinds = ("net:", "mnt:", "pid:", "ipc:", "uts:", "user:")
            assert [name for name in names if "pidfd" in name or name.startswith(kinds)] == []

        in_fork(run)


def test_a_closed_set_is_not_entered_again():
    box = Namespaces(ipc=True)
    box.close()
    with pytest.raises(ValueError, match="closed"):
        box.__enter__()


def test_a_command_in_a_degraded_set_has_its_notes(recwarn):
    def run():
        os.setresuid(65534, 65534, 65534)
        with pytest.warns(spawnhelper.IsolationWarning):
            box = Namespaces(net=True, isolation="best-effort")
        assert "net" not in repr(box)
        with spawn("true", namespaces=box, returnproc=True) as process:
            assert process.notes == box.notes != ()
        box.close()

    in_fork(run)
