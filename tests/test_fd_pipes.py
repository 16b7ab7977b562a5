"""fd_pipes and close_fds: which descriptors the command has."""

import contextlib
import os
import resource
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import AVOIDED, fd_facts, open_fds
from spawnhelper import SpawnError, Stage, _core, spawn

pytestmark = pytest.mark.core


def expected_fds(fd_pipes, close_fds):
    """The contract as a model: what the probe must report."""
    table = {} if close_fds else {fd: fd_facts(fd) for fd in open_fds() if os.get_inheritable(fd)}
    for source in fd_pipes.values():
        table.pop(source, None)
    return table | {target: fd_facts(source) for target, source in fd_pipes.items()}


def check(probe, fd_pipes, close_fds):
    given_map = dict(fd_pipes)
    before = {fd: (fd_facts(fd), os.get_inheritable(fd)) for fd in open_fds()}
    expected = expected_fds(fd_pipes, close_fds)
    changes = probe.changes(fd_pipes=fd_pipes, close_fds=close_fds)
    assert probe.report(fd_pipes=fd_pipes, close_fds=close_fds)["fds"] == expected
    assert changes.keys() <= {"fds"}
    assert fd_pipes == given_map
    assert {fd: (fd_facts(fd), os.get_inheritable(fd)) for fd in open_fds()} == before


both = pytest.mark.parametrize("close_fds", [False, True])


@both
def test_shapes(probe, files, close_fds):
    a, b, c, d = files(4)
    free = max(open_fds()) + 5
    for fd_pipes in [
        {},
        {0: 0, 1: 1, 2: 2},
        {1: 1, 2: 2},  # 0 is inherited
        {0: a, 1: b, 2: b},
        {1: 2, 2: 1},  # swap
        {0: 1, 1: 2, 2: 0},  # cycle
        {a: b, b: a},
        {a: b, b: c, c: d, d: a},
        {a: b, b: c, c: d},  # chain
        {b: a, c: b, d: c},
        {0: a, 1: a, 2: a, b: a, free: a},  # fan-out
        {a: a, b: a},  # a source that is its own target
        {a: a, b: b},
        {a: b, c: b, b: a, d: a},
        {5 + free: a},
        {0: a},
        {9: 1},  # fd 1 is no key but a source: closed in the command
    ]:
        check(probe, fd_pipes, close_fds)


def test_default_is_the_three_standard_streams(probe, files):
    (inheritable,) = files(1)
    os.set_inheritable(inheritable, True)
    fds = probe.report()["fds"]
    assert fds == expected_fds({0: 0, 1: 1, 2: 2}, False)
    assert inheritable in fds
    assert probe.report(close_fds=True)["fds"] == expected_fds({0: 0, 1: 1, 2: 2}, True)


@both
def test_close_on_exec_sources_are_inherited(probe, files, close_fds):
    (fd,) = files(1)
    assert not os.get_inheritable(fd)
    check(probe, {fd: fd}, close_fds)


def test_close_fds_keeps_exactly_the_keys(probe, files):
    fds = files(20)
    for fd in fds:
        os.set_inheritable(fd, True)
    keys = {fds[3]: fds[3], fds[10]: fds[0], 1: 1}
    assert set(probe.report(fd_pipes=keys, close_fds=True)["fds"]) == set(keys)
    assert probe.report(fd_pipes={}, close_fds=True)["fds"] == {}


def test_empty_map_maps_nothing(probe, files):
    (fd,) = files(1)
    os.set_inheritable(fd, True)
    assert set(probe.report(fd_pipes={})["fds"]) == {
        fd for fd in open_fds() if os.get_inheritable(fd)
    }


def test_lazy_proxies_are_integers(probe, files):
    class Proxy:
        def __init__(self, value):
            self.value = value

        def __index__(self):
            return self.value

    (fd,) = files(1)
    fds = probe.report(fd_pipes={Proxy(7): Proxy(fd)})["fds"]
    assert fds[7] == fd_facts(fd)


