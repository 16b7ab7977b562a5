"""The environment: inherited, replaced, encoded."""

import os
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spawnhelper import SpawnError, spawn

pytestmark = pytest.mark.core


def as_reported(env):
    return [
        b"=".join((os.fsencode(name), os.fsencode(value))).decode("latin-1")
        for name, value in env.items()
    ]


def test_none_inherits(probe, monkeypatch):
    monkeypatch.setenv("SPAWNHELPER_TEST", "caf\u00e9 \udcff")
    assert probe.report()["env"] == as_reported(os.environ)
    monkeypatch.setenv("SPAWNHELPER_TEST", "changed")
    assert "SPAWNHELPER_TEST=changed" in probe.report()["env"]
    monkeypatch.delenv("SPAWNHELPER_TEST")
    assert probe.report()["env"] == as_reported(os.environ)


def test_a_replaced_os_environ_is_honoured(probe, monkeypatch):
    monkeypatch.setattr(os, "environ", {"ONLY": "this"})
    assert probe.report()["env"] == ["ONLY=this"]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"A": "1"},
        {b"A": b"1", b"B": b""},
        {"A": b"1", b"B": "2"},
        {"caf\u00e9": "\udc80\udcff", "X": "=a=b"},
        types.MappingProxyType({"P": "1"}),
        dict(os.environ),
        os.environ,
    ],
    ids=lambda env: f"{type(env).__name__}{len(env)}",
)
def test_a_mapping_replaces(probe, env):
    assert probe.changes(env=env).keys() <= {"env"}
    assert probe.report(env=env)["env"] == as_reported(env)


def test_the_callers_later_changes_are_seen(probe):
    """The cache compares values, not identities."""
    env = {"A": "1"}
    assert probe.report(env=env)["env"] == ["A=1"]
    env["A"] = "2"
    assert probe.report(env=env)["env"] == ["A=2"]
    env["B"] = "3"
    assert probe.report(env=env)["env"] == ["A=2", "B=3"]
    assert probe.report(env={b"A": b"2"})["env"] == ["A=2"]


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"A\0": "1"}, ValueError),
        ({"A": "1\0"}, ValueError),
        ({b"A": b"\0"}, ValueError),
        ({"A": "1\0B=2", "C": "1"}, ValueError),
        ({"A=B": "1"}, ValueError),
        ({"=": "1"}, ValueError),
        ({"": "1"}, ValueError),
        ({"": "1", "B": "2"}, ValueError),
        ({"B": "2", "": "1"}, ValueError),
        ({b"": b"1"}, ValueError),
        ({"A": 1}, TypeError),
        ({1: "A"}, TypeError),
        ({"A": None}, TypeError),
        ([("A", "1")], TypeError),
        ("A=1", TypeError),
        (5, TypeError),
        ({"A": "\ud800"}, ValueError),
    ],
)
def test_bad_environments_are_refused(env, error):
    with pytest.raises(error):
        spawn("true", env=env)


def test_too_large_is_the_kernels_word():
    with pytest.raises(SpawnError, match="too large"):
        spawn("true", env={"A": "x" * 131072, "PATH": os.environ["PATH"]})


text = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0") | st.just("\udcff"),
    max_size=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(text.filter(lambda name: name and "=" not in name), text, max_size=6))
def test_round_trip(probe, env):
    assert probe.report(env=env)["env"] == as_reported(env)
