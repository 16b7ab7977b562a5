"""The command: splitting, argv[0], looking programs up."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from conftest import needs_root
from spawnhelper import CommandNotFound, SpawnError, Stage, _core, _state, spawn

pytestmark = pytest.mark.core


def test_str_is_split_on_whitespace_without_quoting(probe):
    path = probe.report_path()
    assert spawn(f"{probe.program}  {path}\ta  'b c'\n") == 0
    assert probe.read(path)["argv"] == [str(probe.program), "a", "'b", "c'"]


def test_sequences_and_types(probe):
    path = probe.report_path()
    words = (os.fsencode(probe.program), path, b"\xff", "\udcfe", "")
    assert spawn(words) == 0
    argv = probe.read(path)["argv"]
    assert argv == [str(probe.program), "\xff", "\xfe", ""]


def test_argv0_is_the_command_as_given(probe):
    relative = os.path.relpath(probe.program)
    assert probe.report(first=relative)["argv"] == [relative]


@pytest.mark.parametrize("name", ["other", b"other", ""])
def test_opt_name_is_argv0(probe, name):
    assert probe.report(opt_name=name)["argv"] == [os.fsdecode(name)]


def test_nothing_else_changes(probe):
    assert probe.changes("a", "b", opt_name="x") == {}


@pytest.fixture
def shelf(tmp_path):
    """PATH entries with the name `tool` in every condition."""

    def put(directory, mode, content="#!/bin/sh\nexit 7\n"):
        where = tmp_path / directory
        where.mkdir()
        tool = where / "tool"
        tool.write_text(content)
        tool.chmod(mode)
        return str(where)

    paths = {
        "good": put("good", 0o755),
        "other": put("other", 0o755, "#!/bin/sh\nexit 8\n"),
        "plain": put("plain", 0o644),
        "empty": str(tmp_path / "empty"),
        "missing": str(tmp_path / "missing"),
        "file": str(tmp_path / "good" / "tool"),  # ENOTDIR
        "dir": str(tmp_path / "dir"),
        "long": "/" + "x" * 5000,
    }
    Path(paths["empty"]).mkdir()
    (Path(paths["dir"]) / "tool").mkdir(parents=True)
    return paths


FOUND, DENIED, ABSENT = 7, "denied", "absent"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["good"], FOUND),
        (["good", "other"], FOUND),
        (["missing", "empty", "file", "long", "good"], FOUND),
        (["plain", "dir", "good"], FOUND),
        (["plain"], DENIED),
        (["plain", "empty"], DENIED),
        (["dir", "missing"], DENIED),
        (["missing", "empty", "file"], ABSENT),
        ([], ABSENT),
        (["good", ""], FOUND),
        (["", "good"], FOUND),
    ],
)
def test_path_table(shelf, entries, expected):
    """As execvp(3): refused candidates end nothing, but win over absent ones."""
    env = {"PATH": ":".join(shelf.get(name, name) for name in entries)}
    if expected == DENIED:
        with pytest.raises(PermissionError) as caught:
            spawn(["tool"], env=env)
        assert caught.value.stage is Stage.EXEC
    elif expected == ABSENT:
        with pytest.raises(CommandNotFound) as caught:
            spawn(["tool"], env=env)
        assert caught.value.value == "tool"
        assert isinstance(caught.value, FileNotFoundError)
    else:
        assert spawn(["tool"], env=env) == expected


@pytest.mark.parametrize("path", ["", ".", ":", "/nonexistent:", ":/nonexistent"])
def test_empty_entry_is_the_current_directory(shelf, path, monkeypatch):
    monkeypatch.chdir(shelf["good"])
    assert spawn(["tool"], env={"PATH": path}) == FOUND


def test_relative_entry_counts_from_cwd(shelf):
    """The child changes its directory before exec; the search agrees with it."""
    above = os.path.dirname(shelf["good"])
    assert spawn(["tool"], env={"PATH": "good"}, cwd=above) == FOUND
    assert spawn(["tool"], env={"PATH": ""}, cwd=shelf["other"]) == 8
    with pytest.raises(CommandNotFound):
        spawn(["tool"], env={"PATH": "good"}, cwd=shelf["empty"])


def test_path_of_the_given_env_not_ours(shelf, monkeypatch):
    monkeypatch.setenv("PATH", shelf["other"])
    assert spawn(["tool"]) == 8
    assert spawn(["tool"], env={"PATH": shelf["good"]}) == FOUND


def test_unset_path_means_the_system_directories(shelf, monkeypatch):
    monkeypatch.chdir(shelf["good"])
    assert spawn(["true"], env={}) == 0
    with pytest.raises(CommandNotFound):
        spawn(["tool"], env={})
    monkeypatch.delenv("PATH")
    assert spawn(["true"]) == 0


def test_a_slash_means_no_search(shelf, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(shelf["good"]))
    with pytest.raises(FileNotFoundError) as caught:
        spawn(["good/tool"])
    assert not isinstance(caught.value, CommandNotFound)
    monkeypatch.chdir(os.path.dirname(shelf["good"]))
    assert spawn(["good/tool"]) == FOUND


def test_path_lookup_false(shelf, monkeypatch):
    with pytest.raises(SpawnError) as caught:
        spawn(["true"], path_lookup=False)
    assert (caught.value.stage, caught.value.filename) == (Stage.EXEC, "true")
    monkeypatch.chdir(shelf["good"])
    assert spawn(["tool"], path_lookup=False) == FOUND


@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/nonexistent:/bin", "/bin/true:/bin", ":/bin"])
def test_same_as_execvp(path, tmp_path, monkeypatch):
    """Differential: the C library's own search, and the standard library's."""
    monkeypatch.chdir(tmp_path)
    for name in ("true", "sh", "nonexistent-program"):
        found = shutil.which(name, path=path)
        if found is None:
            with pytest.raises(CommandNotFound):
                spawn([name], env={"PATH": path})
        else:
            assert spawn([name, "-c", "exit 0"], env={"PATH": path}) == 0


def test_without_interpreter_line(tmp_path):
    script = tmp_path / "script"
    script.write_text("exit 0\n")
    script.chmod(0o755)
    with pytest.raises(SpawnError, match="no #! line") as caught:
        spawn([script])
    assert (caught.value.stage, caught.value.errno) == (Stage.EXEC, 8)


def test_missing_interpreter_is_explained(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(FileNotFoundError, match="interpreter"):
        spawn([script])


@needs_root
def test_search_does_not_know_the_new_user(shelf, probe):
    """What root may execute and the target user may not fails at exec, with its stage."""
    os.chmod(shelf["good"], 0o700)
    with pytest.raises(PermissionError) as caught:
        spawn(["tool"], env={"PATH": shelf["good"]}, uid=65534)
    assert caught.value.stage is Stage.EXEC


def test_many_arguments(probe):
    words = [str(number) for number in range(30000)]
    assert probe.report(*words)["argv"][1:] == words


def test_too_large(probe):
    with pytest.raises(SpawnError, match="131071") as caught:
        spawn([probe.program, "x" * 131072])
    assert (caught.value.stage, caught.value.errno) == (Stage.EXEC, 7)
    assert len(probe.report("x" * 131071)["argv"][1]) == 131071


# ---- the options of one call are not those of the next ----


def test_equal_is_not_the_same():
    """What a call makes of its options serves the next one with the same; 0.0 equals 0."""
    wrong = [{"uid": 0.0}, {"gid": 0.0}, {"umask": 18.0}, {"groups": 0}]
    for bad in wrong:
        good = {name: int(value) for name, value in bad.items() if name != "groups"}
        if os.geteuid() == 0 or "umask" in good:
            assert spawn("true", **good) == 0
        with pytest.raises(TypeError):
            spawn("true", **bad)


@pytest.mark.parametrize("wrong", [{0: 0, 1: 1, 2: 2.0}, {0.0: 0, 1: 1, 2: 2}])
def test_equal_maps_are_not_the_same(wrong):
    for _ in range(2):
        assert spawn("true", fd_pipes={0: 0, 1: 1, 2: 2}) == 0
        with pytest.raises(TypeError):
            spawn("true", fd_pipes=wrong)


@needs_root
def test_equal_groups_are_not_the_same(probe):
    for good, bad in (([5], [5.0]), ((5, 6), (5, 6.0)), ([1], [1j])):
        assert probe.report(groups=good)["groups"] == list(good)
        with pytest.raises(TypeError):
            spawn("true", groups=bad)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (({0: 0, 1: 1, 2: 2, 5: 0}, []), ({0: 5, 1: 0, 2: 1}, [2, 0])),
        ((None, [1, 5, 6]), ({5: 6}, [])),
        ((None, []), (None, None)),
        (({}, None), (None, None)),
    ],
)
def test_the_same_numbers_in_other_places(monkeypatch, first, second):
    taken = []
    monkeypatch.setattr(_state, "last_options", ((object(),), None))  # which would hide it
    monkeypatch.setattr(
        _core, "run", lambda _packed, options, _set: taken.append((options.fds, options.groups))
    )
    for fds, groups in (first, second, first, (None, None), second):
        spawn("true", fd_pipes=fds, groups=groups, umask=0o22)
        assert taken.pop() == (fds, groups)


@pytest.mark.parametrize("command", [None, 5])
def test_no_sequence(command):
    with pytest.raises(TypeError, match="not iterable"):
        spawn(command)


class Elsewhere(type(Path())):
    def __fspath__(self):
        return "/usr"


class EqualToAll:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        os.write(1, b"called")

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def test_whoever_claims_to_be_equal(probe, tmp_path):
    assert probe.report(cwd=Path("/tmp"))["cwd"] == os.path.realpath("/tmp")
    assert probe.report(cwd=Elsewhere("/tmp"))["cwd"] == "/usr"
    out = tmp_path / "out"
    with out.open("w") as file:
        fds = {0: 0, 1: file.fileno(), 2: 2}
        for more in ({}, {"cwd": "/"}):
            for pre_exec in (None, EqualToAll()):
                assert spawn("true", pre_exec=pre_exec, fd_pipes=fds, **more) == 0
        for pre_exec in (None, EqualToAll()):
            assert spawn("true", pre_exec=pre_exec) == 0
    assert out.read_text() == 2 * "called"


def test_bytes_and_str_are_not_compared():
    code = (
        "from spawnhelper import spawn\nfor d in ('/', b'/', '/'): assert spawn('true', cwd=d) == 0"
    )
    assert spawn([sys.executable, "-bb", "-c", code]) == 0


def test_changed_in_place(probe, tmp_path):
    """A mapping or a list that the caller changes between two calls counts as it is then."""
    cwd = os.getcwd()
    first, second = tmp_path / "first", tmp_path / "second"
    for name in (first, second):
        name.mkdir()
    fds = {0: 0, 1: 1, 2: 2}
    for directory in (first, second, first, None):
        for key in (None, 7, 8, None):
            if key is None:
                fds.pop(7, None)
                fds.pop(8, None)
            else:
                fds[key] = 0
            report = probe.report(cwd=directory, fd_pipes=fds, close_fds=True)
            assert report["cwd"] == str(directory or cwd)
            assert sorted(int(fd) for fd in report["fds"]) == sorted(fds)


@needs_root
def test_groups_changed_in_place(probe):
    groups = [5]
    assert probe.report(uid=65534, gid=65534, groups=groups)["groups"] == [5]
    groups.append(7)
    assert probe.report(uid=65534, gid=65534, groups=groups)["groups"] == [5, 7]
