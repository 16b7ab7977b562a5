"""spawnhelper.process.spawn(): results, failures before exec, and the documented tolerance."""

import asyncio
import os
import pickle
import signal
import sys
import types

import pytest

import spawnhelper
from conftest import NOBODY, needs_root
from spawnhelper import _state, process
from spawnhelper.process import spawn

pytestmark = pytest.mark.core

FORMS = ["wait", "proc", "pid"]


def finish(form, command, **keywords):
    """Run to the end in this form: the status."""
    if form == "wait":
        return spawn(command, **keywords)
    if form == "proc":
        return asyncio.run(spawn(command, returnproc=True, **keywords).wait())
    pids = spawn(command, returnpid=True, **keywords)
    assert all(type(pid) is int for pid in pids)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert len(pids) == (2 if keywords.get("logfile") else 1)
    return statuses[-1]


@pytest.fixture
def stderr(tmp_path):
    """A descriptor for the command's stderr, and what was written to it."""
    fd = os.open(tmp_path / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd, (tmp_path / "stderr").read_text
    os.close(fd)


def make_program(directory, text):
    """An executable file with this content."""
    program = directory / "program"
    program.write_text(text + "\n")
    program.chmod(0o755)
    return str(program)


# ---- results ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -TERM $$", -15)],
)
def test_status(form, script, status):
    assert finish(form, ["/bin/sh", "-c", script]) == status


def test_str_is_split_without_quoting(probe):
    path = probe.report_path()
    assert spawn(f"{probe.program}   {path} 'a b'") == 0
    assert probe.read(path)["argv"] == ["probe", "'a", "b'"]


def test_returnpid_does_not_warn():
    (pid,) = spawn(["/bin/true"], returnpid=True)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_returnproc_wins_over_returnpid():
    found = spawn(["/bin/true"], returnpid=True, returnproc=True)
    assert asyncio.run(found.wait()) == 0


def test_waiting_inside_a_running_loop():
    async def main():
        return spawn(["/bin/sh", "-c", "exit 4"])

    assert asyncio.run(main()) == 4


def test_unknown_keyword():
    with pytest.raises(TypeError):
        spawn(["/bin/true"], nonsense=1)
    with pytest.raises(TypeError):
        process.spawn_bash("true", nonsense=1)


# ---- failures before exec ----

