"""What a command finds in its namespaces: all sixteen combinations, one-shot and reused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HERE, NOBODY, Probe, compile_c
from instruments.isolation import (
    COMBINATIONS,
    KINDS,
    MS_PRIVATE,
    WAYS,
    changed_namespaces,
    drop_to,
    in_chroot,
    in_fork,
    in_host,
    make_public,
    mount,
    mountinfo,
    needs_isolation,
    needs_pid_namespaces,
    open_gate,
    reap_helpers,
    remove_tree,
    sandbox,
    unmount,
)
from spawnhelper import SpawnError, Stage, spawn

SEPARATE = [kinds for kinds in COMBINATIONS if {"mount", "pid"} & set(kinds)]
HAS_IPV6 = Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""
every_combination = pytest.mark.parametrize("kinds", COMBINATIONS, ids="+".join)
every_way = pytest.mark.parametrize("way", WAYS)

LOOPBACK = {("lo", "127.0.0.1", 8), ("lo", "10.0.0.1", 8)}
if HAS_IPV6:
    LOOPBACK |= {("lo", "::1", 128), ("lo", "fd::1", 8)}
UP, LOOPBACK_FLAG, SCOPE_GLOBAL = 1, 8, 0


@pytest.fixture(scope="session")
def static_probe(public_dir):
    """For roots without a C library."""
    program = compile_c(HERE / "probe.c", public_dir / "static-probe", "-static")
    program.chmod(0o755)
    return Probe(program, public_dir)


@pytest.fixture
def workplace():
    """A directory below a path that everybody may enter, for mounts and chroots."""
    path = make_public("work")
    yield path
    remove_tree(path)


def check_network(report):
    assert report["network_known"]
    assert report["interfaces"]["lo"] == UP | LOOPBACK_FLAG
    assert not any(flags & UP for name, flags in report["interfaces"].items() if name != "lo")
    assert {tuple(address[:3]) for address in report["addresses"]} == LOOPBACK
    for interface, address, _prefix, scope, flags in report["addresses"]:
        assert flags == 0, (interface, address)  # usable at once: not tentative
        if address in ("10.0.0.1", "fd::1"):  # or AI_ADDRCONFIG would not count them
            assert scope == SCOPE_GLOBAL
    assert report["hostname"] == "localhost"


def check_mounts(plain, report, kinds):
    """The same mounts; copies of them, if asked for; and one more /proc."""
    ours = [mount[2] for mount in plain["mounts"]]
    theirs = [mount[2] for mount in report["mounts"]]
    if "pid" in kinds:
        theirs.remove("/proc")
    assert sorted(theirs) == sorted(ours)
    same = {mount[0] for mount in plain["mounts"]} & {mount[0] for mount in report["mounts"]}
    assert bool(same) == (not {"mount", "pid"} & set(kinds))


def check_processes(report, kinds, way):
    assert report["proc_is_own"]
    if "pid" not in kinds:
        return
    assert report["ppid"] == 0
    assert report["sid"] == report["pgid"] == report["pid"]
    assert sorted(report["processes"]) == [1, report["pid"]]
    if way == "one-shot":
        assert report["pid"] == 2


def check_report(plain, report, kinds, way):
    """Everything is as asked for, and nothing else differs from the plain command."""
    changed = {
        name
        for name, inode in report["namespaces"].items()
        if inode != plain["namespaces"][name] or inode == 0
    }
    assert changed == changed_namespaces(kinds)
    allowed = {"namespaces"}
    if "net" in kinds:
        check_network(report)
        allowed |= {"hostname", "interfaces", "addresses"}
    if "pid" in kinds:
        allowed |= {"ppid", "pgid", "sid", "pid1"}
    if {"mount", "pid"} & set(kinds):
        allowed |= {"propagation"}
    check_mounts(plain, report, kinds)
    check_processes(report, kinds, way)
    assert plain.keys() == report.keys()
    different = {
        key
        for key, value in report.items()
        if key not in Probe.CHANGING and value != plain[key] and key not in allowed
    }
    assert not different, {key: (plain[key], report[key]) for key in different}


def check_slave(report, kinds):
    """The host's mounts are shared: ours stay shared with it, or receive only."""
    fields = {field.partition(":")[0] for field in report["propagation"].split()}
    assert fields == ({"master"} if {"mount", "pid"} & set(kinds) else {"shared"})


# ---- the table ----


@pytest.mark.core
@needs_pid_namespaces
@every_way
@every_combination
def test_table(probe, kinds, way):
    """On a host with a shared `/`; an ordinary user makes one in a user namespace."""

    def run():
        plain = probe.report()
        with sandbox(way, kinds) as keywords:
            for _ in range(2 if way == "reused" else 1):
                report = probe.report(**keywords)
                check_report(plain, report, kinds, way)
                check_slave(report, kinds)

    in_host(run)


