"""cgroup=: joined at birth, by command, holder and grandchildren; or refused in a clear sentence."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import AVOIDED, NOBODY, open_fds
from instruments.isolation import (
    KINDS,
    WAYS,
    await_true,
    cgroup_members,
    children_of,
    find_hierarchy,
    holder_of,
    in_fork,
    needs_isolation,
    new_cgroup,
    open_gate,
    sandbox,
)
from spawnhelper import IsolationWarning, SpawnError, Stage, spawn

hierarchies = pytest.mark.parametrize("controller", [None, "pids"], ids=["v2", "v1"])
COMBINATIONS = [(), ("net",), ("pid",), KINDS]


def place_of(pid, controller):
    """The process's cgroup in this hierarchy, as /proc shows it."""
    with open(f"/proc/{pid}/cgroup") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" if controller is None else controller in controllers.split(","):
                return path
    raise AssertionError(controller)


def expected_place(cgroup, controller):
    return "/" + str(cgroup.relative_to(find_hierarchy(controller)))


# ---- joined ----


@needs_isolation
@hierarchies
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kinds", COMBINATIONS, ids=lambda kinds: "+".join(kinds) or "plain")
@pytest.mark.parametrize("keywords", [{}, {"pre_exec": int}], ids=["plain", "pre_exec"])
def test_everybody_is_in_it(controller, way, kinds, keywords):
    script = "bash -c 'echo x >&{0}; read x <&{1}; exit 0' & echo x >&{0}; read x <&{1}; exit 3"
    ours = place_of("self", controller)
    with new_cgroup(controller) as cgroup, open_gate() as gate:
        with sandbox(way, kinds, cgroup=cgroup, **keywords) as isolated:
            command = ["bash", "-c", script.format(gate.ready, gate.hold)]
            with spawn(command, returnproc=True, **isolated) as process:
                gate.await_ready(2)
                place = expected_place(cgroup, controller)
                expected = {process.pid, *children_of(process.pid)}
                assert len(expected) == 2
                if "pid" in kinds and way == "one-shot":
                    expected.add(holder_of(process.pid))
                assert set(cgroup_members(cgroup)) == expected
                assert {place_of(pid, controller) for pid in expected} == {place}
                gate.release()
                assert process.wait() == 3
                if "pid" in kinds and way == "one-shot":
                    assert cgroup_members(cgroup) == []
            if "pid" not in kinds or way == "reused":
                await_true(lambda: cgroup_members(cgroup) == [])
    assert place_of("self", controller) == ours


@needs_isolation
@hierarchies
def test_it_can_be_removed_when_the_call_returns(controller):
    for kinds in COMBINATIONS:
        for _ in range(20):
            with new_cgroup(controller) as cgroup, sandbox("one-shot", kinds) as keywords:
                assert spawn("/bin/true", cgroup=cgroup, **keywords) == 0


@needs_isolation
@hierarchies
def test_the_first_instruction_runs_inside(controller):
    """Before exec already: the command never sees another cgroup."""
    with new_cgroup(controller) as cgroup:
        for kinds in COMBINATIONS:
            with sandbox("one-shot", kinds) as keywords:
                place = expected_place(cgroup, controller)
                test = ["grep", "-q", f":{place}$", "/proc/self/cgroup"]
                assert spawn(test, cgroup=cgroup, **keywords) == 0


@needs_isolation
@hierarchies
def test_every_kind_of_path(controller, tmp_path):
    with new_cgroup(controller) as cgroup:
        (tmp_path / "link").symlink_to(cgroup)
        place = expected_place(cgroup, controller)
        command = ["grep", "-q", f":{place}$", "/proc/self/cgroup"]
        for path in (cgroup, str(cgroup), os.fsencode(cgroup), f"{cgroup}/", tmp_path / "link"):
            assert spawn(command, cgroup=path) == 0
        before = os.getcwd()
        os.chdir(cgroup.parent)
        try:
            assert spawn(command, cgroup=cgroup.name, cwd="/") == 0
        finally:
            os.chdir(before)


