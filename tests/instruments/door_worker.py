"""Runs scenarios through one of the two modules: door_worker.py {portage,spawnhelper}.

A scenario is a line of JSON on stdin, its outcome a line of JSON on the original
stdout. Both workers are alike but for the module: descriptors have the same
numbers, and portage is imported in both.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import warnings

import portage.exception
import portage.process
from portage.util._eventloop.global_event_loop import global_event_loop

import spawnhelper.process

MODULE = {"portage": portage.process, "spawnhelper": spawnhelper.process}[sys.argv[1]]
FIRST = 20  # the scenario's files: 20, 21, 22 and so on; 20 is inheritable


class Lazy:
    def __init__(self, value):
        self.value = value

    def __int__(self):
        return int(self.value)

    def __str__(self):
        return str(self.value)

    def __bool__(self):
        return bool(self.value)

    def __iter__(self):
        return iter(self.value)

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return self.value[index]


def decode(value):
    """What JSON cannot say: {"lazy": x}, {"tuple": […]}, {"bytes": x}, {"fds": {…}}."""
    if not isinstance(value, dict):
        return value
    if "lazy" in value:
        return Lazy(value["lazy"])
    if "tuple" in value:
        return tuple(decode(item) for item in value["tuple"])
    if "bytes" in value:
        return value["bytes"].encode("latin-1")
    if "fds" in value:
        return {int(key): source for key, source in value["fds"].items()}
    if value == {"environ": 1}:
        return os.environ
    return value


def pre_exec(what, directory):
    def note():
        with open(os.path.join(directory, "pre-exec"), "a") as out:
            out.write(f"{os.getuid()} {os.getcwd()} ")
        if what == "raise":
            raise ValueError("told you")
        if what == "leave":
            raise SystemExit(7)

    return note


def open_fds():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def use(proc, act):
    if act == "terminate":
        proc.terminate()
    elif act == "kill by pid":
        os.kill(proc.pid, 15)
    elif act == "shielded":
        waiter = asyncio.ensure_future(proc.wait())
        try:
            await asyncio.wait_for(asyncio.shield(waiter), 0.001)
        except (asyncio.TimeoutError, TimeoutError):
            proc.terminate()
        return await waiter
    elif act == "task":
        return await asyncio.ensure_future(proc.wait())
    elif act == "many":
        return await asyncio.gather(*(asyncio.ensure_future(proc.wait()) for _ in range(5)))
    first = await proc.wait()
    second = await proc.wait()
    proc.terminate(), proc.kill(), proc.send_signal(1)
    return [first, second, proc.returncode]


def result_of(scenario, directory):
    keywords = {key: decode(value) for key, value in scenario.get("keywords", {}).items()}
    if "pre_exec" in keywords:
        keywords["pre_exec"] = pre_exec(keywords["pre_exec"], directory)
    function = getattr(MODULE, scenario.get("function", "spawn"))
    given = [decode(value) for value in scenario["arguments"]]
    try:
        if scenario.get("inside"):

            async def inside():
                return function(*given, **keywords)

            return asyncio.run(inside())
        found = function(*given, **keywords)
        if keywords.get("returnproc"):
            return global_event_loop().run_until_complete(use(found, scenario.get("act")))
        if keywords.get("returnpid"):
            pids = [
                found_pid if isinstance(found_pid, int) else found_pid.pid for found_pid in found
            ]
            statuses = [status_of(pid) for pid in reversed(pids)]
            let_holders_go()
            return statuses
        return found
    except portage.exception.CommandNotFound as error:
        return ["CommandNotFound", str(error), str(error.value)]
    except Exception as error:
        return [type(error).__name__]
    finally:
        if "fd_pipes" in keywords and scenario.get("show_map"):
            scenario["map"] = {str(key): value for key, value in keywords["fd_pipes"].items()}


def let_holders_go():
    """With returnpid a pid namespace's holder is reaped by a later call (documented)."""
    for _ in range(1000):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        MODULE.spawn(["/bin/true"])


def run(scenario):
    directory = scenario["directory"]
    for number in range(4):
        fd = os.open(os.path.join(directory, f"file{number}"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, FIRST + number, inheritable=number == 0)
        os.close(fd)
    stderr = os.open(os.path.join(directory, "stderr"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    saved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in (1, 2)]
    for fd in (1, 2):
        os.dup2(stderr, fd)
    os.close(stderr)
    before = open_fds()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = result_of(scenario, directory)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        after = open_fds()
        for fd, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, fd)
            os.close(copy)
    try:
        left = os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        left = None
    for number in range(4):
        os.close(FIRST + number)
    return {
        "result": result,
        "children left": left,
        "fds left": sorted(
            os.path.basename(name) for fd, name in after.items() if fd not in before
        ),
        "map": scenario.get("map"),
    }


def main():
    os.environ["MARK"] = "seen"
    answers = os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 200), "w")
    # The loop's own descriptors are opened before anything is counted.
    global_event_loop().run_until_complete(asyncio.sleep(0))
    MODULE.spawn(["/bin/true"])
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
