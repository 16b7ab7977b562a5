"""find_binary, get_open_fds, sanitize_fds: the documented helpers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import open_fds
from spawnhelper import find_binary, get_open_fds

pytestmark = pytest.mark.core


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    for name, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text("")
        (tmp_path / name / "tool").chmod(mode)
    (tmp_path / "d" / "tool").mkdir(parents=True)
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in "dabc"))
    return tmp_path


def test_first_executable_regular_file(shelf):
    expected = str(shelf / "b" / "tool")
    assert find_binary("tool") == expected
    assert find_binary(b"tool") == os.fsencode(expected)
    assert find_binary(Path("tool")) == expected
    assert find_binary("nothing") is None
    assert find_binary("") is None
    assert find_binary(b"") is None


def test_absolute_names_check_themselves(shelf):
    assert find_binary(str(shelf / "c" / "tool")) == str(shelf / "c" / "tool")
    assert find_binary(str(shelf / "a" / "tool")) is None
    assert find_binary(str(shelf / "d" / "tool")) is None


def test_relative_entries(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    monkeypatch.setenv("PATH", "b")
    assert find_binary("tool") == "b/tool"
    monkeypatch.setenv("PATH", str(shelf))
    assert find_binary("c/tool") == str(shelf / "c/tool")
    monkeypatch.chdir(shelf / "b")
    monkeypatch.setenv("PATH", "")
    assert find_binary("tool") == "tool"
    monkeypatch.delenv("PATH")
    assert find_binary("tool") == "tool"


def test_undecodable_path_bytes_survive(tmp_path, monkeypatch):
    directory = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(directory)
    Path(os.fsdecode(directory), "tool").write_text("")
    os.chmod(directory + b"/tool", 0o755)
    monkeypatch.setenv("PATH", os.fsdecode(directory))
    assert find_binary(b"tool") == directory + b"/tool"
    assert find_binary("tool") == os.fsdecode(directory) + "/tool"


@pytest.mark.parametrize("name", [None, 5, ["tool"]])
def test_wrong_types(name):
    with pytest.raises(TypeError):
        find_binary(name)


def test_get_open_fds(files):
    fds = files(3)
    generator = get_open_fds()
    assert iter(generator) is generator
    listed = list(generator)
    assert open_fds() <= set(listed)
    assert set(fds) <= set(listed)
    (extra,) = set(listed) - open_fds()  # the listing's own, closed again
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(extra)


def test_get_open_fds_without_proc(files, monkeypatch):
    fds = files(3)
    expected = open_fds()

    def refuse(_):
        raise OSError

    monkeypatch.setattr(os, "listdir", refuse)
    assert set(get_open_fds()) == expected >= set(fds)


def test_sanitize_fds():
    program = """
import os, sys, spawnhelper
fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
for fd in (*fds, 0, 1, 2):
    os.set_inheritable(fd, True)
sys.stdin = sys.stdout = None  # a replaced stream does not matter
spawnhelper.sanitize_fds()
inheritable = [fd for fd in spawnhelper.get_open_fds()
               if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]
sys.exit(sorted(inheritable) != [0, 1, 2])
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_sanitize_fds_with_closed_streams():
    program = """
import os, sys, spawnhelper
sys.__stdin__.close()
os.close(1)
fd = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(fd, True)
spawnhelper.sanitize_fds()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