FAILURES = {
    "no program format": (["TEXT"], {}, "Exec format error"),
    "missing interpreter": (["#!/nonexistent/interpreter"], {}, "No such file"),
    "cwd": (["/bin/true"], {"cwd": "/nonexistent"}, "CHDIR"),
    "empty cwd": (["/bin/true"], {"cwd": ""}, "CHDIR"),
    "closed fd": (["/bin/true"], {"fd_pipes": {0: 987, 1: 1}}, "fd 987"),
    "env with =": (["/bin/true"], {"env": {"A=B": "x"}}, "env"),
    "env with NUL": (["/bin/true"], {"env": {"A": "\0"}}, "env"),
    "env of ints": (["/bin/true"], {"env": {1: 2}}, "env"),
    "int argument": (["/bin/true", 5], {}, "int"),
    "text as group": (["/bin/true"], {"groups": ("x",)}, "integer"),
    "text as uid": (["/bin/true"], {"uid": "x"}, "int"),
    "too large": (["/bin/true"], {"env": {"LARGE": "x" * 140000}}, "Largest environment variable"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_status_1_and_text_on_the_commands_stderr(form, case, stderr, tmp_path, capfd):
    command, keywords, expected = FAILURES[case]
    if not command[0].startswith("/"):
        command = [make_program(tmp_path, command[0])]
    fd, written = stderr
    fd_pipes = {**keywords.get("fd_pipes", {0: 0, 1: 1}), 2: fd}
    assert finish(form, command, **{**keywords, "fd_pipes": fd_pipes}) == 1
    assert expected in written()
    assert os.path.basename(command[0]) in written()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", FORMS)
def test_failure_goes_to_the_log_as_well(form, tmp_path, stderr):
    log = tmp_path / "log"
    fd, written = stderr
    env = {"LARGE": "x" * 140000, "SMALL": "y"}
    fd_pipes = {1: fd, 2: fd}
    assert finish(form, ["/bin/true"], env=env, fd_pipes=fd_pipes, logfile=log) == 1
    assert "Largest environment variable: LARGE (140007 bytes)" in log.read_text()
    assert written() == log.read_text()


@pytest.mark.parametrize("form", FORMS)
def test_pre_exec_that_raises(form, stderr):
    def fail():
        raise ZeroDivisionError("told you")

    fd, written = stderr
    assert finish(form, ["/bin/true"], pre_exec=fail, fd_pipes={2: fd}) == 1
    assert "ZeroDivisionError: told you" in written()
    assert "in fail" in written()  # the traceback


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("code", "status"), [(7, 7), (None, 0), (300, 44), ("text", 1)])
def test_pre_exec_that_leaves(form, code, status, stderr):
    def leave():
        raise SystemExit(code)

    fd, written = stderr
    assert finish(form, ["/bin/true"], pre_exec=leave, fd_pipes={2: fd}) == status
    assert written() == ""


@pytest.mark.parametrize("form", FORMS)
def test_pre_exec_that_ends_the_process(form, stderr):
    fd, written = stderr
    assert finish(form, ["/bin/true"], pre_exec=lambda: os._exit(5), fd_pipes={2: fd}) == 1
    assert "PRE_EXEC" in written()


def test_errors_of_the_caller():
    for empty in ([], (), ""):
        with pytest.raises(IndexError):
            spawn(empty)
    with pytest.raises(TypeError):
        spawn(b"/bin/true")
    with pytest.raises(ValueError, match="1"):
        spawn(["/bin/true"], logfile="/dev/null", fd_pipes={1: 1})


def test_no_process_to_be_had_is_an_error_of_the_caller(monkeypatch):
    """As a fork that fails: there is no child that could report anything."""

    def refuse(*arguments, **keywords):
        raise spawnhelper._errors.spawn_error(spawnhelper.Stage.CLONE, 11, "CLONE: no")

    monkeypatch.setattr(process, "_launch", refuse)
    with pytest.raises(BlockingIOError):
        spawn(["/bin/true"])


# ---- the program ----


def test_program_not_found():
    with pytest.raises(process.CommandNotFound) as caught:
        spawn(["no-such-program", "x"])
    error = caught.value
    assert isinstance(error, spawnhelper.CommandNotFound)
    assert isinstance(error, FileNotFoundError)
    assert (error.value, str(error)) == ("no-such-program", "no-such-program")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.value, str(copy)) == (type(error), error.value, str(error))
    with pytest.raises(process.CommandNotFound) as caught:
        spawn([b"no-such-program"])
    assert str(caught.value) == "b'no-such-program'"
    for name in ("/bin", "/etc/passwd", "/bin/x", "./no-such"):
        with pytest.raises(process.CommandNotFound):
            spawn([name])
    with pytest.raises(process.CommandNotFound):
        spawn(["true"], path_lookup=False)


def test_portages_class_is_caught_at_raise_time(monkeypatch):
    """Looked up each time: portage may be imported after us, and is never imported by us."""

    class PortageException(Exception):
        def __init__(self, value):
            self.value = value[:]

    class CommandNotFound(PortageException):
        pass

    with pytest.raises(process.CommandNotFound) as caught:
        spawn(["no-such-program"])
    assert not isinstance(caught.value, PortageException)
    module = types.ModuleType("portage.exception")
    module.CommandNotFound = CommandNotFound
    monkeypatch.setitem(sys.modules, "portage.exception", module)
    with pytest.raises(CommandNotFound) as caught:
        spawn(["no-such-program"])
    assert isinstance(caught.value, spawnhelper.CommandNotFound)
    assert isinstance(caught.value, FileNotFoundError)
    assert (caught.value.value, str(caught.value)) == ("no-such-program", "no-such-program")


