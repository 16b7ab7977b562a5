"""User namespaces: rights for an ordinary user, and none over us."""

import ctypes
import os
import subprocess

import pytest

from conftest import HERE, NOBODY, compile_c, needs_root
from instruments.isolation import needs_pid_namespaces, skip_if_forced
from spawnhelper import Namespaces, SpawnError, Stage, spawn
from test_isolation import check_report, every_combination

EVERYTHING = {"unshare_net": True, "unshare_ipc": True, "unshare_mount": True, "unshare_pid": True}
libc = ctypes.CDLL(None)
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4


def allowed() -> bool:
    return (
        subprocess.run(["unshare", "-U", "true"], capture_output=True, check=False).returncode == 0
    )


needs_user_namespaces = pytest.mark.skipif(not allowed(), reason="user namespaces are refused here")
pytestmark = needs_user_namespaces


@pytest.mark.core
@pytest.mark.parametrize(
    "isolation",
    [{}, pytest.param(EVERYTHING, marks=needs_pid_namespaces)],
    ids=["alone", "everything"],
)
def test_the_caller_is_itself(probe, isolation):
    plain, inside = probe.report(), probe.report(unshare_user=True, **isolation)
    uid, gid = os.geteuid(), os.getegid()
    assert inside["uids"] == [uid] * 3
    assert inside["gids"] == [gid] * 3
    assert inside["namespaces"]["user"] not in (0, plain["namespaces"]["user"])


@pytest.mark.core
@pytest.mark.parametrize(
    "isolation",
    [{}, pytest.param(EVERYTHING, marks=needs_pid_namespaces)],
    ids=["alone", "everything"],
)
def test_the_caller_is_root_inside(probe, isolation):
    inside = probe.report(unshare_user="root", **isolation)
    assert inside["uids"] == inside["gids"] == [0, 0, 0]
    assert int(inside["CapEff"], 16) & 1 << 21


@pytest.mark.core
@pytest.mark.parametrize("way", ["one-shot", "reused"])
@every_combination
def test_table(probe, kinds, way):
    """Isolation's table of combinations, for whoever runs the tests."""
    skip_if_forced(way, kinds)
    plain = probe.report()
    if way == "one-shot":
        report = probe.report(unshare_user=True, **{f"unshare_{kind}": True for kind in kinds})
    else:
        with Namespaces(user=True, **dict.fromkeys(kinds, True)) as box:
            probe.report(namespaces=box)
            report = probe.report(namespaces=box)
    assert report["namespaces"]["user"] not in (0, plain["namespaces"]["user"])
    plain["namespaces"]["user"] = report["namespaces"]["user"]
    if os.geteuid() == 0:  # root has all of them over its own namespaces, whatever it had before
        plain["CapEff"] = report["CapEff"]
    assert bool(int(report["CapEff"], 16)) == (os.geteuid() == 0)
    plain["groups"] = report["groups"]  # those that have no mapping inside show as another
    check_report(plain, report, kinds, way)


@pytest.mark.core
@needs_pid_namespaces
def test_a_set_with_a_user_namespace(probe):
    with Namespaces(user=True, net=True, ipc=True, pid=True) as box:
        first, second = probe.report(namespaces=box), probe.report(namespaces=box)
    assert first["namespaces"] == second["namespaces"]
    plain = probe.report()
    for name in ("user", "net", "ipc", "mnt", "pid", "uts"):
        assert first["namespaces"][name] != plain["namespaces"][name]
    assert first["cwd"] == plain["cwd"]


@pytest.mark.core
@pytest.mark.parametrize("asked", [{"uid": 12345}, {"gid": 12345}, {"groups": [12345]}])
def test_other_ids_do_not_exist_inside(asked):
    (keyword,) = asked
    with pytest.raises(SpawnError) as caught:
        spawn("true", unshare_user=True, **asked)
    assert caught.value.stage is Stage[keyword.upper()]


@pytest.mark.core
def test_the_words_that_user_knows():
    with pytest.raises(ValueError, match="user"):
        spawn("true", unshare_user="me")
    with pytest.raises(ValueError, match="user"):
        Namespaces(user="me")


@pytest.mark.core
@needs_pid_namespaces
def test_a_fork_of_python_cannot_enter_a_user_namespace_for_its_children():
    with pytest.raises(ValueError, match="pre_exec"):
        spawn("true", unshare_user=True, unshare_pid=True, pre_exec=print)
    with Namespaces(user=True, pid=True) as box, pytest.raises(ValueError, match="pre_exec"):
        spawn("true", namespaces=box, pre_exec=print)


@pytest.mark.core
@pytest.mark.parametrize("keywords", [{"unshare_user": "root", **EVERYTHING}, {"entered": True}])
@needs_pid_namespaces
def test_the_dumpable_flag_is_kept(keywords):
    before = libc.prctl(PR_GET_DUMPABLE)
    if "entered" in keywords:
        with Namespaces(user="root", pid=True) as box:
            assert spawn("true", namespaces=box) == 0
    else:
        assert spawn("true", **keywords) == 0
    assert libc.prctl(PR_GET_DUMPABLE) == before


@needs_root
@needs_pid_namespaces
def test_the_root_of_a_set_cannot_read_our_memory(public_dir):
    """Whoever enters a user namespace is within reach of its root (ptrace(2))."""
    program = compile_c(HERE / "instruments" / "thief.c", public_dir / "inner-thief")
    secret = ctypes.create_string_buffer(b"the secret of the parent")
    output = public_dir / "inner-thief.out"
    command = [str(program), hex(ctypes.addressof(secret)), "4"]
    with Namespaces(user="root", pid=True) as box, output.open("w+") as file:
        thief = spawn(command, namespaces=box, fd_pipes={1: file.fileno()}, returnproc=True)
        while thief.poll() is None:
            assert spawn("/bin/true", namespaces=box) == 0
        file.seek(0)
        read, refused = map(int, file.read().split())
    assert read == 0
    assert refused > 0  # it found our children


@needs_root
@needs_pid_namespaces
def test_everything_as_an_ordinary_user(probe):
    """Ids are dropped for good first: what remains are the rights of that user."""
    code = (
        "import ctypes, os, sys, warnings, linecache\n"
        "from spawnhelper import Namespaces, spawn\n"
        f"os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        f"everything = {EVERYTHING!r}\n"
        "for user in (True, 'root'):\n"
        "    assert spawn(['/bin/sh', '-c', 'exit 3'], unshare_user=user, **everything) == 3\n"
        "    with Namespaces(user=user, net=True, ipc=True, pid=True) as box:\n"
        "        assert spawn(['/bin/sh', '-c', 'exit 4'], namespaces=box) == 4\n"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, cwd="/")
    assert done.returncode == 0
