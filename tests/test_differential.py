"""The same question to others: portage, subprocess, os.posix_spawn, where meanings coincide."""

import os
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Probe, needs_root, open_fds
from spawnhelper import find_binary, spawn


@pytest.fixture(scope="module")
def theirs():
    """portage's module, from PyPI."""
    return pytest.importorskip("portage.process", reason="needs portage")


# ---- portage ----


@st.composite
def maps(draw):
    targets = draw(st.lists(st.integers(0, 7), unique=True, max_size=6))
    return {target: draw(st.integers(0, 4)) for target in targets}


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    """Numbers 0-4 are open, 5-7 are free; none is a standard one."""
    directory = tmp_path_factory.mktemp("slots")
    base = max(open_fds()) + 3
    numbers = [base + n for n in (0, 2, 3, 5, 7, 1, 4, 8)]
    for number in numbers[:5]:
        fd = os.open(directory / str(number), os.O_RDWR | os.O_CREAT)
        os.dup2(fd, number, inheritable=number % 2 == 0)
        os.close(fd)
    yield numbers
    for number in numbers[:5]:
        os.close(number)


def as_portage(theirs, probe, fd_pipes, close_fds):
    """What its own function leaves for the command, in a plain fork."""
    path = probe.report_path()
    pid = os.fork()
    if pid == 0:
        try:
            theirs._setup_pipes(dict(fd_pipes), close_fds=close_fds, inheritable=True)
            os.execv(probe.program, [str(probe.program), str(path)])
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0) == (pid, 0)
    return probe.read(path)["fds"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(maps(), st.booleans())
def test_setup_pipes(theirs, probe, slots, shape, close_fds):
    fd_pipes = {slots[target]: slots[source] for target, source in shape.items()}
    ours = probe.report(fd_pipes=fd_pipes, close_fds=close_fds)["fds"]
    assert ours == as_portage(theirs, probe, fd_pipes, close_fds)


@pytest.mark.parametrize("path", ["a:b:c", "b", "", ":b", "c:", "missing:d:b", "d", None])
@pytest.mark.parametrize("name", ["tool", b"tool", "b/tool", "none", "", "ABS/b/tool", "ABS/d"])
def test_find_binary(theirs, tmp_path, monkeypatch, path, name):
    for directory, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "tool").write_text("")
        (tmp_path / directory / "tool").chmod(mode)
    (tmp_path / "d" / "tool").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    if isinstance(name, str):
        name = name.replace("ABS", str(tmp_path))
    assert find_binary(name) == theirs.find_binary(name)


# ---- subprocess ----

# Both reset these two; only we reset the others.
DIFFERING = (*Probe.CHANGING, "SigIgn")


def by_popen(probe, **keywords):
    path = probe.report_path()
    subprocess.run([probe.program, path], check=True, **keywords)
    return probe.read(path)


def same(ours, theirs):
    for key in DIFFERING:
        ours.pop(key), theirs.pop(key)
    for report in (ours, theirs):
        # libc's environ grows in another order, and readline adds these two to it alone
        report["env"] = {e for e in report["env"] if not e.startswith(("LINES=", "COLUMNS="))}
    assert {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]} == {}


def standard():
    return {fd: fd for fd in (0, 1, 2)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"close_fds": True}, {}),
        ({}, {"close_fds": False}),
        ({"close_fds": True, "cwd": "/"}, {"cwd": "/"}),
        ({"close_fds": True, "env": {"A": "1"}}, {"env": {"A": "1"}}),
        ({"close_fds": True, "umask": 0}, {"umask": 0}),
        ({"close_fds": True, "umask": 0o77}, {"umask": 0o77}),
    ],
)
def test_popen(probe, ours, theirs):
    same(probe.report(**ours), by_popen(probe, **theirs))


def test_popen_descriptors(probe, files):
    a, b, c = files(3)
    ours = probe.report(fd_pipes={0: a, 1: b, 2: b, c: c}, close_fds=True)
    same(ours, by_popen(probe, stdin=a, stdout=b, stderr=b, pass_fds=[c]))


@needs_root
@pytest.mark.parametrize("ids", [(5, 6, [7]), (0, 0, []), (None, 6, None), (5, None, [])])
def test_popen_credentials(probe, ids):
    uid, gid, groups = ids
    ours = probe.report(uid=uid, gid=gid, groups=groups, close_fds=True)
    same(ours, by_popen(probe, user=uid, group=gid, extra_groups=groups))


@pytest.mark.parametrize("command", [["true"], ["no-such-program"], ["/etc"], ["/etc/passwd/x"]])
@pytest.mark.parametrize("cwd", [None, "/", "/no-such-directory"])
def test_popen_failures(command, cwd):
    """The same builtin exception with the same errno."""
    try:
        expected = subprocess.run(command, cwd=cwd, check=False).returncode
    except OSError as error:
        with pytest.raises(type(error)) as caught:
            spawn(command, cwd=cwd)
        # Where both are missing, the name is looked up first; Popen enters the directory first.
        assert caught.value.errno == error.errno
    else:
        assert spawn(command, cwd=cwd) == expected


# ---- os.posix_spawn ----


@pytest.mark.parametrize("shape", [{0: 0}, {0: 1, 1: 2}, {1: 0, 2: 0}, {5: 1}])
def test_posix_spawn(probe, files, shape):
    """dup2 actions, in an order without clobbering, do what the map says."""
    fds = files(3)
    actions = [(os.POSIX_SPAWN_DUP2, fds[source], target) for target, source in shape.items()]
    path = probe.report_path()
    pid = os.posix_spawn(
        probe.program, [str(probe.program), str(path)], os.environ, file_actions=actions
    )
    assert os.waitpid(pid, 0) == (pid, 0)
    theirs = probe.read(path)
    ours = probe.report(fd_pipes={target: fds[source] for target, source in shape.items()})
    same(ours, theirs)
