"""spawn_bash(), spawn_sandbox(), spawn_fakeroot(): what they run, and with the real programs."""

import asyncio
import json
import os
import stat

import pytest

from conftest import NOBODY
from spawnhelper import process

pytestmark = pytest.mark.core

needs_fakeroot = pytest.mark.skipif(
    not process.fakeroot_capable, reason="fakeroot is not installed"
)
needs_sandbox = pytest.mark.skipif(not process.sandbox_capable, reason="sandbox is not installed")


@pytest.fixture
def output(tmp_path):
    fd = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield {0: 0, 1: fd, 2: fd}, (tmp_path / "output").read_text
    os.close(fd)


def test_bash(output):
    fd_pipes, written = output
    assert process.spawn_bash('echo "$0 $BASH_VERSION"; exit 3', fd_pipes=fd_pipes) == 3
    name, version = written().split(" ", 1)
    assert (name, version[0].isdigit()) == ("echo", True)


def test_bash_names(output):
    fd_pipes, written = output
    assert process.spawn_bash("/bin/echo $0", fd_pipes=fd_pipes) == 0
    assert process.spawn_bash("echo $0", opt_name="[phase] x", fd_pipes=fd_pipes) == 0
    assert written() == "echo\n[phase] x\n"


def test_bash_debug(output):
    fd_pipes, written = output
    assert process.spawn_bash("echo a", True, fd_pipes=fd_pipes) == 0
    assert written() == "+ echo a\na\n"


def test_bash_with_a_blank_line():
    for wrapper in (process.spawn_bash, process.spawn_sandbox, process.spawn_fakeroot):
        for line in ("", "  "):
            with pytest.raises(IndexError):
                wrapper(line)


def test_missing_bash_is_status_1(monkeypatch, output):
    """The constants are used unsearched and unchecked."""
    monkeypatch.setattr(process, "BASH_BINARY", "/nonexistent/bash")
    fd_pipes, written = output
    assert process.spawn_bash("echo a", fd_pipes=fd_pipes) == 1
    assert "/nonexistent/bash" in written()


def test_keywords_are_passed_on(tmp_path, output):
    fd_pipes, written = output
    proc = process.spawn_bash(
        "echo $A $PWD", env={"A": "b"}, cwd=tmp_path, fd_pipes=fd_pipes, returnproc=True
    )
    assert asyncio.run(proc.wait()) == 0
    assert written() == f"b {tmp_path}\n"


def test_sandbox_without_the_program_is_bash(output, monkeypatch):
    monkeypatch.setattr(process, "sandbox_capable", False)
    fd_pipes, written = output
    assert process.spawn_sandbox("echo $0", debug=True, fd_pipes=fd_pipes) == 0
    assert written() == "+ echo echo\necho\n"


def test_sandbox_arguments(output, monkeypatch, probe):
    """The line is one argument; opt_name as with bash; debug= is then no keyword."""
    monkeypatch.setattr(process, "sandbox_capable", True)
    monkeypatch.setattr(process, "SANDBOX_BINARY", str(probe.program))
    path = probe.report_path()
    monkeypatch.chdir(path.parent)
    assert process.spawn_sandbox(path.name) == 0
    words = json.loads(path.read_text())["argv"]
    assert words == [path.name, path.name]
    path.unlink()
    with pytest.raises(TypeError):
        process.spawn_sandbox("true", debug=True)


@needs_sandbox
def test_sandbox_with_the_real_program(output, tmp_path):
    fd_pipes, written = output
    assert process.spawn_sandbox("echo $SANDBOX_ON", fd_pipes=fd_pipes) == 0
    assert written() == "1\n"


@needs_fakeroot
def test_fakeroot_with_the_real_program(output, public_dir):
    """Ownership that exists only in the state file; the second run knows it."""
    fd_pipes, written = output
    file, state = public_dir / "faked", public_dir / "faked-state"
    ids = {}
    state.touch()
    if os.geteuid() == 0:  # fakeroot as root would really change the owner
        ids = {"uid": NOBODY, "gid": NOBODY, "groups": [NOBODY]}
        os.chown(state, NOBODY, NOBODY)
    keywords = {"fakeroot_state": str(state), "fd_pipes": fd_pipes, "cwd": public_dir, **ids}
    line = f"touch {file} && chown 123:456 {file} && stat -c %u:%g {file}"
    assert process.spawn_fakeroot(line, **keywords) == 0, written()
    assert state.read_text() != ""
    assert file.stat().st_uid == (NOBODY if ids else os.geteuid())
    assert process.spawn_fakeroot(f"stat -c %u:%g {file}; exit 4", **keywords) == 4
    assert written() == "123:456\n" * 2


@needs_fakeroot
def test_fakeroot_without_state(output):
    fd_pipes, written = output
    assert process.spawn_fakeroot("id -u; echo $0", fd_pipes=fd_pipes) == 0
    assert written().splitlines()[0] == "0"


def test_fakeroot_arguments(tmp_path, monkeypatch, probe):
    state = tmp_path / "state"
    recorder = tmp_path / "fakeroot"
    recorder.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/arguments\n')
    recorder.chmod(0o755)
    monkeypatch.setattr(process, "FAKEROOT_BINARY", str(recorder))
    assert process.spawn_fakeroot("a b", fakeroot_state=str(state)) == 0
    expected = ["-s", str(state), "-i", str(state), "--", "/bin/bash", "-c", "a b"]
    assert (tmp_path / "arguments").read_text().splitlines() == expected
    assert stat.S_ISREG(state.stat().st_mode)
    assert process.spawn_fakeroot("a b") == 0
    assert (tmp_path / "arguments").read_text().splitlines() == expected[4:]


def test_missing_fakeroot_is_status_1(monkeypatch, output):
    monkeypatch.setattr(process, "FAKEROOT_BINARY", "/nonexistent/fakeroot")
    fd_pipes, written = output
    assert process.spawn_fakeroot("true", fd_pipes=fd_pipes) == 1
    assert "/nonexistent/fakeroot" in written()
