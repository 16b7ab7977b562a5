"""Namespaces: a prepared set, its life, and who may use it."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import spawnhelper
from conftest import open_fds
from instruments.isolation import (
    KINDS,
    adopt_orphans,
    await_end,
    children_of,
    in_fork,
    members,
    namespace_of,
    needs_isolation,
    none_left,
    open_gate,
    reap_helpers,
    state_of,
)
from spawnhelper import Namespaces, SpawnError, Stage, spawn

each_kind = pytest.mark.parametrize("kind", KINDS)


# ---- arguments ----


@pytest.mark.core
def test_nothing_asked_for():
    with pytest.raises(ValueError, match="at least one"):
        Namespaces()
    with pytest.raises(ValueError, match="at least one"):
        Namespaces(net=False, ipc=0, mount=None, pid=[])


@pytest.mark.core
def test_policies_are_two_words():
    for policy in ("", "best_effort", "REQUIRED", None, 1):
        with pytest.raises((ValueError, TypeError), match="isolation"):
            Namespaces(net=True, isolation=policy)
        with pytest.raises((ValueError, TypeError), match="isolation"):
            spawn("true", isolation=policy)
    with pytest.raises(TypeError):
        Namespaces(True, False, False, False, "required")


@pytest.mark.core
def test_namespaces_must_be_a_set():
    for wrong in (True, "net", 5, ("net",), {"net": True}):
        with pytest.raises(TypeError, match="namespaces"):
            spawn("true", namespaces=wrong)


@needs_isolation
@each_kind
def test_excludes_the_keywords(kind):
    with Namespaces(ipc=True) as namespaces:
        with pytest.raises(ValueError, match="unshare_"):
            spawn("true", namespaces=namespaces, **{f"unshare_{kind}": True})
        assert spawn("true", namespaces=namespaces, **{f"unshare_{kind}": False}) == 0


# ---- life ----


@needs_isolation
@each_kind
def test_attributes(kind):
    fds = open_fds()
    namespaces = Namespaces(**{kind: True})
    try:
        assert isinstance(namespaces.pid, int) and namespaces.pid in children_of(os.getpid())
        assert stat.S_ISREG(os.fstat(namespaces.pidfd).st_mode) or namespaces.pidfd > 2
        assert not any(os.get_inheritable(fd) for fd in open_fds() - fds)
        assert not namespaces.closed
        assert namespaces.notes == ()
        assert kind in repr(namespaces) and str(namespaces.pid) in repr(namespaces)
        holder = namespaces.pid
    finally:
        namespaces.close()
    assert namespaces.closed
    assert (namespaces.pid, namespaces.pidfd) == (-1, -1)
    assert "closed" in repr(namespaces)
    assert state_of(holder) is None
    assert open_fds() == fds
    namespaces.close()  # again: nothing


@needs_isolation
def test_context_manager():
    with pytest.raises(ZeroDivisionError), Namespaces(pid=True) as namespaces:
        assert not namespaces.closed
        raise ZeroDivisionError
    assert namespaces.closed


@needs_isolation
@each_kind
def test_a_closed_set(kind):
    with Namespaces(**{kind: True}) as namespaces:
        pass
    for keywords in ({}, {"returnproc": True}, {"returnpid": True}, {"pre_exec": int}):
        with pytest.raises(ValueError, match="closed"):
            spawn("true", namespaces=namespaces, **keywords)
    with pytest.raises(ValueError, match="closed"), namespaces:
        spawn("true", namespaces=namespaces)


@needs_isolation
@each_kind
@pytest.mark.parametrize("keywords", [{}, {"pre_exec": int}], ids=["plain", "pre_exec"])
def test_a_set_whose_holder_died(kind, keywords):
    with Namespaces(**{kind: True}) as namespaces:
        os.kill(namespaces.pid, signal.SIGKILL)
        await_end(namespaces.pidfd)
        for _ in range(3):
            with pytest.raises(ProcessLookupError) as caught:
                spawn("true", namespaces=namespaces, **keywords)
            assert isinstance(caught.value, SpawnError)
            assert caught.value.stage is Stage.NAMESPACES
            assert "ended" in str(caught.value) or "holder" in str(caught.value)
        assert "dead" in repr(namespaces)


@needs_isolation
def test_a_holder_that_dies_under_its_commands():
    with Namespaces(pid=True) as namespaces:
        process = spawn(["sleep", "60"], namespaces=namespaces, returnproc=True)
        os.kill(namespaces.pid, signal.SIGKILL)
        assert process.wait() == -9


@needs_isolation
@each_kind
def test_a_holder_that_somebody_else_reaped(kind):
    with Namespaces(**{kind: True}) as namespaces:
        holder = namespaces.pid
        os.kill(holder, signal.SIGKILL)
        assert os.waitpid(holder, 0) == (holder, 9)
        with pytest.raises(ProcessLookupError):
            spawn("true", namespaces=namespaces)


@needs_isolation
def test_a_dropped_set_ends():
    namespaces = Namespaces(pid=True)
    inside = namespace_of(namespaces.pid)
    with pytest.warns(ResourceWarning):
        del namespaces
    reap_helpers()
    assert members(inside) == []


@needs_isolation
def test_each_call_enters_its_own(probe):
    """What a call makes of its options serves the next one; its set does not."""
    with Namespaces(ipc=True) as one, Namespaces(ipc=True) as other:
        host = os.stat("/proc/self/ns/ipc").st_ino
        seen = {None: host}
        for box in (one, None, other, one, other, None, one):
            report = probe.report(namespaces=box)["namespaces"]["ipc"]
            assert seen.setdefault(box, report) == report
        assert len(set(seen.values())) == 3


# ---- several commands ----


@needs_isolation
def test_commands_share_the_set():
    with Namespaces(pid=True, ipc=True) as namespaces, open_gate() as gate:
        first = spawn(
            ["bash", "-c", f"echo x >&{gate.ready}; read x <&{gate.hold}"],
            namespaces=namespaces,
            returnproc=True,
        )
        gate.await_ready()
        inside = namespace_of(first.pid)
        assert spawn(["test", "-d", "/proc/2"], namespaces=namespaces) == 0
        second = spawn(["sleep", "60"], namespaces=namespaces, returnproc=True)
        assert namespace_of(second.pid) == inside
        assert namespace_of(first.pid, "ipc") == namespace_of(second.pid, "ipc")
        second.kill()
        assert second.wait() == -9  # which ends neither the set nor the first
        gate.release()
        assert first.wait() == 1  # read: end of file
        assert spawn("true", namespaces=namespaces) == 0


@needs_isolation
def test_what_a_command_leaves_lives_until_close(public_dir):
    """Processes, mounts and shared memory; documented, and why a set is worth making."""
    place = public_dir / "left"
    place.mkdir()
    with Namespaces(pid=True) as namespaces:
        inside = namespace_of(namespaces.pid)
        script = f"mount -t tmpfs left {place} && touch {place}/file && (sleep 60 &) && echo"
        with open(os.devnull, "r+b") as null:
            fds = dict.fromkeys((0, 1, 2), null.fileno())
            assert spawn(["sh", "-c", script], namespaces=namespaces, fd_pipes=fds) == 0
        assert len(members(inside)) == 2
        assert spawn(["test", "-e", place / "file"], namespaces=namespaces) == 0
        assert not (place / "file").exists()
    assert members(inside) == []
    place.rmdir()


@needs_isolation
def test_close_kills_running_commands():
    """And does not wait for what the caller has still to reap."""
    namespaces = Namespaces(pid=True)
    inside = namespace_of(namespaces.pid)
    process = spawn(["sleep", "60"], namespaces=namespaces, returnproc=True)
    (pid,) = spawn(["sleep", "60"], namespaces=namespaces, returnpid=True)
    namespaces.close()
    assert process.wait() == -9
    assert os.waitpid(pid, 0) == (pid, 9)
    reap_helpers()
    assert members(inside) == []


@needs_isolation
@pytest.mark.parametrize("order", ["close first", "wait first"])
def test_close_and_wait_in_any_order(order):
    namespaces = Namespaces(pid=True, net=True)
    inside = namespace_of(namespaces.pid)
    process = spawn(["sleep", "60"], namespaces=namespaces, returnproc=True)
    process.kill()
    await_end(process.fileno())
    steps = [namespaces.close, process.wait]
    for step in steps if order == "close first" else reversed(steps):
        step()
    assert process.returncode == -9
    assert members(inside) == []
    assert children_of(os.getpid()) == []


# ---- forks ----


@needs_isolation
@each_kind
def test_only_the_owner_uses_it(kind):
    with Namespaces(**{kind: True}) as namespaces:

        def child():
            for keywords in ({}, {"returnproc": True}, {"pre_exec": int}):
                with pytest.raises(RuntimeError, match="fork"):
                    spawn("true", namespaces=namespaces, **keywords)
            repr(namespaces)
            namespaces.close()
            namespaces.__exit__(None, None, None)
            assert spawn("true", **{f"unshare_{kind}": True}) == 0  # its own sets work

        in_fork(child)
        assert not namespaces.closed
        assert spawn("true", namespaces=namespaces) == 0


@needs_isolation
def test_a_forked_child_that_drops_it_ends_nothing():
    namespaces = Namespaces(pid=True)
    kept = [namespaces]

    def child():
        import gc
        import warnings

        warnings.simplefilter("ignore")
        kept.clear()
        nonlocal namespaces
        del namespaces
        gc.collect()

    in_fork(child)
    assert spawn("true", namespaces=namespaces) == 0
    namespaces.close()


@needs_isolation
def test_ends_with_its_owner():
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")
from spawnhelper import Namespaces, spawn
namespaces = Namespaces(net=True, pid=True)
spawn(["sleep", "60"], namespaces=namespaces, returnproc=True, fd_pipes={}, close_fds=True)
print(os.readlink(f"/proc/{namespaces.pid}/ns/pid"), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
"""

    def run():
        adopt_orphans()
        for how in ("exit", "kill"):
            command = [sys.executable, "-c", program, how]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == (0 if how == "exit" else -9), done.stderr
            assert none_left(1) == []
            assert members(done.stdout.strip()) == []

    in_fork(run)