@needs_isolation
@every_way
@every_combination
def test_table_on_this_host(probe, kinds, way):
    plain = probe.report()
    with sandbox(way, kinds) as keywords:
        check_report(plain, probe.report(**keywords), kinds, way)


@needs_isolation
@every_way
@every_combination
def test_keywords_mean_what_they_mean_without(probe, kinds, way, files, tmp_path_factory):
    """cwd, umask, env, ids, fd_pipes and close_fds, all at once."""
    a, b = files(2)
    keywords = {
        "uid": 1234, "gid": 2345, "groups": [7, 8], "umask": 0o31, "cwd": "/usr/bin",
        "env": {"ONLY": "this"}, "fd_pipes": {0: a, a: b, b: a, 9: a}, "close_fds": True,
        "opt_name": "zero",
    }  # fmt: skip
    plain = probe.report(**keywords)
    with sandbox(way, kinds, **keywords) as isolated:
        report = probe.report(**isolated)
    check_report(plain, report, kinds, way)
    assert report["argv"] == plain["argv"] == ["zero"]
    assert report["uids"] == [1234] * 3 and report["CapEff"].strip("0") == ""


@needs_isolation
@every_way
@every_combination
def test_pre_exec(probe, kinds, way, tmp_path):
    """The callable finds the namespaces already there."""

    def look():
        os.nice(3)
        seen = {
            name: os.stat(f"/proc/self/ns/{name}").st_ino for name in os.listdir("/proc/self/ns")
        }
        os.write(end, json.dumps(seen).encode())

    plain = probe.report(pre_exec=lambda: os.nice(3))
    start, end = os.pipe()
    try:
        with sandbox(way, kinds) as keywords:
            report = probe.report(pre_exec=look, **keywords)
        seen = json.loads(os.read(start, 65536))
    finally:
        os.close(start)
        os.close(end)
    check_report(plain, report, kinds, way)
    assert {name: seen[name] for name in report["namespaces"]} == report["namespaces"]


@needs_isolation
@every_way
@pytest.mark.parametrize("kinds", [("net",), KINDS], ids="+".join)
def test_logfile(kinds, way, tmp_path, files):
    log = tmp_path / "log"
    (fd,) = files(1)
    script = "echo out; echo err >&2; cat /proc/sys/kernel/hostname"
    fds = {0: 0, 1: fd, 2: fd}
    with sandbox(way, kinds, fd_pipes=fds, logfile=log) as keywords:
        assert spawn(["sh", "-c", script], **keywords) == 0
        assert log.read_bytes() == b"out\nerr\nlocalhost\n"
        process = spawn(["sh", "-c", script], returnproc=True, **keywords)
        assert process.wait() == 0
        assert log.read_bytes() == b"out\nerr\nlocalhost\n" * 2
        copier, pid = spawn(["sh", "-c", script], returnpid=True, **keywords)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert os.waitpid(copier, 0) == (copier, 0)
        assert log.read_bytes() == b"out\nerr\nlocalhost\n" * 3
    reap_helpers()


@needs_isolation
@every_way
@pytest.mark.parametrize("kinds", [("pid",), ("net",)], ids="+".join)
@pytest.mark.parametrize("asked", [None, True, False])
def test_session(probe, kinds, way, asked):
    plain = probe.report()
    with sandbox(way, kinds, start_new_session=asked) as keywords:
        report = probe.report(**keywords)
    if asked or (asked is None and "pid" in kinds):
        assert report["sid"] == report["pgid"] == report["pid"]
    elif "pid" in kinds:
        assert (report["sid"], report["pgid"]) == (0, 0)  # ours, which has no number inside
    else:
        assert (report["sid"], report["pgid"]) == (plain["sid"], plain["pgid"])


@pytest.mark.core
def test_session_without_isolation(probe):
    report = probe.report(start_new_session=True)
    assert report["sid"] == report["pgid"] == report["pid"]
    assert probe.changes(start_new_session=False) == probe.changes(start_new_session=None) == {}


@needs_isolation
def test_kill_0_stays_inside():
    """In a session of its own; the caller's process group would be ended otherwise."""
    assert spawn(["sh", "-c", "kill -TERM 0"], unshare_pid=True) == -15


# ---- network ----

FROM_INSIDE = """
import errno, json, socket, sys
found = {entry[4][0] for entry in socket.getaddrinfo("localhost", 80, flags=socket.AI_ADDRCONFIG)}
results = []
for family, address in json.loads(sys.argv[1]):
    address = address.replace("@", "\\0") if isinstance(address, str) else tuple(address)
    with socket.socket(family) as attempt:
        attempt.settimeout(1)
        try:
            results.append(attempt.connect_ex(address))
        except TimeoutError:
            results.append(errno.ETIMEDOUT)
print(json.dumps([sorted(found), results]))
"""


