"""uid, gid, groups, umask: 0 and [] are values, None is unset."""

import ctypes
import itertools
import os
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import HERE, NOBODY, compile_c, needs_root
from spawnhelper import SpawnError, Stage, spawn

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
libc = ctypes.CDLL(None)


@pytest.fixture
def groups_of_root():
    before = os.getgroups()
    os.setgroups([0, 4, 27])
    yield [0, 4, 27]
    os.setgroups(before)


@needs_root
@pytest.mark.parametrize("how", ["plain", "pre_exec"])
def test_table(probe, groups_of_root, how):
    extra = {"pre_exec": lambda: None} if how == "pre_exec" else {}
    ids = [None, 0, 1234]
    for uid, gid, groups in itertools.product(ids, ids, [None, [], [0], [1234, 5]]):
        changes = probe.changes(uid=uid, gid=gid, groups=groups, **extra)
        expected = {}
        if uid == 1234:
            expected["uids"] = [1234] * 3
            expected["CapEff"] = "0" * 16
        if gid == 1234:
            expected["gids"] = [1234] * 3
        if groups is not None:
            expected["groups"] = sorted(groups)
        assert changes == expected, (uid, gid, groups)


@needs_root
def test_lazy_proxies(probe):
    class Proxy:
        def __init__(self, value):
            self.value = value

        def __index__(self):
            return self.value

    changes = probe.changes(uid=Proxy(7), gid=Proxy(8), groups=(Proxy(n) for n in (9, 10)))
    assert (changes["uids"], changes["gids"], changes["groups"]) == ([7] * 3, [8] * 3, [9, 10])


@pytest.mark.core
@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_umask(probe, umask):
    before = os.umask(0o027)
    try:
        assert probe.changes(umask=umask) == {"umask": umask}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.core
@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"uid": -1}, ValueError),
        ({"uid": 2**32 - 1}, ValueError),
        ({"uid": "nobody"}, TypeError),
        ({"uid": 1.0}, TypeError),
        ({"gid": -1}, ValueError),
        ({"gid": 2**32}, ValueError),
        ({"groups": 5}, TypeError),
        ({"groups": ["x"]}, TypeError),
        ({"groups": [-1]}, ValueError),
        ({"groups": [1] * 65537}, ValueError),
        ({"umask": -1}, ValueError),
        ({"umask": 0o1000}, ValueError),
        ({"umask": "022"}, TypeError),
    ],
)
def test_bad_values_are_refused(keywords, error):
    with pytest.raises(error, match=next(iter(keywords)) if error is ValueError else None):
        spawn("true", **keywords)


@needs_root
def test_largest_id(probe):
    changes = probe.changes(uid=2**32 - 2, gid=2**32 - 2)
    assert (changes["uids"], changes["gids"]) == ([2**32 - 2] * 3, [2**32 - 2] * 3)


@pytest.mark.core
@pytest.mark.skipif(os.geteuid() == 0, reason="needs an ordinary user")
@pytest.mark.parametrize(
    ("keywords", "stage"),
    [({"uid": 0}, Stage.UID), ({"gid": 0}, Stage.GID), ({"groups": []}, Stage.GROUPS)],
)
def test_ordinary_users_are_told(keywords, stage):
    with pytest.raises(PermissionError, match="CAP_SET") as caught:
        spawn("true", **keywords)
    assert caught.value.stage is stage


@needs_root
def test_without_capabilities(probe):
    """Every id stage is fatal, and named."""
    for keywords, stage in [
        ({"uid": 5}, Stage.UID),
        ({"gid": 5}, Stage.GID),
        ({"groups": []}, Stage.GROUPS),
    ]:
        code = f"""
import sys, spawnhelper
try:
    spawnhelper.spawn("true", **{keywords!r})
except PermissionError as error:
    sys.exit(100 + error.stage)
"""
        import sys

        assert spawn([sys.executable, "-c", code], uid=os.geteuid(), gid=0) == 0
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        status = spawn([*drop, sys.executable, "-c", code])
        assert status == 100 + stage


@needs_root
def test_parent_stays_dumpable_and_dumpable_children_are_not_readable(probe):
    assert libc.prctl(PR_GET_DUMPABLE) == 1
    for _ in range(20):
        assert spawn("true", uid=NOBODY, gid=NOBODY, groups=[]) == 0
        with pytest.raises(SpawnError):
            spawn("/nonexistent", uid=NOBODY)
        assert libc.prctl(PR_GET_DUMPABLE) == 1


@needs_root
def test_the_new_user_cannot_read_our_memory(public_dir):
    """vfork ends before exec has left our memory: until then the flag must stay cleared."""
    program = compile_c(HERE / "instruments" / "thief.c", public_dir / "thief")
    secret = ctypes.create_string_buffer(b"the secret of the parent")
    command = [str(program), hex(ctypes.addressof(secret)), "4"]
    thief = subprocess.Popen(command, user=NOBODY, group=NOBODY, extra_groups=[], stdout=-1)
    while thief.poll() is None:
        assert spawn("/bin/true", uid=NOBODY, gid=NOBODY, groups=[]) == 0
    read, refused = map(int, thief.communicate()[0].split())
    assert read == 0
    assert refused > 0  # it found our children


@needs_root
def test_an_undumpable_parent_stays_so():
    libc.prctl(PR_SET_DUMPABLE, 0)
    try:
        assert spawn("true", uid=NOBODY) == 0
        assert libc.prctl(PR_GET_DUMPABLE) == 0
    finally:
        libc.prctl(PR_SET_DUMPABLE, 1)


@needs_root
def test_threads_changing_ids_at_once(probe):
    failures = []

    def work(uid):
        command = ["/bin/sh", "-c", f"test $(id -u) = {uid}"]
        failures.extend(uid for _ in range(100) if spawn(command, uid=uid, groups=[]) != 0)

    threads = [threading.Thread(target=work, args=(1000 + n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert libc.prctl(PR_GET_DUMPABLE) == 1


@needs_root
def test_suid_dumpable_1_uses_own_memory(probe):
    """Then an id change would leave shared memory readable by the new user."""
    setting = Path("/proc/sys/fs/suid_dumpable")
    before = setting.read_text()
    try:
        setting.write_text("1")
    except OSError as error:
        pytest.skip(f"fs.suid_dumpable cannot be changed: {error}")
    try:
        changes = probe.changes(uid=5, gid=6, groups=[7], cwd="/", umask=0)
        assert (changes["uids"], changes["gids"], changes["groups"]) == ([5] * 3, [6] * 3, [7])
        for keywords, stage in [
            ({"cwd": "/nonexistent"}, Stage.CHDIR),
            ({"fd_pipes": {700000: 0}}, Stage.FDS),
        ]:
            with pytest.raises(SpawnError) as caught:
                spawn("true", uid=5, **keywords)
            assert caught.value.stage is stage
        with pytest.raises(FileNotFoundError):
            spawn("/nonexistent", uid=5)
    finally:
        setting.write_text(before)
