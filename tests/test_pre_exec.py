"""pre_exec: the one slow path."""

import os
import threading

import pytest

from conftest import NOBODY, needs_root
from spawnhelper import SpawnError, Stage, spawn

pytestmark = pytest.mark.core


def test_is_the_last_step(tmp_path, probe):
    seen = tmp_path / "seen"

    def look():
        with open(seen, "w") as file:
            print(os.getpid(), os.getcwd(), os.umask(0), file=file)
        os.environ["LATE"] = "1"  # the environment is already packed

    process = spawn(
        [probe.program, path := probe.report_path()],
        pre_exec=look,
        cwd=tmp_path,
        umask=0o77,
        returnproc=True,
    )
    assert process.wait() == 0
    report = probe.read(path)
    pid, cwd, umask = seen.read_text().split()
    assert (int(pid), cwd, umask) == (process.pid, str(tmp_path), "63")
    assert not any(entry.startswith("LATE") for entry in report["env"])
    assert report["pid"] == process.pid


def test_changes_the_command(probe):
    changes = probe.changes(pre_exec=lambda: os.nice(3))
    assert changes == {"nice": os.nice(0) + 3}
    assert probe.changes(pre_exec=os.setsid).keys() == {"pgid", "sid"}


def test_everything_else_as_without(probe, files):
    a, b = files(2)
    keywords = {
        "fd_pipes": {0: a, a: b, b: a, 9: a}, "cwd": "/", "umask": 0, "env": {"A": "1"},
        "opt_name": "zero",
    }  # fmt: skip
    for close_fds in (False, True):
        without = probe.changes(close_fds=close_fds, **keywords)
        assert probe.changes(close_fds=close_fds, pre_exec=int, **keywords) == without


@needs_root
def test_runs_as_the_new_user(tmp_path):
    with pytest.raises(SpawnError) as caught:
        spawn("true", uid=NOBODY, gid=NOBODY, groups=[], pre_exec=lambda: os.setuid(0))
    assert caught.value.stage is Stage.PRE_EXEC
    assert isinstance(caught.value, PermissionError)


@pytest.mark.parametrize(
    ("raised", "error", "text"),
    [
        (ZeroDivisionError("by zero"), 0, "ZeroDivisionError: by zero"),
        (FileNotFoundError(2, "gone"), 2, "FileNotFoundError: .*gone"),
        (SystemExit(3), 0, "SystemExit: 3"),
        (KeyboardInterrupt(), 0, "KeyboardInterrupt"),
        (ValueError("\udcff" + "x" * 10000), 0, "ValueError"),
    ],
)
def test_what_it_raises_comes_back(raised, error, text):
    def fail():
        raise raised

    with pytest.raises(SpawnError, match=text) as caught:
        spawn("true", pre_exec=fail)
    assert (caught.value.stage, caught.value.errno) == (Stage.PRE_EXEC, error)


def test_exit_hooks_and_finally_blocks_stay_in_the_parent(tmp_path):
    ran = tmp_path / "ran"
    try:
        with pytest.raises(SpawnError):
            spawn("/nonexistent", pre_exec=int)
    finally:
        with open(ran, "a") as file:
            print(os.getpid(), file=file)
    assert ran.read_text().split() == [str(os.getpid())]


def test_stages_before_and_after_are_named():
    for keywords, stage in [
        ({"cwd": "/nonexistent"}, Stage.CHDIR),
        ({"fd_pipes": {0: 999}}, Stage.FDS),
    ]:
        with pytest.raises(SpawnError) as caught:
            spawn("true", pre_exec=int, **keywords)
        assert caught.value.stage is stage
    with pytest.raises(FileNotFoundError) as caught:
        spawn("/nonexistent", pre_exec=int)
    assert caught.value.stage is Stage.EXEC


def test_killed_before_exec():
    with pytest.raises(SpawnError) as caught:
        spawn("true", pre_exec=lambda: os.kill(os.getpid(), 9))
    assert isinstance(caught.value, ChildProcessError)
    assert "signal 9" in str(caught.value)


def test_exiting_before_exec():
    with pytest.raises(SpawnError) as caught:
        spawn("true", pre_exec=lambda: os._exit(0))
    assert isinstance(caught.value, ChildProcessError)


def test_no_warning_and_no_loss_in_a_threaded_program():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        for _ in range(20):
            assert spawn("true", pre_exec=int) == 0
    finally:
        stop.set()
        thread.join()


def test_must_be_callable():
    with pytest.raises(TypeError, match="callable"):
        spawn("true", pre_exec=5)
