"""C and Python agree, and the layers hold."""

import ast
import re
from pathlib import Path

import pytest

import spawnhelper
from conftest import ROOT, open_fds
from spawnhelper import Stage, _core
from spawnhelper._request import PLAIN
from spawnhelper._spawnhelper import ffi, lib

pytestmark = pytest.mark.core

SOURCE = Path(spawnhelper.__file__).parent


def test_stages_are_those_of_the_c_core():
    names = [ffi.string(lib.sh_stage_name(stage)).decode() for stage in Stage]
    assert names == [stage.name for stage in Stage]
    assert ffi.string(lib.sh_stage_name(len(Stage))) == b"?"


def test_stages_of_the_design():
    assert " ".join(stage.name for stage in Stage) == (
        "CLONE CGROUP NAMESPACES PROPAGATION PROC HOSTNAME LOOPBACK FDS GROUPS GID UID UMASK "
        "CHDIR PRE_EXEC EXEC"
    )


def imports_of(path: Path) -> set[str]:
    """Sibling modules that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


ORDER = [
    "_spawnhelper", "_stages", "_remedies", "_errors", "_state", "_fds", "_lookup", "_request",
    "_core", "_namespaces", "_aio", "_process", "_group", "_log", "_spawn", "_hooks", "_trouble",
    "process", "_probe", "__init__", "_foreground", "_doctor", "_cli", "__main__",
]  # fmt: skip


def test_imports_run_downward():
    for path in SOURCE.glob("*.py"):
        if path.stem == "_build":
            continue
        above = ORDER[ORDER.index(path.stem) :]
        assert not imports_of(path) & set(above), path.name


def test_one_module_touches_cffi():
    users = {path.stem for path in SOURCE.glob("*.py") if "_spawnhelper" in imports_of(path)}
    assert users == {"_core"}


def test_public_names():
    import types

    public = {
        name
        for name, value in vars(spawnhelper).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(spawnhelper.__all__) - {"__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", spawnhelper.__version__)


def test_public_docstrings_are_complete():
    """Every parameter is explained, everything raised is listed."""
    import inspect

    for name in spawnhelper.__all__:
        thing = getattr(spawnhelper, name)
        if isinstance(thing, str):
            continue
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            doc = inspect.getdoc(thing)
            for parameter in inspect.signature(thing).parameters:
                assert re.search(rf"^ *{parameter}: ", doc, re.MULTILINE), (name, parameter)
        else:
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and (inspect.isfunction(value)):
                    assert inspect.getdoc(value), (name, attribute)


def test_helper_program_is_shipped():
    from spawnhelper import _log

    mode = Path(_log.COPIER).stat().st_mode
    assert mode & 0o777 == 0o755
    assert Path(_log.COPIER).read_bytes()[:4] == b"\x7fELF"


def test_changelog_knows_this_version():
    changelog = ROOT / "CHANGELOG.md"
    assert f"## {spawnhelper.__version__}" in changelog.read_text()


def test_a_log_closes_what_it_opened():
    before = open_fds()
    log = _core.new_log()
    _core.open_log(log, PLAIN, b"/dev/null", True)
    assert len(open_fds() - before) == 3
    _core.close_log(log)
    assert open_fds() == before
    _core.open_log(log, PLAIN, b"/dev/null", False)
    del log
    assert open_fds() == before