@needs_isolation
@every_way
def test_nothing_outside_is_reachable(probe, way, files):
    """By address, by the loopback's addresses, by abstract socket; localhost is found."""
    outside = [entry[1] for entry in probe.report()["addresses"] if entry[0] != "lo"]
    (output,) = files(1)

    def attempts(**keywords):
        os.ftruncate(output, 0)
        os.lseek(output, 0, os.SEEK_SET)
        command = [sys.executable, "-c", FROM_INSIDE, json.dumps(addresses)]
        assert spawn(command, fd_pipes={0: 0, 1: output, 2: 2}, **keywords) == 0
        return json.loads(os.pread(output, 65536, 0))

    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("0.0.0.0", 0))
        tcp.listen()
        name = f"spawnhelper-test-{os.getpid()}"
        unix.bind(f"\0{name}")
        unix.listen()
        port = tcp.getsockname()[1]
        here = [(int(socket.AF_INET), ("127.0.0.1", port)), (int(socket.AF_UNIX), f"@{name}")]
        here += [(int(socket.AF_INET), (one, port)) for one in outside if ":" not in one]
        away = [(int(socket.AF_INET), ("198.51.100.1", 80))]
        if HAS_IPV6:
            away.append((int(socket.AF_INET6), ("2001:db8::1", 80)))
        addresses = here
        assert attempts()[1] == [0] * len(here)  # the seeded case: from outside all is reached
        addresses = here + away
        with sandbox(way, ("net",)) as keywords:
            localhost, results = attempts(**keywords)
    assert localhost == (["127.0.0.1", "::1"] if "::1" in localhost else ["127.0.0.1"])
    assert 0 not in results


# ---- mounts ----


@needs_isolation
def test_the_host_of_these_tests_is_shared(workplace):
    """The seeded case: with propagation left alone a mount inside does reach it."""

    def run():
        before = mountinfo()
        command = ["unshare", "-m", "--propagation", "unchanged", "mount", "-t", "tmpfs", "x"]
        subprocess.run([*command, workplace], check=True)
        assert mountinfo() != before
        unmount(workplace)
        assert mountinfo() == before

    in_host(run)


MOUNTS_INSIDE = """
mount -t tmpfs inside {inside} && touch {inside}/file && echo x >&{ready} || exit 1
read x <&{hold}
test -e {late}/file
"""


@needs_isolation
@every_way
@pytest.mark.parametrize("kinds", SEPARATE, ids="+".join)
def test_mounts_stay_inside_and_the_hosts_arrive(kinds, way, workplace):
    inside, late = workplace / "inside", workplace / "late"
    inside.mkdir()
    late.mkdir()

    def run():
        before = mountinfo()
        with sandbox(way, kinds) as keywords, open_gate() as gate:
            script = MOUNTS_INSIDE.format(
                inside=inside, late=late, ready=gate.ready, hold=gate.hold
            )
            process = spawn(["bash", "-c", script], returnproc=True, **keywords)
            gate.await_ready()
            assert mountinfo() == before
            assert not (inside / "file").exists()
            mount("late", late, "tmpfs")
            (late / "file").touch()
            gate.release()
            assert process.wait() == 0
            unmount(late)
            assert mountinfo() == before

    in_host(run)


# ---- chroot ----


@needs_isolation
@every_way
@every_combination
@pytest.mark.parametrize("mount_point", [False, True], ids=["directory", "mount-point"])
def test_in_a_chroot(probe, kinds, way, mount_point, workplace):
    """It is neither left nor mistaken: root, cwd and mounts are the caller's."""

    def run():
        os.chdir("/usr/bin")
        plain = probe.report()
        before = mountinfo()
        with sandbox(way, kinds) as keywords:
            report = probe.report(**keywords)
            check_report(plain, report, kinds, way)
            assert report["root"] == plain["root"]
            assert report["cwd"] == "/usr/bin"
            test = "test -e /chroot-marker -a -e /../chroot-marker -a -e ../../chroot-marker"
            assert spawn(["sh", "-c", test], **keywords) == 0
            if {"mount", "pid"} & set(kinds):
                assert spawn(["mount", "-t", "tmpfs", "inside", "/media"], **keywords) == 0
                assert mountinfo() == before

    (workplace / "root").mkdir()
    in_chroot(workplace / "root", mount_point, run)


