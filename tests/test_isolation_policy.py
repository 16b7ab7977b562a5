"""required and best-effort: what a refusal means, and who explains it."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import spawnhelper._remedies  # noqa: F401 imported late otherwise, when the user may not read it
from conftest import HERE, NOBODY, open_fds
from instruments.isolation import (
    COMBINATIONS,
    KINDS,
    NEWNS,
    NEWUSER,
    WAYS,
    changed_namespaces,
    check,
    children_of,
    in_fork,
    libc,
    needs_isolation,
    needs_pid_namespaces,
    sandbox,
    skip_if_forced,
    unshare_keywords,
)
from spawnhelper import IsolationWarning, Namespaces, SpawnError, Stage, _core, spawn

TOLERATED = {
    *(Stage.CGROUP, Stage.NAMESPACES, Stage.PROPAGATION, Stage.HOSTNAME, Stage.LOOPBACK),
}
PR_SET_DUMPABLE = 4
NETLINK = "socket:16"

every_way = pytest.mark.parametrize("way", WAYS)
every_isolation = pytest.mark.parametrize("kinds", COMBINATIONS[1:], ids="+".join)


# ---- the table ----


@pytest.mark.core
def test_one_table():
    """C decides by it, Python shows it, the documentation prints it."""
    from spawnhelper._spawnhelper import lib

    assert {stage for stage in Stage if _core.tolerated(stage)} == TOLERATED
    assert {stage for stage in Stage if lib.sh_stage_tolerated(stage)} == TOLERATED
    for outside in (-1, len(Stage), 1000):
        assert not lib.sh_stage_tolerated(outside)


@pytest.mark.core
def test_notes_are_empty_without_cause():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policy in ("required", "best-effort"):
            process = spawn("true", isolation=policy, returnproc=True)
            assert process.wait() == 0
            assert process.notes == ()


@needs_isolation
@every_way
def test_nothing_is_noted_where_all_is_had(way):
    with sandbox(way, KINDS, isolation="best-effort") as keywords:
        process = spawn("true", returnproc=True, **keywords)
        assert process.wait() == 0
        assert process.notes == ()


# ---- an ordinary user ----


def become_nobody():
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # as a login makes it


def as_ordinary_user(function):
    """As we are, if that is one."""

    def run():
        if os.geteuid() == 0:
            become_nobody()
        function()

    in_fork(run)


@pytest.mark.core
@every_way
@every_isolation
def test_required_refuses(kinds, way):
    skip_if_forced(way, kinds)

    def run():
        before = open_fds()
        for extra in ({}, {"returnproc": True}, {"returnpid": True}, {"pre_exec": int}):
            with pytest.raises(PermissionError) as caught, sandbox(way, kinds) as keywords:
                spawn("true", **keywords, **extra)
            assert isinstance(caught.value, SpawnError)
            assert caught.value.stage is Stage.NAMESPACES
            assert caught.value.errno == errno.EPERM
            assert "CAP_SYS_ADMIN" in str(caught.value)
        assert open_fds() == before
        assert children_of(os.getpid()) == []

    as_ordinary_user(run)


def check_notes(notes, kinds):
    assert {note.stage for note in notes} == {Stage.NAMESPACES}
    for note in notes:
        assert isinstance(note.stage, Stage)
        assert note.errno == errno.EPERM
        assert str(note) == note.message
        assert note.stage.name in note.message and "CAP_SYS_ADMIN" in note.message
    text = " ".join(note.message for note in notes)
    for kind in kinds:
        assert kind in text


@pytest.mark.core
@every_way
@every_isolation
def test_best_effort_runs_with_notes_and_one_warning(probe, kinds, way):
    skip_if_forced(way, kinds)

    def run():
        plain = probe.report()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if way == "one-shot":
                path = probe.report_path()
                command = [probe.program, path]
                keywords = {**unshare_keywords(kinds), "isolation": "best-effort"}
                process = spawn(command, returnproc=True, **keywords)
                assert process.wait() == 0
                notes, report = process.notes, probe.read(path)
            else:
                with Namespaces(
                    **dict.fromkeys(kinds, True), isolation="best-effort"
                ) as namespaces:
                    notes, report = namespaces.notes, probe.report(namespaces=namespaces)
        assert [(one.category, one.filename) for one in caught] == [(IsolationWarning, __file__)]
        assert all(note.message in str(caught[0].message) for note in notes)
        check_notes(notes, kinds)
        # In none of them, not in half of them.
        assert report["namespaces"] == plain["namespaces"]
        assert report["hostname"] == plain["hostname"]
        assert report["addresses"] == plain["addresses"]

    as_ordinary_user(run)


@pytest.mark.core
def test_every_mode_warns_once():
    def run():
        modes = ({}, {"returnpid": True}, {"returnproc": True}, {"pre_exec": int})
        for extra in (*modes, {"logfile": "/dev/null"}):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = spawn("true", unshare_net=True, isolation="best-effort", **extra)
            assert [(one.category, one.filename) for one in caught] == [
                (IsolationWarning, __file__)
            ]
            if "returnpid" in extra:
                os.waitpid(result[0], 0)
            elif "returnproc" in extra:
                assert result.wait() == 0
            else:
                assert result == 0

    as_ordinary_user(run)


@pytest.mark.core
@needs_pid_namespaces
def test_a_warning_that_is_an_error_leaves_nothing():
    def run():
        before = open_fds()
        for extra in ({}, {"returnproc": True}, {"returnpid": True}):
            with warnings.catch_warnings():
                warnings.simplefilter("error", IsolationWarning)
                with pytest.raises(IsolationWarning):
                    spawn(["sleep", "5"], unshare_ipc=True, isolation="best-effort", **extra)
                with pytest.raises(IsolationWarning):
                    Namespaces(ipc=True, isolation="best-effort")
            assert children_of(os.getpid()) == []
            assert open_fds() == before

    as_ordinary_user(run)


@pytest.mark.core
def test_best_effort_tolerates_nothing_later():
    def run():
        warnings.simplefilter("ignore", IsolationWarning)
        for keywords, stage in [
            ({"fd_pipes": {0: 999}}, Stage.FDS),
            ({"cwd": "/nonexistent"}, Stage.CHDIR),
            ({"uid": 0}, Stage.UID),
            ({"mycommand": "/nonexistent"}, Stage.EXEC),
        ]:
            with pytest.raises(SpawnError) as caught:
                spawn(
                    **{"mycommand": "true", **unshare_keywords(KINDS), **keywords},
                    isolation="best-effort",
                )
            assert caught.value.stage is stage

    as_ordinary_user(run)


# ---- limits ----


def in_user_namespace(function):
    """Root of a user namespace of its own, whose limits are its own, too."""

    def run():
        ids = os.geteuid(), os.getegid()
        if libc.unshare(NEWUSER | NEWNS) != 0:
            pytest.skip("no user namespaces here")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {ids[0]} 1")
        Path("/proc/self/gid_map").write_text(f"0 {ids[1]} 1")
        function()

    in_fork(run)


LIMITS = {"net": ("net", "net"), "ipc": ("ipc", "ipc"), "mount": ("mnt", "mnt")}
LIMITS |= {"pid": ("pid", "pid"), "uts": ("uts", "net")}


@pytest.mark.core
@needs_pid_namespaces
@every_way
@pytest.mark.parametrize("limited", LIMITS)
def test_limits(probe, limited, way):
    """max_*_namespaces: the text names the file; best effort leaves out this one only."""
    kind = "net" if limited == "uts" else limited
    file = f"max_{LIMITS[limited][0]}_namespaces"

    def run():
        plain = probe.report()
        with sandbox(way, KINDS) as keywords:
            assert changed(plain, probe.report(**keywords)) == changed_namespaces(KINDS)
        try:
            Path(f"/proc/sys/user/{file}").write_text("0")
        except OSError:
            pytest.skip("limits cannot be set here")
        for asked in ((kind,), KINDS):
            with pytest.raises(SpawnError) as caught, sandbox(way, asked) as keywords:
                spawn("true", **keywords)
            assert (caught.value.stage, caught.value.errno) == (Stage.NAMESPACES, errno.ENOSPC)
            assert file in str(caught.value)
        warnings.simplefilter("ignore", IsolationWarning)
        best = {"isolation": "best-effort"}
        with sandbox(way, KINDS, **best) as keywords:
            report = probe.report(**keywords)
        gone = {"mount": {"mnt", "pid"}, "uts": {"uts"}}.get(limited, {LIMITS[limited][0]})
        assert changed(plain, report) == changed_namespaces(KINDS) - gone

    in_user_namespace(run)


def changed(plain, report):
    return {
        name for name, inode in report["namespaces"].items() if inode != plain["namespaces"][name]
    }


# ---- seccomp ----

REPORTS = """
import contextlib, json, os, sys, warnings
sys.path.insert(0, sys.argv[1])
from conftest import Probe
from pathlib import Path
from instruments.isolation import COMBINATIONS, WAYS, children_of, sandbox
from spawnhelper import SpawnError, spawn

