"""examples/build_wheels.py: a wheel is built, and what builds must not do does not work.

The package is one that needs nothing from an index: its sdist lies where
downloads are kept, and its build backend is its own.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time

import pytest

from conftest import NOBODY, ROOT
from instruments.isolation import find_hierarchy, needs_isolation

EXAMPLE = ROOT / "examples" / "build_wheels.py"
BACKEND = """
import json, os, socket, zipfile
NAME = "tiny-1.0.dist-info"
TAG = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"

def build_wheel(folder, settings=None, metadata=None):
    total = 0
    end = os.times().user + 0.3
    while os.times().user < end:
        total += 1
    seen = {
        "uid": os.getuid(), "host": socket.gethostname(),
        "pids": [int(name) for name in os.listdir("/proc") if name.isdigit()],
        "net": os.readlink("/proc/self/ns/net"), "ipc": os.readlink("/proc/self/ns/ipc"),
        "mnt": os.readlink("/proc/self/ns/mnt"), "user": os.readlink("/proc/self/ns/user"),
    }
    with zipfile.ZipFile(folder + "/tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", f"SEEN = {json.dumps(seen)}\\n")
        wheel.writestr(NAME + "/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr(NAME + "/WHEEL", TAG)
        wheel.writestr(NAME + "/RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
"""
PYPROJECT = 'build-system = {requires = [], build-backend = "backend", backend-path = ["."]}'


@pytest.fixture
def wheelhouse(public_dir):
    """A directory with the sdist; its users may be others."""
    place = public_dir / f"wheelhouse-{os.getpid()}-{time.monotonic_ns()}"
    downloads = place / "downloads" / f"tiny-{sys.implementation.cache_tag}"
    downloads.mkdir(parents=True)
    with tarfile.open(downloads / "tiny-1.0.tar.gz", "w:gz") as sdist:
        for name, text in (("pyproject.toml", PYPROJECT), ("backend.py", BACKEND)):
            member = tarfile.TarInfo(f"tiny-1.0/{name}")
            member.size = len(text)
            sdist.addfile(member, io.BytesIO(text.encode()))
    return place


def build(place, *options, words=("tiny",)):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--dir", str(place), "--jobs", "2", *options, *words],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip


def rows(text):
    """The closing table: the last line of each package."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split("[│|]", line)]
        if len(cells) == 9:
            found[cells[1]] = cells[2:8]
    return found


def seen_by(place):
    import zipfile

    with zipfile.ZipFile(place / "tiny-1.0-py3-none-any.whl") as wheel:
        return json.loads(wheel.read("tiny.py").decode().partition(" = ")[2])


@needs_isolation
@pytest.mark.parametrize("options", [["--prove"], ["--prove", "--reuse"]], ids=" ".join)
def test_builds_are_isolated(wheelhouse, options):
    done = build(wheelhouse, *options)
    table = rows(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    version, seconds, cpu, _, status, _ = table["tiny"]
    assert (version, status) == ("1.0", "ok")
    assert 0.3 <= float(cpu) <= 60
    assert float(seconds) > 0
    seen = seen_by(wheelhouse)
    assert seen["host"] == "localhost"
    for kind in ("net", "ipc", "mnt"):
        assert seen[kind] != os.readlink(f"/proc/self/ns/{kind}")
    if "--reuse" not in options:
        assert len(seen["pids"]) < 8
        assert min(seen["pids"]) == 1
    if "the steps run as root" not in done.stdout:
        assert seen["uid"] == NOBODY
    assert table["proof-network"][4] == "ok: no network"
    assert table["proof-daemon"][4] == "ok: daemon gone"
    log = (wheelhouse / "builds" / "proof-network.log").read_text()
    assert "Network is unreachable" in log


@needs_isolation
def test_the_proofs_can_fail(wheelhouse):
    """The seeded case: without isolation the daemon lives and the network is there."""
    text = EXAMPLE.read_text()
    isolated = '"unshare_pid"), True)'
    assert text.count(isolated) == 1
    seeded = wheelhouse / "seeded.py"
    text = text.replace(isolated, isolated.replace("True", "False"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f'("127.0.0.1", {server.getsockname()[1]})'
        seeded.write_text(text.replace('("192.0.2.1", 80)', address))
        done = subprocess.run(
            [sys.executable, str(seeded), "--dir", str(wheelhouse), "--prove", "tiny"],
            capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        )  # fmt: skip
    try:
        table = rows(done.stdout)
        assert done.returncode == 1
        assert table["tiny"][4] == "ok"
        assert table["proof-network"][4] == table["proof-daemon"][4] == "failed"
    finally:
        log = (wheelhouse / "builds" / "proof-daemon.log").read_text()
        os.kill(int(re.search(r"a daemon runs, pid (\d+)", log)[1]), signal.SIGKILL)


@needs_isolation
@pytest.mark.parametrize("options", [[], ["--reuse"]], ids=["own", "reuse"])
def test_each_package_has_a_cgroup(wheelhouse, options):
    """Where no v2 cgroup has a memory.peak another of its files stands for it."""
    root = find_hierarchy(None)
    if root is None:
        pytest.skip("no cgroup v2 here")
    text = EXAMPLE.read_text()
    peak = 'int((self.cgroup / "memory.peak").read_text())'
    seeded = wheelhouse / "seeded.py"
    assert text.count(peak) == 1
    text = text.replace(peak, "(5 << 20) + " + peak)
    seeded.write_text(text.replace('"memory.peak"', '"cgroup.freeze"'))
    done = subprocess.run(
        [sys.executable, str(seeded), "--dir", str(wheelhouse), "--prove", *options, "tiny"],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(done.stdout)
    assert table["tiny"][3] == "5"
    assert not list(root.glob("**/wheels-*"))


@needs_isolation
def test_a_package_that_fails(wheelhouse):
    sdist = next((wheelhouse / "downloads").glob("tiny-*"))
    (sdist / "tiny-1.0.tar.gz").write_bytes(b"")
    done = build(wheelhouse)
    assert done.returncode == 1
    assert rows(done.stdout)["tiny"][4] == "failed"
    assert "--- tiny: exit status" in done.stdout