# ---- the holder program ----


@pytest.mark.core
def test_holder_program_is_shipped():
    program = Path(spawnhelper.__file__).parent / "_holder"
    assert program.stat().st_mode & 0o777 == 0o755
    assert program.read_bytes()[:4] == b"\x7fELF"
    listed = subprocess.run(["readelf", "-lW", program], capture_output=True, text=True, check=True)
    assert not re.search(r"INTERP|DYNAMIC", listed.stdout)


@needs_isolation
def test_the_holder_keeps_no_descriptor_of_ours(files):
    """A pipe of ours that it held would never see its end; nor our directory, our environment."""
    for fd in files(5):
        os.set_inheritable(fd, True)
    ours = {os.stat(f"/proc/self/fd/{fd}").st_ino for fd in files(0) or open_fds()}
    with Namespaces(pid=True) as namespaces:
        held = os.listdir(f"/proc/{namespaces.pid}/fd")
        assert len(held) <= 3
        regular = {
            os.stat(f"/proc/{namespaces.pid}/fd/{fd}").st_ino
            for fd in held
            if not os.readlink(f"/proc/{namespaces.pid}/fd/{fd}").startswith(("anon_", "pipe:"))
        }
        assert not regular & ours
        assert os.readlink(f"/proc/{namespaces.pid}/cwd") == "/"
        assert Path(f"/proc/{namespaces.pid}/environ").read_bytes() == b""


