"""What failures look like, and that bad input starts nothing."""

import copy
import errno
import os
import pickle
import subprocess
import sys

import pytest

import spawnhelper
from spawnhelper import CommandNotFound, SpawnError, Stage, spawn

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def plain_path(monkeypatch):
    """An entry that may not be searched would make "not found" a "permission denied"."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")


def failure(*arguments, **keywords) -> SpawnError:
    with pytest.raises(SpawnError) as caught:
        spawn(*arguments, **keywords)
    return caught.value


@pytest.mark.parametrize(
    ("call", "stage", "builtin", "error", "text", "filename"),
    [
        ((["no-such-program"], {}), "EXEC", FileNotFoundError, errno.ENOENT,
         "EXEC: not found in PATH", "no-such-program"),
        ((["/no/such"], {}), "EXEC", FileNotFoundError, errno.ENOENT,
         "EXEC: No such file or directory", "/no/such"),
        ((["/etc"], {}), "EXEC", PermissionError, errno.EACCES,
         "EXEC: Permission denied (not executable, or a directory on the way cannot be searched)",
         "/etc"),
        ((["/etc/passwd/x"], {}), "EXEC", NotADirectoryError, errno.ENOTDIR,
         "EXEC: Not a directory", "/etc/passwd/x"),
        ((["true"], {"cwd": "/no/such"}), "CHDIR", FileNotFoundError, errno.ENOENT,
         "CHDIR: No such file or directory", "/no/such"),
        ((["true"], {"cwd": ""}), "CHDIR", FileNotFoundError, errno.ENOENT,
         "CHDIR: No such file or directory", ""),
        ((["true"], {"cwd": "/etc/passwd"}), "CHDIR", NotADirectoryError, errno.ENOTDIR,
         "CHDIR: Not a directory", "/etc/passwd"),
        ((["true"], {"fd_pipes": {0: 987}}), "FDS", OSError, errno.EBADF,
         "FDS: fd 987: Bad file descriptor (not open, or above RLIMIT_NOFILE)", None),
    ],
)  # fmt: skip
def test_stage_errno_class_and_message(call, stage, builtin, error, text, filename):
    arguments, keywords = call
    raised = failure(arguments, **keywords)
    assert raised.stage is Stage[stage]
    assert isinstance(raised, builtin)
    assert (raised.errno, raised.strerror, raised.filename) == (error, text, filename)
    expected = f"[Errno {error}] {text}" + ("" if filename is None else f": {filename!r}")
    assert str(raised) == expected
    assert type(raised).__name__ in ("SpawnError", "CommandNotFound")
    assert type(raised).__module__.startswith("spawnhelper")


def test_the_found_path_is_named(tmp_path):
    (tmp_path / "tool").write_text("garbage")
    (tmp_path / "tool").chmod(0o755)
    assert failure(["tool"], env={"PATH": str(tmp_path)}).filename == str(tmp_path / "tool")


def test_command_not_found_keeps_the_value():
    for value in ("no-such-program", b"no-such-program"):
        raised = failure([value])
        assert isinstance(raised, CommandNotFound)
        assert raised.value == value
    assert isinstance(failure("no-such-program x"), FileNotFoundError)


@pytest.mark.parametrize("call", [(["nope"], {}), (["/etc"], {}), (["true"], {"cwd": "/no"})])
def test_exceptions_travel(call):
    raised = failure(call[0], **call[1])
    for again in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):
        assert type(again) is type(raised)
        assert str(again) == str(raised)
        assert (again.stage, again.errno, again.filename) == (
            raised.stage, raised.errno, raised.filename,
        )  # fmt: skip


def test_can_be_made_by_hand():
    assert SpawnError(Stage.UID, 1, "text").stage is Stage.UID
    assert CommandNotFound("x").value == "x"


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        ("", {}, ValueError),
        ("  \t", {}, ValueError),
        ([], {}, ValueError),
        ((), {}, ValueError),
        ([""], {}, ValueError),
        ([b""], {}, ValueError),
        (b"true", {}, TypeError),
        (os, {}, TypeError),
        (5, {}, TypeError),
        (None, {}, TypeError),
        ([5], {}, TypeError),
        (["true", 5], {}, TypeError),
        (["true", None], {}, TypeError),
        (["tr\0ue"], {}, ValueError),
        (["true", "\0"], {}, ValueError),
        (["true", b"\0"], {}, ValueError),
        (["true", "a\0b", "c"], {}, ValueError),
        (["\ud800"], {}, ValueError),
        (["true"], {"opt_name": "a\0b"}, ValueError),
        (["true"], {"opt_name": 5}, TypeError),
        (["true"], {"cwd": "a\0b"}, ValueError),
        (["true"], {"cwd": 5}, TypeError),
        (["true"], {"logfile": "a\0b"}, ValueError),
        (["true"], {"logfile": 5.0}, TypeError),
    ],
)
@pytest.mark.parametrize("mode", [{}, {"returnpid": True}, {"returnproc": True}])
def test_bad_arguments_are_refused(arguments, keywords, error, mode, monkeypatch):
    from spawnhelper import _core

    def never(*_):
        raise AssertionError("something was started")

    monkeypatch.setattr(_core, "start", never)
    monkeypatch.setattr(_core, "run", never)
    with pytest.raises(error):
        spawn(arguments, **keywords, **mode)


def test_process_limit(tmp_path):
    """clone itself refused: an ordinary user with RLIMIT_NPROC 0."""
    program = """
import os, resource, sys, spawnhelper
from spawnhelper import Stage
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
for keywords in ({}, {"pre_exec": int}):
    try:
        spawnhelper.spawn("/bin/true", **keywords)
    except BlockingIOError as error:
        if error.stage is not Stage.CLONE or "limit" not in str(error): sys.exit(1)
    else:
        sys.exit(2)
"""
    here = os.path.dirname(spawnhelper.__file__)
    if os.geteuid() == 0 and not os.stat(here).st_mode & 5:
        pytest.skip("the installation cannot be read by other users")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_not_linux(monkeypatch):
    program = """
import sys
sys.platform = "darwin"
try:
    import spawnhelper
except ImportError as error:
    sys.exit("needs Linux" not in str(error))
sys.exit(2)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
