"""_setup_pipes(), _exec(), _configure_loopback_interface(): alone in a process somebody forked."""

import itertools
import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import NOBODY, needs_root
from spawnhelper import process

pytestmark = pytest.mark.core

CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000


def in_child(function):
    """Run it in a forked child: what it returned, as JSON would have it; or its exit status."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(reader)
            high = os.dup2(writer, 60)
            os.close(writer)
            result = function()
            os.write(high, json.dumps(result).encode())
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(text) if text else status


def name_of(fd):
    status = os.fstat(fd)
    return [status.st_dev, status.st_ino]


# ---- _setup_pipes ----


@pytest.mark.parametrize(
    "shape",
    [{}, {0: 0}, {0: 1, 1: 0}, {0: 1, 1: 2, 2: 0}, {0: 2, 1: 2, 3: 2}, {3: 0, 0: 3}, {1: 0, 2: 1}],
)
def test_setup_pipes_arranges_any_map(shape, files):
    fds = files(4)

    def child():
        process._setup_pipes(
            {fds[key]: fds[value] for key, value in shape.items()}, close_fds=False
        )
        return [name_of(fd) if is_open(fd) else None for fd in fds]

    names = [name_of(fd) for fd in fds]
    expected = list(names)
    for key, value in shape.items():
        expected[key] = names[value]
    for value in set(shape.values()) - set(shape):
        expected[value] = None  # given away
    assert in_child(child) == expected


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_setup_pipes_closes_the_rest(files):
    a, b, c = files(3)

    def child():
        process._setup_pipes({a: b, 60: 60})
        return sorted(fd for fd in process.get_open_fds() if is_open(fd))

    assert in_child(child) == [a, 60]
    assert c


def test_setup_pipes_flags(files):
    fds = files(4)
    os.set_inheritable(fds[0], True)

    def flags(inheritable):
        def child():
            process._setup_pipes(
                {2: fds[1], fds[2]: fds[0], fds[3]: fds[1], 60: 60}, False, inheritable
            )
            return [os.get_inheritable(fd) for fd in (2, fds[2], fds[3])]

        return in_child(child)

    assert flags(None) == [True, True, False]
    assert flags(True) == [True, True, True]
    assert flags(False) == [False, False, False]


def test_setup_pipes_errors(files):
    (fd,) = files(1)

    def child():
        before = name_of(fd)
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            process._setup_pipes({fd: 987, 60: 60}, close_fds=False)
        with pytest.raises(TypeError):
            process._setup_pipes({fd: "x"}, close_fds=False)
        process._setup_pipes(None, close_fds=False)
        return [caught.value.errno, name_of(fd) == before]

    assert in_child(child) == [9, True]


def test_setup_pipes_without_a_free_descriptor_is_an_error(files):
    import resource

    a, b = files(2)

    def child():
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        os.close(a), os.dup2(b, 60 + 1), os.close(b)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(OSError) as caught:
            process._setup_pipes({0: 1, 1: 0}, close_fds=False)
        return caught.value.errno

    assert in_child(child) in (22, 24)  # EMFILE, or EINVAL above the limit


# ---- _exec ----


def exec_in_child(probe, binary=None, words=None, status=0, **changes):
    path = probe.report_path()
    binary = binary or str(probe.program)
    arguments = {
        "opt_name": None, "fd_pipes": {0: 0, 1: 1, 2: 2}, "env": {"A": "B"}, "gid": None,
        "groups": None, "uid": None, "umask": None, "cwd": None, "pre_exec": None,
        "close_fds": False, "unshare_net": False, "unshare_ipc": False, "unshare_mount": False,
        "unshare_pid": False, "unshare_flags": 0, "cgroup": None, **changes,
    }  # fmt: skip
    words = words or [binary, str(path)]
    pid = os.fork()
    if pid == 0:
        process._exec(binary, words, **arguments)
    found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert found == status
    return (probe.read(path) if path.exists() else None), pid


def test_exec_becomes_the_command(probe):
    report, pid = exec_in_child(probe)
    assert report["pid"] == pid
    assert report["ppid"] == os.getpid()
    assert report["argv"] == ["probe"]
    assert report["env"] == ["A=B"]
    plain = probe.report()
    for key in ("fds", "SigBlk", "SigIgn", "SigCgt", "uids", "umask", "cwd", "sid", "pgid"):
        assert report[key] == plain[key], key


def test_exec_obeys(probe, files, tmp_path):
    (fd,) = files(1)
    report, _ = exec_in_child(
        probe, opt_name="zero", fd_pipes={0: 0, 9: fd}, close_fds=True, umask=0o37, cwd=tmp_path
    )
    assert report["argv"] == ["zero"]
    assert set(report["fds"]) == {0, 9}
    assert (report["umask"], report["cwd"]) == (0o37, str(tmp_path))


@needs_root
def test_exec_changes_ids(probe):
    report, _ = exec_in_child(probe, uid=12, gid="34", groups=(56,))
    assert (report["uids"], report["gids"], report["groups"]) == ([12] * 3, [34] * 3, [56])


@needs_root
def test_exec_calls_pre_exec_last(probe, public_dir):
    log = public_dir / "pre-exec"
    log.write_text("")
    log.chmod(0o666)

    def note():
        log.write_text(f"{os.getuid()} {os.getcwd()}")

    exec_in_child(probe, uid=NOBODY, cwd="/", pre_exec=note)
    assert log.read_text() == f"{NOBODY} /"


def test_exec_resets_signals_in_a_careless_child(probe):
    """Python handlers, a wakeup fd, a blocked mask: only the mask is the caller's to keep."""
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        report, _ = exec_in_child(probe)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert int(report["SigCgt"], 16) == 0