@needs_isolation
def test_signals_do_not_disturb_the_holder():
    with Namespaces(pid=True) as namespaces:
        for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP}:
            os.kill(namespaces.pid, number)
        assert spawn("true", namespaces=namespaces) == 0
        assert spawn(["sh", "-c", "kill -9 1; kill -15 1"], namespaces=namespaces) == 0
        assert spawn("true", namespaces=namespaces) == 0


@needs_isolation
def test_no_descriptor_is_free():
    """Every step that needs one fails cleanly: no holder, no descriptor stays."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def child():
        fds = open_fds()
        highest = max(fds) + 1
        failures = 0
        for spare in range(24):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, before[1]))
            # Where numbers below are free, they are taken.
            fill = []
            while len(fill) < highest - len(fds):
                fill.append(os.dup(0))
            try:
                with Namespaces(net=True, ipc=True, pid=True) as namespaces:
                    spawn("/bin/true", namespaces=namespaces)
            except OSError as error:
                assert error.errno in (errno.EMFILE, errno.EBADF), error
                failures += 1
            try:
                spawn("/bin/true", unshare_net=True, unshare_pid=True)
            except OSError as error:
                assert error.errno in (errno.EMFILE, errno.EBADF), error
                failures += 1
            for fd in fill:
                os.close(fd)
            # The look itself needs one.
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert children_of(os.getpid()) == []
        assert failures > 4
        assert open_fds() == fds

    in_fork(child)
