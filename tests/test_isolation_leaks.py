"""Thousands of sandboxes leave nothing: no mount, process, zombie, descriptor or cgroup member.

SPAWNHELPER_CAMPAIGN=1 runs the full sizes: 1,000 spawns with mounts, eight
threads with 10,000 entries each, and with 2,000 one-shots together.
"""

import os
import threading

import pytest

from conftest import HERE, ROOT, await_threads, compile_c, open_fds
from instruments.isolation import (
    COMBINATIONS,
    KINDS,
    adopt_orphans,
    cgroup_members,
    children_of,
    in_host,
    make_public,
    members,
    mountinfo,
    namespace_of,
    needs_isolation,
    new_cgroup,
    reap_helpers,
    remove_tree,
    sandbox,
    size,
)
from instruments.toolchain import FREESTANDING
from spawnhelper import Namespaces, SpawnError, spawn

pytestmark = needs_isolation

SPAWNS = size(200, 1000)
THREADS = 8
ENTRIES = size(125, 10000)  # of each thread
ONE_SHOTS = size(200, 2000)  # of all together


@pytest.fixture(scope="module")
def ending(public_dir):
    source = HERE / "instruments" / "ending.c"
    return str(compile_c(source, public_dir / "leak-target", *FREESTANDING, f"-I{ROOT / 'csrc'}"))


@pytest.fixture
def workplace():
    path = make_public("leaks")
    yield path
    remove_tree(path)


class Ledger:
    """What there is before; after, the same."""

    def __init__(self):
        adopt_orphans()
        self._before = self._count()

    @staticmethod
    def _count():
        return open_fds(), mountinfo(), children_of(os.getpid()), len(os.listdir("/proc/self/task"))

    def check(self):
        assert self._count() == self._before


LEAVING = "mount -t tmpfs x {place} && touch {place}/file && (sleep 60 & sleep 60 &) && exit 3"


@pytest.mark.parametrize("way", ["one-shot", "reused"])
def test_spawns_that_mount_and_leave_processes(way, workplace, public_dir):
    def run():
        null = os.open(os.devnull, os.O_RDWR)
        fds = dict.fromkeys((0, 1, 2), null)
        command = ["sh", "-c", LEAVING.format(place=workplace)]
        with new_cgroup(None) as cgroup:
            ledger = Ledger()
            for number in range(SPAWNS if way == "one-shot" else SPAWNS // 10):
                kinds = KINDS if number % 10 == 0 else ("mount", "pid")
                with sandbox(way, kinds) as keywords:
                    for _ in range(1 if way == "one-shot" else 10):
                        assert spawn(command, fd_pipes=fds, cgroup=cgroup, **keywords) == 3
                assert cgroup_members(cgroup) == []  # everything is gone when the call returns
            assert list(workplace.iterdir()) == []
            ledger.check()
        os.close(null)

    in_host(run)


@pytest.mark.parametrize("mode", ["returnpid", "returnproc"])
def test_handles_and_pids(mode, ending):
    def run():
        ledger = Ledger()
        for _ in range(SPAWNS):
            started = spawn([ending, "e5"], unshare_pid=True, **{mode: True})
            pid = started[0] if mode == "returnpid" else started.pid
            inside = namespace_of(pid)
            if mode == "returnpid":
                assert os.waitpid(pid, 0) == (pid, 5 << 8)
                # one that is ending, and one or two that wait for the next call
                assert len(children_of(os.getpid())) < 4
            else:
                assert started.wait() == 5
                assert children_of(os.getpid()) == []
                assert inside is None or members(inside) == []
            del inside
        reap_helpers()
        ledger.check()

    in_host(run)


def test_failed_starts(ending, tmp_path):
    """In every combination, in both ways, at every stage that a caller can make fail."""
    failing = [
        {"cwd": "/nonexistent"},
        {"fd_pipes": {0: 999}},
        {"cgroup": tmp_path / "nothing"},
        {"cgroup": tmp_path},
        {"mycommand": "/nonexistent"},
        {"mycommand": "/etc/passwd"},
        {"pre_exec": lambda: 1 / 0},
        {"pre_exec": lambda: os._exit(5)},
        {"pre_exec": lambda: os.kill(os.getpid(), 9)},
    ]

    def run():
        spawn("true")
        ledger = Ledger()
        for kinds in COMBINATIONS:
            for way in ("one-shot", "reused"):
                for failure in failing:
                    with sandbox(way, kinds) as keywords:
                        for extra in ({}, {"returnpid": True}, {"returnproc": True}):
                            with pytest.raises(SpawnError):
                                spawn(**{"mycommand": [ending], **failure, **keywords, **extra})
                ledger.check()

    in_host(run)


def run_threads(work):
    errors = []

    def guarded():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    known = set(os.listdir("/proc/self/task"))
    threads = [threading.Thread(target=guarded) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await_threads(known)
    assert errors == []


@pytest.mark.parametrize("kinds", [("pid",), KINDS], ids="+".join)
def test_threads_that_enter_one_set(kinds, ending):
    def run():
        ledger = Ledger()
        with Namespaces(**dict.fromkeys(kinds, True)) as namespaces:

            def work():
                for number in range(ENTRIES):
                    code = number % 256
                    assert spawn([ending, f"e{code}"], namespaces=namespaces) == code

            run_threads(work)
            assert members(namespace_of(namespaces.pid)) == [namespaces.pid]
            # This thread, and new ones, are where they were.
            assert spawn(["sh", "-c", "test $$ -gt 2 -a $(readlink /proc/self) -gt 2"]) == 0
        ledger.check()

    in_host(run)


@pytest.mark.parametrize("kinds", [("pid",), KINDS], ids="+".join)
def test_threads_with_one_shots(kinds, ending):
    def run():
        ledger = Ledger()

        def work():
            for number in range(ONE_SHOTS // THREADS):
                code = number % 256
                with sandbox("one-shot", kinds) as keywords:
                    assert spawn([ending, f"e{code}"], **keywords) == code

        run_threads(work)
        ledger.check()

    in_host(run)


def test_threads_with_everything(ending):
    """Plain starts, id changes, one-shots, entries and pre_exec-free failures beside each other."""

    def run():
        ledger = Ledger()
        with Namespaces(net=True, pid=True) as namespaces:

            def work():
                for _ in range(size(20, 300)):
                    assert spawn([ending, "e1"]) == 1
                    assert spawn([ending, "e2"], uid=1234, unshare_pid=True) == 2
                    assert spawn([ending, "e3"], namespaces=namespaces, uid=1234) == 3
                    assert spawn([ending, "e4"], unshare_ipc=True, unshare_mount=True) == 4
                    with pytest.raises(FileNotFoundError):
                        spawn(["/nonexistent"], namespaces=namespaces)
                    with pytest.raises(FileNotFoundError):
                        spawn(["/nonexistent"], unshare_pid=True)

            run_threads(work)
        ledger.check()

    in_host(run)
