"""The types that users see; tests/typing_checks.py holds them."""

import importlib.util
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_types(tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path]
    subprocess.run([*command, "tests/typing_checks.py"], check=True, cwd=ROOT)