FAILURES = {
    "no such program": ({"binary": "/nonexistent/x"}, "EXEC"),
    "cwd": ({"cwd": "/nonexistent"}, "CHDIR"),
    "closed fd": ({"fd_pipes": {2: 2, 7: 987}}, "fd 987"),
    "bad word": ({"words": ["x", 5]}, "int"),
    "bad env": ({"env": {"A": "\0"}}, "env"),
    "pre_exec": ({"pre_exec": lambda: 1 // 0}, "Traceback"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_exec_failure_is_text_and_status_1(case, probe, capfd):
    changes, expected = FAILURES[case]
    exec_in_child(probe, status=1, **changes)
    assert expected in capfd.readouterr().err


def test_exec_failure_runs_no_cleanup(probe, tmp_path):
    """Neither finally blocks nor exit hooks of the program that forked."""
    marker = tmp_path / "marker"
    text = (
        "import atexit, os\nfrom spawnhelper import process\n"
        f"touch = lambda: open({str(marker)!r}, 'w').close()\n"
        "process.atexit_register(touch)\natexit.register(touch)\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        process._exec('/nonexistent/x', ['x'], None, {}, {}, None, None, None, None,\n"
        "                      None, None, False, False, False, False, False, 0, None)\n"
        "    finally:\n"
        "        touch()\n"
        "status = os.wait()[1]\n"
        f"print(os.path.exists({str(marker)!r}), status)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "False 256\n"


def test_exec_with_system_exit(probe):
    def leave():
        raise SystemExit(7)

    exec_in_child(probe, status=7, pre_exec=leave)


# ---- loopback ----


def unshare(flags):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(flags) == 0, ctypes.get_errno()


def own_addresses():
    """Those of this network namespace, as the kernel lists them."""
    with open("/proc/thread-self/net/fib_trie") as listing:
        lines = listing.read().splitlines()
    found = {
        line.split()[-1]
        for line, below in itertools.pairwise(lines)
        if "|--" in line and "/32 host LOCAL" in below
    }
    with open("/proc/thread-self/net/if_inet6") as listing:
        for line in listing:
            words = line.split()
            found.add(f"{words[0]}/{int(words[2], 16)} {words[5]}")
    return sorted(found)


@needs_root
def test_loopback_in_a_fresh_network_namespace():
    import socket

    def child():
        unshare(CLONE_NEWNET)
        before = own_addresses()
        process._configure_loopback_interface()
        with socket.socket() as server, socket.socket() as client:
            server.bind(("10.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
        names = socket.getaddrinfo("127.0.0.1", 80, flags=socket.AI_ADDRCONFIG)
        return [before, own_addresses(), bool(names)]

    expected = ["10.0.0.1", "127.0.0.1"]
    if process.has_ipv6():
        expected = ["0" * 31 + "1/128 lo", *expected, "00fd" + "0" * 27 + "1/8 lo"]
    before, after, resolves = in_child(child)
    assert before == []
    assert (after, resolves) == (sorted(expected), True)


@needs_root
def test_loopback_twice_is_one_line_of_text(capfd):
    """The addresses are created exclusively: the second time the kernel refuses."""

    def child():
        unshare(CLONE_NEWNET)
        process._configure_loopback_interface()
        process._configure_loopback_interface()
        return "survived"

    assert in_child(child) == "survived"
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert "LOOPBACK" in text


# ---- which namespaces work ----


def test_unshare_validate():
    assert process._unshare_validate(0) == 0
    assert process._unshare_validate(1 << 3) == 22
    fresh = process._unshare_validator()
    assert fresh(0) == 0
    assert fresh._results == {0: 0}


@needs_root
def test_unshare_validate_leaves_this_process_alone():
    before = os.readlink("/proc/self/ns/net")
    assert process._unshare_validator()(CLONE_NEWNET | CLONE_NEWUTS) == 0
    assert os.readlink("/proc/self/ns/net") == before


def test_errors_that_pass_are_not_remembered(monkeypatch):
    answers = iter([11, 12, 28, 1, 0])
    monkeypatch.setattr(process._core, "try_unshare", lambda flags: next(answers))
    fresh = process._unshare_validator()
    assert [fresh(CLONE_NEWNET) for _ in range(5)] == [11, 12, 28, 1, 1]


def test_validator_parts():
    import ctypes
    import multiprocessing

    validator = process._unshare_validator
    assert validator._validate(0) == 0
    libc = ctypes.CDLL(None, use_errno=True)
    assert validator._validate_subproc(libc.unshare, 1 << 3) == 22
    assert validator._validate_subproc(libc.unshare, 0) == 0
    reader, writer = multiprocessing.Pipe(duplex=False)
    validator._run_subproc(writer, pow, (2, 3), {"mod": 5})
    assert reader.recv() == 3
    assert writer.closed
    reader.close()


def test_has_ipv6(monkeypatch):
    import socket

    for refused in (True, False):
        monkeypatch.setattr(process, "_ipv6", None)
        with monkeypatch.context() as patch:

            class Socket(socket.socket):
                def bind(self, address, refused=refused):
                    assert address == ("::1", 0)
                    if refused:
                        raise OSError(99, "no")

            patch.setattr(process.socket, "socket", Socket)
            found = process.has_ipv6()
        assert found is (not refused and socket.has_ipv6)
        assert process.has_ipv6() is found  # asked once
    monkeypatch.setattr(process, "_ipv6", None)
    monkeypatch.setattr(process.socket, "has_ipv6", False)
    assert process.has_ipv6() is False
    monkeypatch.setattr(process, "_ipv6", None)
