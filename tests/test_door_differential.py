"""The same scenario through portage.process (PyPI) and through ours, in two equal workers.

Compared: return value, everything the probe sees, output and log, what callers
parse of stderr, descriptors and processes left behind. Every difference is a
row of docs/differences.md.
"""

import fcntl
import itertools
import json
import os
import random
import re
import subprocess
import sys

import pytest

from conftest import HERE, needs_portage, needs_root

TENTATIVE = 0x40  # IFA_F_TENTATIVE, linux/if_addr.h
# The two workers live as long as this file; they look for what is left behind themselves.
pytestmark = [pytest.mark.leaves_helpers, needs_portage]


class Worker:
    def __init__(self, module):
        self.module = module
        command = [sys.executable, str(HERE / "instruments" / "door_worker.py"), module]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)

    def ask(self, scenario):
        self.process.stdin.write(json.dumps(scenario) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the worker of {self.module} is gone: {scenario}"
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def workers(public_dir):
    made = [Worker("portage"), Worker("spawnhelper")]
    yield made
    for worker in made:
        worker.close()


# Both workers inherit these from pytest alike; a report names what they are by inode.
SIGXFSZ = 1 << 24


def normalize(report, directory, keys):
    """Takes out what differs on purpose (docs/differences.md) or between any two runs."""
    report["fresh"] = {
        name
        for name, inode in report.pop("namespaces").items()
        if inode != os.stat(f"/proc/self/ns/{name}").st_ino
    }
    for key in ("pid", "ppid", "processes", "mounts", "pid1"):
        report.pop(key)
    if "pid" in report["fresh"]:
        # rows: a session of its own, but no process above it; environment as given
        for key in ("sid", "pgid"):
            report.pop(key)
        report["env"] = [entry for entry in report["env"] if not entry.startswith("LC_CTYPE=")]
    report["SigIgn"] = f"{int(report['SigIgn'], 16) & ~SIGXFSZ:016x}"  # row: SIGXFSZ
    report["env"] = sorted(entry.replace(directory, "DIR") for entry in report["env"])
    report["argv"] = [word.replace(directory, "DIR") for word in report["argv"]]
    report["cwd"] = report["cwd"].replace(directory, "DIR")
    names = {}
    for name in os.listdir(directory):
        status = os.stat(os.path.join(directory, name))
        names[status.st_dev, status.st_ino] = name
    fds = {}
    for fd, (device, inode, flags, mode) in report["fds"].items():
        name = names.get((device, inode))
        if int(fd) > 2 and "pid" in report["fresh"] and int(fd) not in keys:
            continue  # row: inheritable descriptors are inherited here, too
        if name is None and int(fd) > 2:
            continue  # row: no stray descriptors (portage's loop and stdin duplicate)
        fds[int(fd)] = (name or "other", flags, mode)
    report["fds"] = fds
    return report


def outcome(worker, scenario, probe, base):
    """Everything that can be compared."""
    directory = base / worker.module
    directory.mkdir()
    directory.chmod(0o777)
    text = json.dumps(scenario).replace("DIR", str(directory)).replace("PROBE", str(probe.program))
    found = worker.ask({**json.loads(text), "directory": str(directory)})
    report = directory / "report"
    fd_pipes = scenario.get("keywords", {}).get("fd_pipes") or {"fds": {}}
    keys = set(map(int, fd_pipes["fds"]))
    if report.exists():
        report.chmod(0o600)
        found["report"] = normalize(json.loads(report.read_text()), str(directory), keys)
        report.unlink()
    for name in ("file1", "file2", "log", "pre-exec"):
        path = directory / name
        found[name] = path.read_text().replace(str(directory), "DIR") if path.exists() else None
    found["diagnosis"] = re.findall(
        r"Largest environment variable: \S+ \(\d+ bytes\)",
        (directory / "stderr").read_text() + (found["file2"] or ""),
    )
    if found["file2"] and re.search("Traceback|spawnhelper: ", found["file2"]):
        found["file2"] = True  # the text of a failure is each module's own
    return found


def both(workers, scenario, probe, base):
    return [outcome(worker, scenario, probe, base) for worker in workers]


def same(workers, scenario, probe, base):
    theirs, ours = both(workers, scenario, probe, base)
    theirs["fds left"] = []  # row: a log with returnpid leaves portage two descriptors
    for address in (theirs.get("report") or {}).get("addresses", ()):
        address[4] &= ~TENTATIVE  # portage's fd::1 may still be; ours never is
    wrong = {key: (theirs[key], ours.get(key)) for key in theirs if theirs[key] != ours.get(key)}
    if "report" in wrong:
        left, right = wrong["report"]
        wrong["report"] = right and {k: (left[k], right[k]) for k in left if left[k] != right[k]}
    assert not wrong
    return ours


# ---- pairwise over all keywords ----

WORDS = ["PROBE", "DIR/report", "a b"]
FDS = {"0": 21, "1": 21, "2": 22}
VALUES = {
    "mycommand": [WORDS, {"tuple": WORDS}, "PROBE DIR/report a b"],
    "env": [None, {}, {"A": "1", "PATH": "/nonexistent"}, {"environ": 1}],
    "opt_name": [None, "", "[other] name"],
    "fd_pipes": [
        None,
        {"fds": FDS},
        {"fds": {**FDS, "7": 20, "9": 23}},
        {"fds": {"0": 0, "1": 22, "2": 21, "20": 21, "21": 20}},
    ],
    "form": ["wait", "proc", "pid"],
    "uid": [None, 0, 12, {"lazy": "13"}],
    "gid": [None, 0, 34, "35"],
    "groups": [None, [], {"tuple": [56, 57]}, {"lazy": [58]}],
    "umask": [None, 0o27, 0o77],
    "cwd": [None, "/", "DIR"],
    "logfile": [None, "DIR/log"],
    "path_lookup": [True, False],
    "pre_exec": [None, "note"],
    "close_fds": [False, True],
    "cgroup": [None, ""],
    "warn_on_large_env": [False, True],
    "unshare_net": [False, True],
    "unshare_ipc": [False, True],
    "unshare_mount": [False, True],
    "unshare_pid": [False, True],
}


def allowed(case):
    """What portage can do (contract 2.1, 2.4); the others are rows of the differences."""
    if case["close_fds"] and case["form"] != "pid":
        return False
    if case["unshare_pid"] and case["pre_exec"]:
        return False
    if case["logfile"] and (case["form"] == "proc" or case["fd_pipes"] is None):
        return False
    # tee runs with portage's identity; as an id without rights it could not open the log
    return not (case["close_fds"] and case["fd_pipes"] is None)


def pairwise(values, seed=1):
    """Few cases in which every possible pair of values occurs."""
    choose = random.Random(seed)
    names = list(values)
    size = {name: range(len(values[name])) for name in names}
    pairs = {
        (a, i, b, j) for a, b in itertools.combinations(names, 2) for i in size[a] for j in size[b]
    }

    def covered(case):
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    def possible(case):
        return allowed({name: values[name][index] for name, index in case.items()})

    cases = []
    stuck = 0
    while pairs and stuck < 30:
        a, i, b, j = choose.choice(sorted(pairs))
        candidates = []
        for _ in range(60):
            case = {name: choose.choice(size[name]) for name in names}
            case[a], case[b] = i, j
            if possible(case):
                candidates.append(case)
        best = max(candidates, key=lambda case: len(covered(case) & pairs), default=None)
        if best is None:
            pairs.discard((a, i, b, j))  # no case may have it
            stuck += 1
            continue
        pairs -= covered(best)
        cases.append({name: values[name][index] for name, index in best.items()})
    return cases


def to_scenario(case):
    keywords = {
        key: value
        for key, value in case.items()
        if key not in ("mycommand", "form") and value is not None
    }
    if case["form"] != "wait":
        keywords["return" + case["form"]] = True
    return {"arguments": [case["mycommand"]], "keywords": keywords}


CASES = pairwise(VALUES)


def test_the_cases_cover_every_pair():
    """Of values that may occur together."""
    names = list(VALUES)
    seen = {
        (a, json.dumps(case[a]), b, json.dumps(case[b]))
        for case in CASES
        for a, b in itertools.combinations(names, 2)
    }
    missing = [
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in VALUES[a]
        for y in VALUES[b]
        if (a, json.dumps(x), b, json.dumps(y)) not in seen
    ]
    exclusive = {
        ("close_fds", "form"), ("form", "close_fds"), ("logfile", "form"), ("form", "logfile"),
        ("fd_pipes", "logfile"), ("fd_pipes", "close_fds"), ("pre_exec", "unshare_pid"),
    }  # fmt: skip
    assert [pair for pair in missing if (pair[0], pair[2]) not in exclusive] == []


@needs_root
@pytest.mark.parametrize("number", range(len(CASES)))
def test_pairwise(number, workers, probe, tmp_path_factory, public_dir):
    base = public_dir / f"pair{number}"
    base.mkdir()
    base.chmod(0o777)
    ours = same(workers, to_scenario(CASES[number]), probe, base)
    assert ours["children left"] is None
    assert ours["fds left"] == []
    assert "report" in ours


# ---- what portage asks for: contract §5, row by row ----

LONG = ["/bin/sleep", "60"]
KEYS = {"fds": {**FDS, "7": 20, "9": 23}}
ROWS = {
    "SpawnProcess": {
        "arguments": [{"tuple": WORDS}],
        "keywords": {
            "returnproc": True,
            "fd_pipes": KEYS,
            "env": {"environ": 1},
            "opt_name": "[x]",
            "uid": {"lazy": 12},
            "gid": {"lazy": 34},
            "groups": {"lazy": [56]},
            "umask": 0o22,
            "path_lookup": True,
            "pre_exec": "note",
            "close_fds": False,
        },
    },
    "SpawnProcess, failing": {
        "arguments": [["/bin/sh", "-c", "exit 3"]],
        "keywords": {"returnproc": True, "fd_pipes": KEYS},
    },
    "SpawnProcess, killed": {
        "arguments": [LONG],
        "act": "kill by pid",
        "keywords": {"returnproc": True, "fd_pipes": KEYS},
    },
    "doebuild, bash": {
        "function": "spawn_bash",
        "arguments": ["echo out; echo err >&2; exit 4"],
        "keywords": {
            "returnproc": True,
            "fd_pipes": {"fds": FDS},
            "env": {"PATH": "/bin"},
            "uid": 12,
            "gid": 34,
            "groups": [56],
            "umask": 0o22,
            "warn_on_large_env": True,
            "logfile": None,
            "returnpid": False,
            "opt_name": "[phase]",
            "cgroup": None,
        },
    },
    "doebuild, sandbox": {
        "function": "spawn_sandbox",
        "arguments": ["echo $0 out"],
        "keywords": {"returnproc": True, "fd_pipes": {"fds": FDS}, "opt_name": "[phase]"},
    },
    "doebuild, fakeroot": {
        "function": "spawn_fakeroot",
        "arguments": ["id -u; exit 5"],
        "keywords": {
            "returnproc": True,
            "fd_pipes": {"fds": FDS},
            "fakeroot_state": "DIR/state",
            "logfile": None,
            "returnpid": False,
        },
    },
    "depend": {
        "function": "spawn_bash",
        "arguments": ["echo key=value >&9"],
        "keywords": {"returnproc": True, "fd_pipes": {"fds": {"0": 0, "1": 21, "2": 22, "9": 22}}},
    },
    "fetch, cancelled": {
        "arguments": [LONG],
        "act": "terminate",
        "keywords": {
            "returnproc": True,
            "fd_pipes": {"fds": FDS},
            "uid": 12,
            "gid": 34,
            "groups": [56],
            "umask": 2,
        },
    },
    "socks5": {"arguments": [["/bin/true"]], "keywords": {"returnproc": True, "uid": 12}},
    "rsync, timed out": {
        "arguments": [LONG],
        "act": "shielded",
        "keywords": {"returnproc": True, "fd_pipes": {"fds": FDS}},
    },
    "git": {
        "arguments": ["PROBE DIR/report"],
        "keywords": {
            "env": {"A": "1"},
            "fd_pipes": {"fds": FDS},
            "uid": 12,
            "gid": 34,
            "groups": [56],
            "cwd": "DIR",
        },
    },
    "git, failing": {
        "arguments": [["/bin/sh", "-c", "echo x; exit 128"]],
        "keywords": {"fd_pipes": {"fds": FDS}},
    },
    "elog": {
        "function": "spawn_bash",
        "arguments": ["exit 2"],
        "act": "task",
        "keywords": {"returnproc": True},
    },
    "movefile": {
        "arguments": [["/bin/cp", "-a", "/etc/passwd", "DIR/log"]],
        "keywords": {"env": {"environ": 1}},
    },
    "several waiters": {
        "arguments": [["/bin/true"]],
        "act": "many",
        "keywords": {"returnproc": True},
    },
    "selinux": {
        "arguments": [WORDS],
        "keywords": {"pre_exec": "note", "returnproc": True, "fd_pipes": KEYS},
    },
}


@needs_root
@pytest.mark.parametrize("row", ROWS)
def test_contract_row(row, workers, probe, public_dir):
    base = public_dir / re.sub(r"\W", "-", row)
    base.mkdir()
    base.chmod(0o777)
    ours = same(workers, ROWS[row], probe, base)
    assert ours["children left"] is None


# ---- failures ----

FAILING = {
    "not found": {"arguments": [["no-such-program", "x"]]},
    "not found, path_lookup": {"arguments": [["true"]], "keywords": {"path_lookup": False}},
    "directory": {"arguments": [["/bin"]]},
    "not executable": {"arguments": [["/etc/passwd"]]},
    "relative": {"arguments": [["./no-such"]]},
    "empty list": {"arguments": [[]]},
    "empty text": {"arguments": [" "]},
    "bytes": {"arguments": [{"bytes": "/bin/true"}]},
    "int": {"arguments": [5]},
    "int argument": {"arguments": [["/bin/true", 5]], "keywords": {"fd_pipes": {"fds": FDS}}},
    "cwd": {
        "arguments": [["/bin/true"]],
        "keywords": {"cwd": "/nonexistent", "fd_pipes": {"fds": FDS}},
    },
    "empty cwd": {"arguments": [["/bin/true"]], "keywords": {"cwd": "", "fd_pipes": {"fds": FDS}}},
    "env with =": {
        "arguments": [["/bin/true"]],
        "keywords": {"env": {"A=B": "C"}, "fd_pipes": {"fds": FDS}},
    },
    "too large": {
        "arguments": [["/bin/true"]],
        "keywords": {
            "env": {"LARGE": "x" * 140000},
            "fd_pipes": {"fds": FDS},
            "warn_on_large_env": True,
        },
    },
    "too large, log": {
        "arguments": [["/bin/true"]],
        "keywords": {
            "env": {"LARGE": "x" * 140000},
            "fd_pipes": {"fds": FDS},
            "logfile": "DIR/log",
        },
    },
    "pre_exec raises": {
        "arguments": [["/bin/true"]],
        "keywords": {"pre_exec": "raise", "fd_pipes": {"fds": FDS}},
    },
    "pre_exec leaves": {
        "arguments": [["/bin/true"]],
        "keywords": {"pre_exec": "leave", "fd_pipes": {"fds": FDS}},
    },
    "log without key": {
        "arguments": [["/bin/true"]],
        "keywords": {"logfile": "DIR/log", "fd_pipes": {"fds": {"1": 21}}},
    },
    "unknown keyword": {"arguments": [["/bin/true"]], "keywords": {"nonsense": 1}},
    "blank bash": {"function": "spawn_bash", "arguments": [" "]},
    "proc, cwd": {
        "arguments": [["/bin/true"]],
        "keywords": {"cwd": "/nonexistent", "returnproc": True, "fd_pipes": {"fds": FDS}},
    },
    "pid, cwd": {
        "arguments": [["/bin/true"]],
        "keywords": {"cwd": "/nonexistent", "returnpid": True, "fd_pipes": {"fds": FDS}},
    },
}


@pytest.mark.parametrize("case", FAILING)
def test_failure(case, workers, probe, public_dir):
    base = public_dir / re.sub(r"\W", "-", f"failing {case}")
    base.mkdir()
    base.chmod(0o777)
    theirs, ours = both(workers, FAILING[case], probe, base)
    for found in (theirs, ours):
        for name in ("log", "file1"):
            found[name] = bool(found[name])  # each module's own text
        found["fds left"] = []
    # It may say the diagnosis twice: once on its stderr, once in the log.
    theirs["diagnosis"], ours["diagnosis"] = (
        sorted(set(found["diagnosis"])) for found in (theirs, ours)
    )
    assert ours == theirs


# ---- _setup_pipes, as portage's ForkProcess uses it: without exec ----


def arranged_by(function, fd_pipes, slots, *arguments):
    """Which file each slot then is, and whether it is inheritable; or the error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 150)
            try:
                function(dict(fd_pipes), *arguments)
                found = []
                for fd in slots:
                    try:
                        found.append((os.fstat(fd).st_ino, os.get_inheritable(fd)))
                    except OSError:
                        found.append(None)
            except (OSError, TypeError) as error:
                found = [type(error).__mro__[-4].__name__]
            os.write(high, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return json.loads(text)


@pytest.mark.parametrize("inheritable", [None, True, False])
def test_setup_pipes_of_every_small_map(inheritable, files):
    from portage.process import _setup_pipes as theirs

    from spawnhelper.process import _setup_pipes as ours

    slots = [*files(3), 1]
    os.set_inheritable(slots[0], True)
    for count in range(4 if inheritable is None else 3):
        for keys in itertools.combinations(slots, count):
            for values in itertools.product(slots, repeat=count):
                shape = dict(zip(keys, values, strict=True))
                arguments = (shape, slots, False, inheritable)
                found, expected = arranged_by(ours, *arguments), arranged_by(theirs, *arguments)
                if inheritable is None:
                    # row: the flag of one that had to be parked is not lost
                    parked = {
                        key for key, value in shape.items() if shape.get(value, value) != value
                    }
                    for key in parked - {1}:
                        found[slots.index(key)][1] = expected[slots.index(key)][1]
                assert found == expected, shape


def test_setup_pipes_keeps_the_flag_in_a_swap(files):
    """A difference on purpose: portage loses that of the first key."""
    from portage.process import _setup_pipes as theirs

    from spawnhelper.process import _setup_pipes as ours

    slots = files(2)
    os.set_inheritable(slots[1], True)
    arguments = ({slots[0]: slots[1], slots[1]: slots[0]}, slots, False)
    assert [flag for _, flag in arranged_by(ours, *arguments)] == [True, False]
    assert [flag for _, flag in arranged_by(theirs, *arguments)] == [False, False]


# ---- each difference on purpose, with what portage does ----

DIFFERENT = {
    "terminated in a pid namespace": (
        {"arguments": [["/bin/sh", "-c", "kill -TERM $$"]], "keywords": {"unshare_pid": True}},
        "result",
        127,
        -15,
    ),
    "killed in a pid namespace": (
        {"arguments": [["/bin/sh", "-c", "kill -KILL $$"]], "keywords": {"unshare_pid": True}},
        "result",
        1,
        -9,
    ),
    "pre_exec in a pid namespace": (
        {
            "arguments": [["/bin/true"]],
            "keywords": {"unshare_pid": True, "uid": 12, "cwd": "DIR", "pre_exec": "note"},
        },
        "pre-exec",
        "0 DIR ",
        "12 DIR ",
    ),
    "environment in a pid namespace": (
        {
            "arguments": [["/usr/bin/env"]],
            "keywords": {"unshare_pid": True, "env": {}, "fd_pipes": {"fds": FDS}},
        },
        "file1",
        "LC_CTYPE=C.UTF-8\n",
        "",
    ),
    "no fd_pipes in a pid namespace": (
        {"arguments": [["/bin/true"]], "keywords": {"unshare_pid": True, "fd_pipes": {"fds": {}}}},
        "result",
        1,
        0,
    ),
    "log with returnproc": (
        {
            "arguments": [["/bin/sh", "-c", "echo x"]],
            "keywords": {"returnproc": True, "logfile": "DIR/log", "fd_pipes": {"fds": FDS}},
        },
        "result",
        ["ValueError"],
        [0, 0, 0],
    ),
    "close_fds": (
        {"arguments": [["/bin/true"]], "keywords": {"close_fds": True}},
        "result",
        ["NotImplementedError"],
        0,
    ),
    "close_fds with returnproc": (
        {"arguments": [["/bin/true"]], "keywords": {"close_fds": True, "returnproc": True}},
        "result",
        ["NotImplementedError"],
        [0, 0, 0],
    ),
    "inside a running loop": (
        {"arguments": [["/bin/sh", "-c", "exit 3"]], "inside": True},
        "result",
        ["RuntimeError"],
        3,
    ),
    "unwritable log": (
        {
            "arguments": [["/bin/true"]],
            "keywords": {"logfile": "/dev/null/log", "fd_pipes": {"fds": FDS}},
        },
        "result",
        1,
        ["NotADirectoryError"],
    ),
    "text when the map fails": (
        {"arguments": [["/bin/true"]], "keywords": {"fd_pipes": {"fds": {"0": 99, "2": 22}}}},
        "file2",
        "",
        True,
    ),
    "full log": (
        {
            "arguments": [["/bin/echo", "x"]],
            "keywords": {"logfile": "/dev/full", "fd_pipes": {"fds": FDS}},
        },
        "result",
        1,
        0,
    ),
    "umask 0": (
        {
            "arguments": [["/bin/sh", "-c", "umask >&2"]],
            "keywords": {"umask": 0, "fd_pipes": {"fds": FDS}},
        },
        "file2",
        "0022\n",
        "0000\n",
    ),
    "fd_pipes untouched": (
        {
            "arguments": [["/bin/true"]],
            "show_map": True,
            "keywords": {"logfile": "DIR/log", "fd_pipes": {"fds": FDS}},
        },
        "map",
        None,
        {"0": 21, "1": 21, "2": 22},
    ),
}


@needs_root
@pytest.mark.parametrize("case", DIFFERENT)
def test_difference_on_purpose(case, workers, probe, public_dir):
    scenario, key, expected_theirs, expected_ours = DIFFERENT[case]
    base = public_dir / re.sub(r"\W", "-", f"different {case}")
    base.mkdir()
    base.chmod(0o777)
    previous = os.umask(0o22)
    try:
        theirs, ours = both(workers, scenario, probe, base)
    finally:
        os.umask(previous)
    assert ours[key] == expected_ours
    assert theirs[key] != ours[key]
    if expected_theirs is not None:
        assert theirs[key] == expected_theirs
    assert ours["children left"] is None
    assert ours["fds left"] == []
