"""spawnhelper.process has the documented names and signatures, and today's."""

import dataclasses
import inspect
import sys

import pytest

from spawnhelper import process

pytestmark = pytest.mark.core

DOCUMENTED = {
    "spawn": "(mycommand, env=None, opt_name=None, fd_pipes=None, returnpid=False, uid=None, "
    "gid=None, groups=None, umask=None, cwd=None, logfile=None, path_lookup=True, pre_exec=None, "
    "close_fds=False, unshare_net=False, unshare_ipc=False, unshare_mount=False, "
    "unshare_pid=False, cgroup=None",
    "spawn_bash": "(mycommand, debug=False, opt_name=None, **keywords)",
    "spawn_fakeroot": "(mycommand, fakeroot_state=None, opt_name=None, **keywords)",
    "spawn_sandbox": "(mycommand, opt_name=None, **keywords)",
    "_exec": "(binary, mycommand, opt_name, fd_pipes, env, gid, groups, uid, umask, cwd, "
    "pre_exec, close_fds, unshare_net, unshare_ipc, unshare_mount, unshare_pid, unshare_flags, "
    "cgroup)",
    "_setup_pipes": "(fd_pipes, close_fds=True, inheritable=None)",
    "_configure_loopback_interface": "()",
    "_has_ipv6": "()",
    "_unshare_validator._run_subproc": "(subproc_pipe, target, args=(), kwargs={})",
    "_unshare_validator._validate": "(flags)",
    "_unshare_validator._validate_subproc": "(unshare, flags)",
    "_dummy_list.remove": "(self, item)",
    "atexit_register": "(func, *args, **kargs)",
    "run_exitfuncs": "()",
    "cleanup": "()",
    "find_binary": "(binary)",
    "get_open_fds": "()",
    "sanitize_fds": "()",
}

TODAY = [
    *("has_ipv6", "calc_env_stats", "EnvStats", "env_too_large_warnings", "sandbox_capable"),
    *("fakeroot_capable", "max_fd_limit", "run_coroutine_exitfuncs", "_unshare_validate"),
    *("spawned_pids", "CommandNotFound", "BASH_BINARY", "FAKEROOT_BINARY", "SANDBOX_BINARY"),
]

# Where the eras differ (portage-behaviour: documented era before 3.0.45.3) ours are the documented
# ones, with today's keywords at the end.
DIFFERENT_TODAY = {"spawn", "_exec"}


def find(module, name):
    thing = module
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


def bare(signature):
    """Names and defaults: annotations are ours."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_signature(name):
    expected = DOCUMENTED[name]
    if name == "spawn":
        expected += ", returnproc=False, warn_on_large_env=False)"
    assert bare(inspect.signature(find(process, name))) == expected


@pytest.mark.parametrize("name", DOCUMENTED)
def test_signature_of_the_installed_portage(name):
    theirs = pytest.importorskip("portage.process", reason="needs portage")
    if name == "_has_ipv6":
        name = "has_ipv6"
    if name.startswith("_unshare_validator."):
        found = getattr(type(theirs._unshare_validate), name.partition(".")[2], None)
        if found is None:
            pytest.fail(f"portage has no {name} any more")
    else:
        found = find(theirs, name)
    ours = inspect.signature(find(process, name))
    if name == "spawn":  # the same keywords and defaults, in another order
        assert {key: value.default for key, value in ours.parameters.items()} == {
            key: value.default for key, value in inspect.signature(found).parameters.items()
        }
    elif name == "_exec":
        assert list(inspect.signature(found).parameters) == list(ours.parameters)[:-1]
    elif name.endswith("_validate_subproc"):
        assert list(inspect.signature(found).parameters)[-1] == list(ours.parameters)[-1]
    else:
        assert bare(inspect.signature(found)) == bare(ours)


@pytest.mark.parametrize("name", TODAY)
def test_name_of_today(name):
    assert hasattr(process, name)


def test_constants_of_the_installed_portage():
    theirs = pytest.importorskip("portage.process", reason="needs portage")
    for name in ("BASH_BINARY", "FAKEROOT_BINARY", "SANDBOX_BINARY"):
        assert getattr(theirs, name).endswith(getattr(process, name))
    for name in ("sandbox_capable", "fakeroot_capable", "env_too_large_warnings"):
        assert getattr(theirs, name) == getattr(process, name)
    assert [field.name for field in dataclasses.fields(theirs.EnvStats)] == [
        field.name for field in dataclasses.fields(process.EnvStats)
    ]


def test_every_function_is_explained():
    """Each parameter, each error, and where portage defines the behaviour."""
    for name in DOCUMENTED:
        function = find(process, name)
        doc = inspect.getdoc(function)
        assert doc, name
        for parameter in inspect.signature(function).parameters:
            if parameter != "self":
                assert f"{parameter}: " in doc, (name, parameter)
    for name in process.__all__:
        thing = getattr(process, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


def test_importing_never_imports_portage():
    import subprocess

    code = (
        "import sys, spawnhelper.process as p\n"
        "try: p.spawn(['/nonexistent'])\n"
        "except p.CommandNotFound: pass\n"
        "p.spawn(['/bin/true'], cwd='/nonexistent')\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'portage']\n"
        "assert 'asyncio' not in sys.modules and 'multiprocessing' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_dummy_list():
    for _ in range(2):
        with pytest.warns(DeprecationWarning):
            process.spawned_pids.remove(5)
    assert process.spawned_pids == []
    listed = process._dummy_list([1, 2])
    with pytest.warns(DeprecationWarning):
        listed.remove(1)
    assert listed == [2]
    assert process.cleanup() is None


def test_what_is_left_to_portage():
    for name in ("Process", "MultiprocessingProcess", "_start_fork", "_chain_pre_exec_fns"):
        assert name not in vars(process)