@needs_isolation
@hierarchies
def test_with_credentials_and_descriptors(probe, controller, files):
    """The cgroup is joined with our rights; nothing of it stays open."""
    (fd,) = files(1)
    keywords = {"uid": NOBODY, "gid": NOBODY, "groups": [], "close_fds": True, "fd_pipes": {5: fd}}
    plain = probe.report(**keywords)
    with new_cgroup(controller) as cgroup:
        report = probe.report(cgroup=cgroup, **keywords)
        isolated = probe.report(cgroup=cgroup, unshare_pid=True, **keywords)
    assert plain["fds"] == report["fds"] == isolated["fds"]
    assert report["uids"] == [NOBODY] * 3


TRACED = """
import os, spawnhelper, sys
os.write(2, b"")
assert spawnhelper.spawn(["/bin/true"], cgroup=sys.argv[1], unshare_pid=sys.argv[2] == "pid") == 0
os.write(2, b"")
"""


@needs_isolation
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.skipif("clone3" in AVOIDED or "vfork" in AVOIDED, reason="forced mode without clone3")
@pytest.mark.parametrize("kind", ["plain", "pid"])
def test_v2_is_joined_by_the_clone_itself(tmp_path, kind):
    """Writing cgroup.procs costs milliseconds on an idle machine."""
    with new_cgroup(None) as cgroup:
        output = tmp_path / "trace"
        command = ["strace", "-f", "-qq", "-o", output, sys.executable, "-c", TRACED, cgroup, kind]
        subprocess.run(command, check=True)
    trace = output.read_text()
    assert len(re.findall("CLONE_INTO_CGROUP", trace)) == (2 if kind == "pid" else 1)
    assert "cgroup.procs" not in trace


@needs_isolation
@hierarchies
@pytest.mark.parametrize("avoid", ["clone3", "clone3,vfork", "pidfd", "clone3,pidfd"])
def test_without_clone3(controller, avoid):
    """The child writes 0 instead."""
    program = """
import sys
from spawnhelper import spawn
for keywords in ({}, {"unshare_ipc": True}, {"unshare_pid": True}, {"pre_exec": int}):
    if "unshare_pid" in keywords and ("vfork" in sys.argv[3] or "pidfd" in sys.argv[3]):
        continue
    place = ["grep", "-q", ":" + sys.argv[2] + "$", "/proc/self/cgroup"]
    assert spawn(place, cgroup=sys.argv[1], **keywords) == 0, keywords
    assert spawn(place, **keywords) == 1, keywords
"""
    with new_cgroup(controller) as cgroup:
        place = expected_place(cgroup, controller)
        command = [sys.executable, "-c", program, str(cgroup), place, avoid]
        env = {**os.environ, "SPAWNHELPER_AVOID": avoid}
        subprocess.run(command, env=env, check=True, timeout=60)


@needs_isolation
@hierarchies
def test_entered_sets_keep_their_holder_outside(controller):
    """A set serves commands of any cgroup."""
    with sandbox("reused", ("pid",)) as keywords, new_cgroup(controller) as one:
        with new_cgroup(controller) as two:
            for cgroup in (one, two, one):
                place = expected_place(cgroup, controller)
                command = ["grep", "-q", f":{place}$", "/proc/self/cgroup"]
                assert spawn(command, cgroup=cgroup, **keywords) == 0
            assert place_of(keywords["namespaces"].pid, controller) == place_of("self", controller)


# ---- refused ----


def check_refusal(cgroup, error, sentence, **keywords):
    """In every mode: the stage, the builtin class, a remedy in parentheses; and nothing is left."""
    before = open_fds()
    for extra in ({}, {"returnproc": True}, {"returnpid": True}, {"pre_exec": int}):
        with pytest.raises(error) as caught:
            spawn("/bin/true", cgroup=cgroup, **keywords, **extra)
        assert isinstance(caught.value, SpawnError)
        assert caught.value.stage is Stage.CGROUP
        assert str(caught.value).find("CGROUP: ") >= 0
        assert re.search(rf"\(.*{sentence}.*\)", str(caught.value)), caught.value
        assert os.fsdecode(cgroup) in str(caught.value)
    assert open_fds() == before
    assert children_of(os.getpid()) == []