@both
def test_up_to_the_limit(probe, files, close_fds):
    """The highest number there is; parking must not need a higher one."""
    a, b = files(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        top = os.dup2(a, 255)
        check(probe, {255: b, b: 255}, close_fds)
        check(probe, {254: 255, 255: b}, close_fds)
        with pytest.raises(SpawnError) as caught:
            spawn("true", fd_pipes={256: a})
        assert (caught.value.stage, caught.value.errno) == (Stage.FDS, 9)
    finally:
        os.close(top)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_full_table(probe, files):
    """No free number anywhere: maps that need none still work, others say so."""
    a, b = files(2)
    assert spawn("true") == 0  # decides how commands are started here
    own = 0 if "pidfd" in AVOIDED else 1
    if _core.start_mode() == "pipe":
        own = 3  # one moves while the other is open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 4, hard))
    filler = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filler.append(os.dup(a))
        for _ in range(own):
            os.close(filler.pop())
        assert spawn("true", fd_pipes={0: 0, 1: 1, 2: b}) == 0
        if own:
            with contextlib.suppress(OSError):
                while True:
                    filler.append(os.dup(a))
            with pytest.raises(SpawnError) as caught:
                spawn("true")
            assert (caught.value.stage, caught.value.errno) == (Stage.CLONE, 24)
    finally:
        for fd in filler:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("fd_pipes", "error"),
    [
        ({0: -1}, ValueError),
        ({-1: 0}, ValueError),
        ({2**31: 0}, ValueError),
        ({"1": 0}, TypeError),
        ({1: "0"}, TypeError),
        ({1: None}, TypeError),
        ({1: 1.0}, TypeError),
        ({1: 999}, OSError),
        (3, TypeError),
        ([1], TypeError),
    ],
)
def test_bad_maps_are_refused(fd_pipes, error):
    with pytest.raises(error) as caught:
        spawn("true", fd_pipes=fd_pipes)
    if error is OSError:
        assert (caught.value.stage, caught.value.errno) == (Stage.FDS, 9)
        assert "fd 999" in str(caught.value)


@pytest.mark.parametrize("pre_exec", [None, lambda: None])
@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("logfile", [False, True])
def test_closed_standard_descriptors(probe, closed, logfile, pre_exec, tmp_path):
    """They stay closed in the command, and no private descriptor takes their place."""
    program = f"""
import os, sys, spawnhelper
for fd in {closed!r}:
    os.close(fd)
keywords = {{}}
if {logfile}:
    keywords["logfile"] = {str(tmp_path / "log")!r}
if {pre_exec is not None}:
    keywords["pre_exec"] = lambda: None
first = spawnhelper.spawn(["sleep", "60"], returnproc=True)  # its pidfd must not be fd 0
for close_fds in (False, True):
    status = spawnhelper.spawn([{str(probe.program)!r}, sys.argv[1 + close_fds]],
                               close_fds=close_fds, **keywords)
    if status: os._exit(status)
left = [fd for fd in (0, 1, 2) if os.path.exists(f"/proc/self/fd/{{fd}}")]
first.kill(); first.wait()
os._exit(0 if not set(left) & set({closed!r}) else 99)
"""
    paths = [probe.report_path(), probe.report_path()]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, stdin=subprocess.DEVNULL)
    for path in paths:
        fds = probe.read(path)["fds"]
        expected = {0, 1, 2} - set(closed)
        if logfile:
            expected |= {1, 2}  # the pipe
        assert set(fds) == expected


@st.composite
def maps(draw):
    """A map over a handful of slots, some of which are open."""
    targets = draw(st.lists(st.integers(0, 9), unique=True, max_size=8))
    return {target: draw(st.integers(0, 5)) for target in targets}, draw(st.booleans())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(maps())
def test_any_map(probe, any_map_fds, drawn):
    shape, close_fds = drawn
    slots = any_map_fds
    fd_pipes = {slots[target]: slots[source] for target, source in shape.items()}
    report = probe.report(fd_pipes=fd_pipes, close_fds=close_fds)
    assert report["fds"] == expected_fds(fd_pipes, close_fds)


@pytest.fixture(scope="module")
def any_map_fds(tmp_path_factory):
    """Slots 0-5 are open (half of them inheritable), 6-9 are free numbers between them."""
    directory = tmp_path_factory.mktemp("slots")
    base = max(open_fds()) + 3
    slots = [base + n for n in (0, 2, 3, 5, 6, 8)] + [base + n for n in (1, 4, 7, 9)]
    for number, slot in enumerate(slots[:6]):
        fd = os.open(directory / str(number), os.O_RDWR | os.O_CREAT)
        os.dup2(fd, slot, inheritable=number % 2 == 0)
        os.close(fd)
    yield slots
    for slot in slots[:6]:
        os.close(slot)