warnings.simplefilter("ignore")
probe = Probe(Path(sys.argv[2]), Path(sys.argv[2]).parent)
fds = set(os.listdir("/proc/self/fd"))
results = [["plain", [], "ran", probe.report(), []]]
for way in WAYS:
    for kinds in COMBINATIONS[1:]:
        more = {"isolation": sys.argv[3]}
        try:
            with sandbox(way, kinds, **more) as keywords:
                path = probe.report_path()
                process = spawn([probe.program, path], returnproc=True, **keywords)
                assert process.wait() == 0
                notes = [note.stage.name for note in process.notes]
                if way == "reused":  # a command lacks what its set lacks
                    assert process.notes == keywords["namespaces"].notes
            results.append([way, kinds, "ran", probe.read(path), notes])
        except SpawnError as error:
            results.append([way, kinds, "refused", error.stage.name, str(error)])
        assert set(os.listdir("/proc/self/fd")) == fds, (way, kinds, os.listdir("/proc/self/fd"))
        assert children_of(os.getpid()) == []
print(json.dumps(results))
"""


def reports(deny, probe, denied, error="EPERM", policy="required"):
    """What became of all combinations on a shared host with these calls denied."""
    command = [sys.executable, "-c", REPORTS, str(HERE), str(probe.program), policy]
    if denied:
        command = [str(deny), str(getattr(errno, error)), denied, *command]
    command = ["unshare", "-m", "--propagation", "shared", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    plain, *rest = json.loads(done.stdout)
    return plain[3], [(way, tuple(kinds), *what) for way, kinds, *what in rest]


def check_ran(plain, report, kinds):
    """As isolated as asked, in every respect that the command can see."""
    assert changed(plain, report) == changed_namespaces(kinds)
    if {"mount", "pid"} & set(kinds):
        fields = {field.partition(":")[0] for field in report["propagation"].split()}
        assert fields == {"master"}
    if "pid" in kinds:
        assert report["proc_is_own"] and report["ppid"] == 0
        assert sorted(report["processes"]) == [1, report["pid"]]
        assert report["sid"] == report["pid"]
    if "net" in kinds:
        assert report["hostname"] == "localhost"
        if report["network_known"]:
            assert {entry[0] for entry in report["addresses"]} == {"lo"}
            assert report["interfaces"]["lo"] == 9


# denied -> the stage at which (way, kinds) is refused; None: another way is found
REFUSALS = {
    "unshare": lambda way, kinds: None,
    "setns": lambda way, kinds: "NAMESPACES" if way == "reused" else None,
    "mount": lambda way, kinds: "PROPAGATION" if {"mount", "pid"} & set(kinds) else None,
    NETLINK: lambda way, kinds: None,
    "sethostname": lambda way, kinds: "HOSTNAME" if "net" in kinds else None,
    "clone3": lambda way, kinds: None,
    "pidfd_open": lambda way, kinds: None,
}


@needs_isolation
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("denied", ["", *REFUSALS, "clone3,unshare", "unshare,setns"])
def test_seccomp(deny, probe, denied, error):
    """The other way, or a refusal that names its stage and its cause; never less than asked."""
    plain, found = reports(deny, probe, denied, error)
    assert len(found) == 30
    for way, kinds, outcome, what, why in found:
        if outcome == "ran":
            check_ran(plain, what, kinds)
        else:
            assert what in ("CLONE", "NAMESPACES", "PROPAGATION", "PROC", "HOSTNAME", "LOOPBACK")
            assert "(" in why, why
        if denied in REFUSALS and not (denied == "pidfd_open" and outcome == "refused"):
            stage = REFUSALS[denied](way, kinds)
            assert (outcome, what if outcome == "refused" else None) == (
                ("ran", None) if stage is None else ("refused", stage)
            ), (way, kinds, what, why)


@needs_isolation
@pytest.mark.parametrize("denied", ["mount", "sethostname", "setns", "unshare"])
def test_refusals_name_seccomp(deny, probe, denied):
    _, found = reports(deny, probe, denied)
    refused = [why for _, _, outcome, _, why in found if outcome == "refused"]
    assert all("seccomp" in why for why in refused), refused
    assert refused or denied == "unshare"


@needs_isolation
@pytest.mark.parametrize("denied", ["mount", "sethostname", "unshare,clone3,setns"])
def test_best_effort_under_seccomp(deny, probe, denied):
    """What the table tolerates is noted; what is not noted is had."""
    plain, found = reports(deny, probe, denied, policy="best-effort")
    for way, kinds, outcome, what, notes in found:
        if outcome == "refused":
            assert what not in ("CGROUP", "HOSTNAME", "LOOPBACK"), (way, kinds, what, notes)
            assert what in ("PROC", "CLONE") or "pid" in kinds or way == "reused", (kinds, what)
            continue
        if "NAMESPACES" not in notes:
            assert changed(plain, what) == changed_namespaces(kinds)
        if "HOSTNAME" not in notes and "NAMESPACES" not in notes and "net" in kinds:
            assert what["hostname"] == "localhost"
        if {"PROPAGATION", "NAMESPACES"}.isdisjoint(notes) and {"mount", "pid"} & set(kinds):
            assert what["propagation"].startswith("master")
        assert set(notes) <= {stage.name for stage in TOLERATED}
    if denied == "sethostname":
        for way, kinds, _, _, notes in found:
            assert notes == (["HOSTNAME"] if "net" in kinds else []), (way, kinds, notes)


FALLBACK = """
import errno, fcntl, socket, struct
with socket.socket() as any:
    flags = struct.unpack("16sh", fcntl.ioctl(any, 0x8913, struct.pack("16sh", b"lo", 0)))[1]
    assert flags & 1, flags  # IFF_UP
    any.bind(("127.0.0.1", 0))
    any.listen()
    with socket.create_connection(any.getsockname(), 5):
        pass
"""


@needs_isolation
def test_the_loopback_works_without_netlink(deny):
    program = f"""
import sys
from spawnhelper import Namespaces, spawn
command = [sys.executable, "-c", {FALLBACK!r}]
assert spawn(command, unshare_net=True) == 0
with Namespaces(net=True) as namespaces:
    assert spawn(command, namespaces=namespaces) == 0
"""
    command = [str(deny), str(errno.EPERM), NETLINK, sys.executable, "-c", program]
    subprocess.run(command, check=True, timeout=60)


@needs_isolation
def test_the_launcher_denies_netlink_only(deny):
    """The seeded case."""
    program = "import socket; socket.socket().close(); socket.socket(socket.AF_NETLINK)"
    command = [str(deny), str(errno.EPERM), NETLINK, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    assert done.stderr.count("line 1") == 1