@pytest.mark.core
def test_no_such_directory(tmp_path):
    check_refusal(tmp_path / "missing", FileNotFoundError, "no such cgroup")


@pytest.mark.core
def test_a_file(tmp_path):
    (tmp_path / "file").touch()
    check_refusal(tmp_path / "file", NotADirectoryError, "directory")


@needs_isolation
@hierarchies
def test_the_file_of_the_cgroup(controller):
    with new_cgroup(controller) as cgroup:
        check_refusal(cgroup / "cgroup.procs", NotADirectoryError, "the directory, not a file")


@pytest.mark.core
def test_a_directory_that_is_no_cgroup(tmp_path):
    """It holds no cgroup.procs; and one that it does hold is not written to."""
    check_refusal(tmp_path, FileNotFoundError, "no such cgroup")


@pytest.mark.core
@pytest.mark.parametrize("cgroup", ["", b"", "a\0b", 5, ["x"], True, False])
def test_bad_values(cgroup):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match="cgroup|CGROUP"):
        spawn("true", cgroup=cgroup)


@needs_isolation
@hierarchies
@pytest.mark.parametrize("delegated", [False, True])
def test_as_another_user(controller, delegated):
    """In v2 the common ancestor counts, too: a cgroup of one's own is not enough."""
    with new_cgroup(controller) as cgroup:
        if delegated:
            os.chown(cgroup, NOBODY, NOBODY)
            os.chown(cgroup / "cgroup.procs", NOBODY, NOBODY)
        if delegated and controller is not None:
            status = []

            def join():
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                status.append(spawn("/bin/true", cgroup=cgroup))
                assert status == [0]

            in_fork(join)
            return

        def run():
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            check_refusal(cgroup, PermissionError, "delegated")

        in_fork(run)


@needs_isolation
def test_a_cgroup_whose_controllers_are_its_childrens():
    """v2 only: processes live in leaves (cgroups(7), no internal processes)."""
    root = find_hierarchy(None)
    if root is None:
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    control = root / "cgroup.subtree_control"
    enabled = control.read_text().split()
    usable = (root / "cgroup.controllers").read_text().split()
    usable = [name for name in usable if name not in ("cpu", "cpuset", "pids", "perf_event")]
    if not usable:
        pytest.skip("no domain controller here")
    name = usable[0]
    try:
        control.write_text(f"+{name}")
    except OSError as error:
        pytest.skip(f"controllers cannot be enabled here: {error}")
    try:
        with new_cgroup(None) as cgroup:
            (cgroup / "cgroup.subtree_control").write_text(f"+{name}")
            for keywords in ({}, {"unshare_pid": True}, {"unshare_net": True}):
                check_refusal(cgroup, OSError, "child cgroup", **keywords)
    finally:
        if name not in enabled:
            control.write_text(f"-{name}")


@needs_isolation
def test_a_removed_cgroup():
    """Gone, although a descriptor or working directory still leads to it."""
    with new_cgroup(None) as cgroup:
        child = cgroup / "child"
        child.mkdir()
        before = os.getcwd()
        os.chdir(child)
        try:
            child.rmdir()
            with pytest.raises(SpawnError) as caught:
                spawn("/bin/true", cgroup=".")
        finally:
            os.chdir(before)
        assert caught.value.stage is Stage.CGROUP


@pytest.mark.core
def test_best_effort_goes_on(tmp_path):
    """One note, one warning, and the command runs, where it was."""
    place = place_of("self", None) if find_hierarchy(None) else None
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.warns(IsolationWarning) as warned:
            process = spawn("true", cgroup=path, isolation="best-effort", returnproc=True)
        assert process.wait() == 0
        assert len(warned) == 1
        (note,) = process.notes
        assert note.stage is Stage.CGROUP
        assert str(note) in str(warned[0].message)
    if place is not None:
        with pytest.warns(IsolationWarning):
            assert spawn(["true"], cgroup=tmp_path, isolation="best-effort") == 0