def test_path_of_the_process_not_of_env(tmp_path, monkeypatch, probe):
    (tmp_path / "tool").symlink_to(probe.program)
    path = probe.report_path()
    with pytest.raises(process.CommandNotFound):
        spawn(["tool", path], env={"PATH": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert spawn(["tool", path], env={}) == 0
    assert probe.read(path)["argv"] == ["tool"]


def test_current_directory_in_path(tmp_path, monkeypatch, probe):
    (tmp_path / "tool").symlink_to(probe.program)
    monkeypatch.chdir(tmp_path)
    path = probe.report_path()
    monkeypatch.setenv("PATH", "/nonexistent:")
    assert spawn(["tool", path]) == 0
    probe.read(path)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    with pytest.raises(process.CommandNotFound):
        spawn(["tool", path])


def test_relative_hit_with_cwd(tmp_path, monkeypatch, probe):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").symlink_to(probe.program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    path = probe.report_path()
    assert spawn(["tool", path], cwd="/") == 0
    assert probe.read(path)["cwd"] == "/"


def test_argv0(probe):
    path = probe.report_path()
    for keywords, expected in (
        ({}, "probe"),
        ({"opt_name": ""}, "probe"),
        ({"opt_name": "[x] y"}, "[x] y"),
    ):
        assert spawn([str(probe.program), path], **keywords) == 0
        assert probe.read(path)["argv"] == [expected]


def test_own_interpreter_finds_its_environment():
    """A virtual environment's python finds itself by argv[0]."""
    code = f"import sys; sys.exit(sys.prefix != {sys.prefix!r})"
    assert spawn([sys.executable, "-c", code]) == 0


def test_bytes_and_paths(probe):
    path = probe.report_path()
    assert spawn((os.fsencode(probe.program), os.fsencode(path), b"\xff")) == 0
    assert probe.read(path)["argv"] == ["probe", "\xff"]
    assert spawn([probe.program, path]) == 0
    probe.read(path)


# ---- environment ----


def test_env(probe):
    path = probe.report_path()
    command = [str(probe.program), str(path)]
    assert spawn(command) == 0
    inherited = probe.read(path)["env"]
    assert {os.fsdecode(entry.encode("latin-1")) for entry in inherited} == {
        f"{name}={value}" for name, value in os.environ.items()
    }
    for env in ({"A": "1", b"B": b"2"}, [("A", "1"), (b"B", b"2")], types.MappingProxyType({})):
        assert spawn(command, env=env) == 0
        assert probe.read(path)["env"] == ([] if not env else ["A=1", "B=2"])


def test_large_env_is_warned_of_three_times(monkeypatch, capfd):
    monkeypatch.setattr(process, "env_too_large_warnings", 0)
    limit = {"A": "x" * (98304 - 3)}
    for _ in range(2):
        assert spawn(["/bin/true"], env=limit, warn_on_large_env=True) == 0
    assert (process.env_too_large_warnings, capfd.readouterr().err) == (0, "")
    larger = {"A": "x" * 98302}
    assert spawn(["/bin/true"], env=larger) == 0
    assert capfd.readouterr().err == ""
    for _ in range(5):
        assert spawn(["/bin/true"], env=larger, warn_on_large_env=True) == 0
    assert process.env_too_large_warnings == 3
    text = capfd.readouterr().err
    assert text.count("Largest environment variable: A (98305 bytes)\n") == 3


def test_env_stats():
    assert process.calc_env_stats({}) == process.EnvStats(0, None, 0)
    stats = process.calc_env_stats({"A": "1", "LONGER": "é" * 10, b"C": b""})
    assert stats == process.EnvStats(4 + 28 + 3, "LONGER", 28)
    with pytest.raises(AttributeError):
        stats.env_size = 1


# ---- identity ----


class Lazy:
    """What portage passes: known when it is asked for."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return int(self.value)

    def __bool__(self):
        return bool(self.value)

    def __iter__(self):
        return iter(self.value)


@needs_root
def test_ids(probe):
    path = probe.report_path()
    command = [str(probe.program), str(path)]
    for uid, gid, groups in ((12, 34, (56, 78)), (Lazy(12), Lazy("34"), Lazy([56, 78]))):
        assert spawn(command, uid=uid, gid=gid, groups=groups) == 0
        report = probe.read(path)
        assert report["uids"] == [12] * 3
        assert report["gids"] == [34] * 3
        assert report["groups"] == [56, 78]
    assert spawn(command, uid="12") == 0
    assert probe.read(path)["uids"] == [12] * 3


@needs_root
@pytest.mark.parametrize("unset", [0, None, "", Lazy(0)])
def test_falsy_ids_are_unset(unset, probe):
    path = probe.report_path()
    assert spawn([str(probe.program), path], uid=unset, gid=unset, groups=[]) == 0
    ours = probe.read(path)
    plain = probe.report()
    assert [ours[key] for key in ("uids", "gids", "groups")] == [
        plain[key] for key in ("uids", "gids", "groups")
    ]


@needs_root
def test_uid_alone_keeps_the_groups(probe):
    path = probe.report_path()
    assert spawn([str(probe.program), path], uid=NOBODY) == 0
    report = probe.read(path)
    assert (report["uids"], report["gids"]) == ([NOBODY] * 3, [0] * 3)
    assert report["groups"] == probe.report()["groups"]


def test_umask_zero_is_honoured(probe):
    path = probe.report_path()
    previous = os.umask(0o27)
    try:
        for umask, expected in ((None, 0o27), (0, 0), (0o77, 0o77), (0o1077, 0o77)):
            assert spawn([str(probe.program), path], umask=umask) == 0
            assert probe.read(path)["umask"] == expected
    finally:
        os.umask(previous)


# ---- descriptors ----


def test_standard_streams_are_those_python_knows(probe, files, monkeypatch):
    path = probe.report_path()
    (fd,) = files(1)
    with open(os.dup(fd), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)  # no influence
        assert spawn([str(probe.program), path]) == 0
        assert probe.read(path)["fds"] == probe.report()["fds"]
        monkeypatch.setattr(sys, "__stdout__", stream)
        assert spawn([str(probe.program), path]) == 0
        assert probe.read(path)["fds"][1][:2] == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)


def test_remembered_streams_are_looked_at(probe, files, monkeypatch):
    """They were seen to be 0, 1 and 2; what may have changed since is asked at every call."""
    path, (fd,) = probe.report_path(), files(1)

    def seen():
        assert spawn([str(probe.program), path]) == 0
        return probe.read(path)["fds"]

    monkeypatch.setattr(sys, "stdin", sys.__stdin__)
    monkeypatch.setattr(_state, "usual_streams", (object(),))
    usual = seen()
    assert _state.usual_streams == (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    assert seen() == usual
    os.set_inheritable(1, False)
    try:
        assert seen() == usual
    finally:
        os.set_inheritable(1, True)
    number = os.fstat(fd).st_ino
    with open(os.dup(fd), "w") as stream:
        monkeypatch.setattr(sys, "__stderr__", stream)
        assert seen()[2][1] == number
        monkeypatch.undo()
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "__stdin__", None)
        assert seen()[0][1] == number


def test_closed_stdin_object(probe, files, monkeypatch):
    """multiprocessing closes sys.__stdin__ and opens another sys.stdin."""
    path = probe.report_path()
    (fd,) = files(1)
    with open(os.dup(fd)) as closed:
        pass
    with open(os.dup(fd)) as stream:
        monkeypatch.setattr(sys, "__stdin__", closed)
        monkeypatch.setattr(sys, "stdin", stream)
        assert spawn([str(probe.program), path]) == 0
        assert probe.read(path)["fds"][0][:2] == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)


@pytest.mark.parametrize("name", ["__stdin__", "__stdout__", "__stderr__"])
def test_no_standard_stream(probe, monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, name.strip("_"), None)
    path = probe.report_path()
    assert spawn([str(probe.program), path]) == 0
    assert set(probe.read(path)["fds"]) == set(probe.report()["fds"])


def test_a_standard_stream_given_away_stays(probe):
    path = probe.report_path()
    assert spawn([str(probe.program), path], fd_pipes={5: 1}) == 0
    fds = probe.read(path)["fds"]
    assert fds[5] == fds[1]
    assert spawn([str(probe.program), path], fd_pipes={5: 1}, close_fds=True) == 0
    assert set(probe.read(path)["fds"]) == {5}
    assert spawn([str(probe.program), path], fd_pipes={}) == 0
    assert probe.read(path)["fds"] == probe.report()["fds"]


@pytest.mark.parametrize("form", FORMS)
def test_close_fds_in_every_form(form, probe, files):
    (fd,) = files(1)
    os.set_inheritable(fd, True)
    path = probe.report_path()
    command = [str(probe.program), str(path)]
    assert finish(form, command, fd_pipes={0: 0, 7: fd}, close_fds=True) == 0
    assert set(probe.read(path)["fds"]) == {0, 7}


def test_the_callers_fd_pipes_are_untouched(tmp_path, stderr):
    fd, _ = stderr
    fd_pipes = {1: fd, 2: fd}
    assert spawn(["/bin/true"], fd_pipes=fd_pipes, logfile=tmp_path / "log") == 0
    assert spawn(["/bin/true"], fd_pipes=fd_pipes, cwd="/nonexistent") == 1
    assert fd_pipes == {1: fd, 2: fd}


# ---- signals ----


def test_dispositions_are_default(probe):
    path = probe.report_path()
    assert spawn([str(probe.program), path]) == 0
    ignored = int(probe.read(path)["SigIgn"], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        assert not ignored >> (number - 1) & 1


def test_interrupted_waiting_call_leaves_no_child(tmp_path):
    """Ctrl-C ends the command; portage leaves it running."""

    class Interrupted(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupted

    previous = signal.signal(signal.SIGUSR1, interrupt)
    marker = tmp_path / "pid"
    try:
        with pytest.raises(Interrupted):
            # The signal comes from the command itself, once it runs.
            spawn(["/bin/sh", "-c", f"echo $$ >{marker}; kill -USR1 $PPID; exec sleep 60"])
    finally:
        signal.signal(signal.SIGUSR1, previous)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)