@needs_isolation
@every_way
def test_relative_working_directories(way, workplace):
    """Of a command in a chroot, and of one whose directory exists in the chroot only."""
    (workplace / "root" / "only-here" / "below").mkdir(parents=True)

    def run():
        os.chdir("/only-here/below")
        with sandbox(way, ("mount",)) as keywords:
            assert spawn(["sh", "-c", "test $(pwd) = /only-here/below"], **keywords) == 0
            assert spawn(["test", "-d", "below"], cwd="..", **keywords) == 0
            assert spawn(["test", "-d", "below"], cwd="/only-here", **keywords) == 0

    in_chroot(workplace / "root", True, run)


@needs_isolation
@every_way
@pytest.mark.parametrize("kinds", COMBINATIONS[1:], ids="+".join)
def test_a_bare_chroot(static_probe, kinds, way, workplace):
    """Without a C library, and without /proc unless a pid namespace needs it."""
    root = workplace / "root"
    root.mkdir(mode=0o777)

    def run():
        os.link(static_probe.program, root / "probe")
        os.chroot(root)
        os.chdir("/")
        if "pid" in kinds:
            with pytest.raises(FileNotFoundError) as caught, sandbox(way, kinds) as keywords:
                spawn(["/probe", "/report"], **keywords)
            assert caught.value.stage is Stage.PROC
            os.mkdir("/proc")
        with sandbox(way, kinds) as keywords:
            assert spawn(["/probe", "/report"], **keywords) == 0
        report = json.loads(Path("/report").read_text())
        assert report["root"][1] == os.stat("/").st_ino
        assert report["cwd"] == "/"
        if "pid" in kinds:
            assert report["proc_is_own"]
            assert sorted(report["processes"]) == [1, report["pid"]]

    in_host(run)


# ---- fewer rights ----


@needs_isolation
@every_way
@every_combination
def test_root_with_few_capabilities(probe, kinds, way):
    """What exec gives root back, the holder for one, our own process does not have."""

    def run():
        names = ["SYS_ADMIN", "SYS_CHROOT", *(["NET_ADMIN"] if "net" in kinds else [])]
        drop_to(*names)
        plain = probe.report()
        with sandbox(way, kinds) as keywords:
            check_report(plain, probe.report(**keywords), kinds, way)

    in_host(run)


@needs_isolation
@every_way
def test_the_loopback_needs_net_admin(way):
    def run():
        drop_to("SYS_ADMIN", "SYS_CHROOT")
        with (
            pytest.raises(PermissionError, match="CAP_NET_ADMIN") as caught,
            sandbox(way, ("net",)) as keywords,
        ):
            spawn("true", **keywords)
        assert caught.value.stage is Stage.LOOPBACK

    in_host(run)


@needs_isolation
def test_one_shots_need_no_chroot_right(probe):
    def run():
        drop_to("SYS_ADMIN")
        kinds = ("ipc", "mount", "pid")
        plain = probe.report()
        with sandbox("one-shot", kinds) as keywords:
            check_report(plain, probe.report(**keywords), kinds, "one-shot")

    in_host(run)


@needs_isolation
@every_way
def test_a_private_host(probe, way):
    """Where nothing is shared nothing is received, either."""

    def run():
        with sandbox(way, KINDS) as keywords:
            assert probe.report(**keywords)["propagation"] == ""

    in_host(run, MS_PRIVATE)


# ---- working directories ----


@needs_isolation
@every_way
@every_combination
def test_a_deleted_working_directory(kinds, way, tmp_path):
    """The command runs there, or not at all; never elsewhere."""
    place = tmp_path / "gone"

    def run():
        place.mkdir()
        os.chdir(place)
        place.rmdir()
        with sandbox(way, kinds) as keywords:
            try:
                status = spawn(
                    ["sh", "-c", "test ! -e ../gone -a ! -e /proc/self/cwd/."], **keywords
                )
            except SpawnError as error:
                assert error.stage is Stage.CHDIR and way == "reused", error
            else:
                assert status in (0, 1)
                where = 'case $(readlink /proc/self/cwd) in *"(deleted)") exit 0; esac; exit 1'
                assert spawn(["sh", "-c", where], **keywords) == 0

    in_fork(run)


@needs_isolation
@every_way
def test_a_working_directory_that_only_its_owner_may_enter(way, tmp_path, probe):
    """It is entered by us, before the ids change."""
    place = tmp_path / "private"
    place.mkdir(mode=0o700)

    def run():
        os.chdir(place)
        with sandbox(way, ("mount", "pid")) as keywords:
            report = probe.report(uid=NOBODY, gid=NOBODY, groups=[], **keywords)
        plain = probe.report(uid=NOBODY, gid=NOBODY, groups=[])
        assert report["cwd"] == plain["cwd"]

    in_fork(run)
