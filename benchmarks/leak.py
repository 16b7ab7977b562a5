"""Many starts from several threads, one in eight failing: what is left behind?"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import common

import spawnhelper
from spawnhelper import Stage, spawn

NOBODY = 65534
FAILING = 8  # one in so many
WARM_UP = 10  # one in so many belongs to the warm-up
LIMIT = 1 << 20
CAP_SETUID = 7
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, linux/capability.h


def forbid_setuid() -> None:
    """Take the capability from the calling thread alone: capset(2) changes one thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low, then high words
    for call in (libc.capget, libc.capset):
        if call(header, data) != 0:
            raise OSError(ctypes.get_errno(), "capget or capset")
        data[0] &= ~(1 << CAP_SETUID)
        data[1] &= ~(1 << CAP_SETUID)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def make_failures(target: str, directory: Path) -> list[tuple[Stage, Callable[[], object]]]:
    text = directory / "text"
    text.write_text("no program")
    text.chmod(0o755)
    closed = next(fd for fd in range(1000, 2000) if not is_open(fd))
    return [
        (Stage.EXEC, lambda: spawn(["no-such-program-anywhere"])),
        (Stage.EXEC, lambda: spawn([str(directory / "missing")], returnproc=True)),
        (Stage.EXEC, lambda: spawn([str(text)])),
        (Stage.EXEC, lambda: spawn([target, "x" * 200_000])),
        (Stage.CHDIR, lambda: spawn([target], cwd=directory / "missing")),
        (Stage.FDS, lambda: spawn([target], fd_pipes={0: 0, 1: closed})),
        (
            Stage.FDS,
            lambda: spawn([target], fd_pipes={1: 1, 2: closed}, logfile=directory / "log"),
        ),
        (Stage.CHDIR, lambda: spawn([target], cwd=text, returnpid=True)),
    ]


def make_successes(target: str, directory: Path, null: int) -> list[Callable[[], object]]:
    argv = [target]
    pipes = {0: null, 1: null, 2: null}
    log = directory / "log"

    def give_away() -> None:
        for pid in spawn(argv, returnpid=True):
            os.waitpid(pid, 0)

    found: list[Callable[[], object]] = [
        lambda: spawn(argv),
        lambda: spawn(argv, fd_pipes=pipes, close_fds=True),
        lambda: spawn(argv, returnproc=True).wait(),
        lambda: spawn(argv, env={"NAME": "value"}, cwd=directory, umask=0o22),
        give_away,
        lambda: spawn(argv, fd_pipes=pipes, logfile=log),
        lambda: spawn(argv, returnproc=True).__exit__(None, None, None),
        lambda: spawn(argv, close_fds=True, returnproc=True).wait(10),
    ]
    return found


def expect(stage: Stage, call: Callable[[], object]) -> None:
    try:
        call()
    except spawnhelper.SpawnError as error:
        if error.stage is not stage:
            raise
        return
    raise RuntimeError(f"a start that should fail at {stage.name} did not")


class Load:
    """The threads' work; they meet before and after the measured part."""

    def __init__(self, spawns: int, threads: int, target: str, directory: Path, null: int) -> None:
        self.share = spawns // threads
        self.failures = make_failures(target, directory)
        self.successes = make_successes(target, directory, null)
        self.argv = [target]
        self.root = os.geteuid() == 0
        self.meeting = threading.Barrier(threads + 1, timeout=3600)
        self.errors: list[BaseException] = []

    def one(self, number: int, forbidden: bool) -> None:
        turn, place = divmod(number, FAILING)
        if place == 0:
            kinds = len(self.failures) + forbidden
            kind = turn % kinds
            if kind < len(self.failures):
                expect(*self.failures[kind])
            else:
                expect(Stage.UID, lambda: spawn(self.argv, uid=1 if self.root else 0))
        elif place == 1 and self.root and not forbidden:
            spawn(self.argv, uid=NOBODY, gid=NOBODY, groups=[])
        else:
            self.successes[(turn + place) % len(self.successes)]()

    def run(self, index: int) -> None:
        forbidden = index == 0 or not self.root
        try:
            if index == 0 and self.root:
                forbid_setuid()
            for number in range(self.share // WARM_UP):
                self.one(number, forbidden)
            self.meeting.wait()
            self.meeting.wait()
            for number in range(self.share // WARM_UP, self.share):
                self.one(number, forbidden)
            self.meeting.wait()
            self.meeting.wait()
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            self.errors.append(error)
            self.meeting.abort()


def resident() -> int:
    gc.collect()
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def count_children() -> int:
    """Children that are left: zombies are reaped, running ones count as well."""
    found = 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            found += 1
            if pid == 0:
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spawns", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    with common.work_directory() as directory, open(os.devnull, "r+b") as null:
        target = common.build_target(directory)
        common.use_env({**common.make_env(), "PATH": "/bin:/usr/bin"})
        fds = count_fds()
        load = Load(options.spawns, options.threads, target, directory, null.fileno())
        threads = [
            threading.Thread(target=load.run, args=(index,)) for index in range(options.threads)
        ]
        start = perf_counter()
        for thread in threads:
            thread.start()
        before = after = 0
        try:
            load.meeting.wait()
            before = resident()
            load.meeting.wait()
            load.meeting.wait()
            after = resident()
            load.meeting.wait()
        except threading.BrokenBarrierError:
            pass  # load.errors says why
        finally:
            load.meeting.abort()
        for thread in threads:
            thread.join()
        seconds = perf_counter() - start
        if load.errors:
            raise load.errors[0]
        children, fds = count_children(), count_fds() - fds
    growth = after - before
    done = load.share * options.threads
    print(f"spawns       {done:10}  of {options.threads} threads, one in {FAILING} failing")
    print(f"spawns/s     {done / seconds:10.0f}")
    print(f"zombies      {children:10}")
    print(f"descriptors  {fds:10}  more than before")
    print(f"RSS growth   {growth / 1024:10.0f}  KiB after the first {done // WARM_UP}")
    sys.exit(children != 0 or fds != 0 or growth >= LIMIT)


if __name__ == "__main__":
    main()
