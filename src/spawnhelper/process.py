"""The documented ``portage.process``, drop-in, on the engine of ``spawnhelper.spawn``.

Names, signatures and results are those of portage; docs/differences.md lists
what differs on purpose. This module adds policy only: a step that fails before
exec becomes text on the command's own stderr and status 1, isolation is best
effort, falsy ids are unset, argv[0] is the program's basename, programs are
looked up in the PATH of this process. Portage is never imported.

Every "As portage" names the place in portage where the behaviour is defined.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from io import TextIOWrapper
from operator import is_
from typing import Any, NoReturn

from . import _core, _errors, _hooks, _state
from ._errors import CommandNotFound, SpawnError
from ._fds import FdMap, get_open_fds, is_open, parse_map, sanitize_fds
from ._hooks import atexit_register, run_coroutine_exitfuncs, run_exitfuncs
from ._lookup import find_binary
from ._namespaces import listener
from ._process import Process as _Process
from ._request import make_request
from ._spawn import find_options
from ._spawn import launch as _launch
from ._spawn import spawn as _spawn
from ._stages import Stage
from ._trouble import (
    EnvStats,
    calc_env_stats,
    describe,
    largest_of,
    report_status,
    tell_isolation,
)

__all__ = [
    "AwaitableProcess",
    "CommandNotFound",
    "EnvStats",
    "atexit_register",
    "calc_env_stats",
    "cleanup",
    "env_too_large_warnings",
    "fakeroot_capable",
    "find_binary",
    "get_open_fds",
    "has_ipv6",
    "max_fd_limit",
    "run_coroutine_exitfuncs",
    "run_exitfuncs",
    "sandbox_capable",
    "sanitize_fds",
    "spawn",
    "spawn_bash",
    "spawn_fakeroot",
    "spawn_sandbox",
    "spawned_pids",
]

BASH_BINARY = "/bin/bash"
FAKEROOT_BINARY = "/usr/bin/fakeroot"
SANDBOX_BINARY = "/usr/bin/sandbox"

# Written by the engine's setup: see csrc/standin.c.
_STAND_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_standin")

_STANDARD = frozenset((0, 1, 2))
_LARGE_ENV = 98304  # bytes
_MOST_WARNINGS = 3


def _is_program(name: str) -> bool:
    return os.path.isfile(name) and os.access(name, os.X_OK)


sandbox_capable: bool = _is_program(SANDBOX_BINARY)
fakeroot_capable: bool = _is_program(FAKEROOT_BINARY)
max_fd_limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
env_too_large_warnings: int = 0

_hooks.register_at_exit()


# ---- what portage keeps for old callers ----


class _dummy_list(list[Any]):  # noqa: N801
    """A list whose ``remove`` does not mind an absent item (As portage: process.py)."""

    def remove(self, item: Any) -> None:
        """Remove the item if it is there.

        Args:
            item: any object.
        """
        warnings.warn("spawned_pids is always empty", DeprecationWarning, stacklevel=2)
        if item in self:
            super().remove(item)


spawned_pids = _dummy_list()


def cleanup() -> None:
    """Do nothing (As portage: process.py)."""


# ---- CommandNotFound ----

_not_found_classes: dict[type[BaseException] | None, type[CommandNotFound]] = {}


def _show_value(error: CommandNotFound) -> str:
    return error.value if isinstance(error.value, str) else repr(error.value)


def _reduce(error: CommandNotFound) -> tuple[Any, ...]:
    return (_not_found, (error.value,))


def _not_found_class() -> type[CommandNotFound]:
    """A class that ``except portage.exception.CommandNotFound`` catches, if that is loaded."""
    theirs = getattr(sys.modules.get("portage.exception"), "CommandNotFound", None)
    if not (isinstance(theirs, type) and issubclass(theirs, Exception)):
        theirs = None
    found = _not_found_classes.get(theirs)
    if found is None:
        ours = type(_errors.command_not_found(""))
        bases = (ours,) if theirs is None or issubclass(ours, theirs) else (ours, theirs)
        body = {"__module__": __name__, "__str__": _show_value, "__reduce__": _reduce}
        found = type("CommandNotFound", bases, body)
        _not_found_classes[theirs] = found
    return found


def _not_found(value: Any) -> CommandNotFound:
    return _not_found_class()(value[:])


# ---- spawn ----


class AwaitableProcess:
    """A process started with ``returnproc=True``.

    As ``portage.process.MultiprocessingProcess`` (lib/portage/process.py): its
    ``wait`` is a coroutine function. ``handle`` is the engine's handle, with
    all that ``spawnhelper.Process`` can do.
    """

    __slots__ = ("__weakref__", "handle")

    def __init__(self, handle: _Process) -> None:
        self.handle = handle

    @property
    def pid(self) -> int:
        """The process id."""
        return self.handle.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None until the end has been seen.

        Raises:
            ChildProcessError: the child was reaped by somebody else (before Linux 6.15).
        """
        return self.handle.returncode

    async def wait(self) -> int:
        """Wait for the end; any number of times, in any loop and thread, several at once.

        Returns:
            The exit status, or the negative number of the signal that killed it.

        Raises:
            ChildProcessError: the child was reaped by somebody else (before Linux 6.15).
        """
        return await self.handle.wait_async()

    def terminate(self) -> None:
        """Send SIGTERM; nothing if it has ended."""
        self.handle.terminate()

    def kill(self) -> None:
        """Send SIGKILL; nothing if it has ended."""
        self.handle.kill()

    def send_signal(self, signum: int) -> None:
        """Send a signal; nothing if it has ended.

        Args:
            signum: its number.

        Raises:
            OSError: EINVAL for an unknown signal, EPERM if it changed its user.
        """
        self.handle.send_signal(signum)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"


def _find(name: Any, path_lookup: bool, unseen: bool) -> Any:
    """The program to execute, as portage finds it: in the PATH of this process.

    With ``unseen`` an absolute path is not looked at: exec will say what is
    wrong with it, and the two system calls are saved.
    """
    unsearched = (BASH_BINARY, SANDBOX_BINARY, FAKEROOT_BINARY)
    if name in unsearched or (os.path.isabs(name) and (unseen or _is_program(name))):
        return name
    found = find_binary(name) if path_lookup else None
    if not found:
        raise _not_found(name)
    return found


def _are_usual() -> bool:
    """Whether the streams are those that were 0, 1 and 2, which are open and inheritable.

    A stream has its number for life (unless ``__init__`` is called again), and for a
    closed one our own fd counts.
    """
    streams = sys.__stdin__, sys.__stdout__, sys.__stderr__
    try:
        return (
            all(map(is_, streams, _state.usual_streams))
            and sys.stdin is sys.__stdin__
            and all(map(os.get_inheritable, _STANDARD))
        )
    except OSError:
        return False


def _standard_fds() -> FdMap | None:
    """stdin, stdout and stderr as Python knows them; None: they are 0, 1 and 2 as they are."""
    if _are_usual():
        return None
    stdin: Any = sys.__stdin__
    if stdin is None or stdin.closed:  # multiprocessing closes it and opens another
        stdin = sys.stdin
    streams = stdin, sys.__stdout__, sys.__stderr__
    pairs: FdMap = {}
    usual = True
    for fd, stream in enumerate(streams):
        try:
            source = stream.fileno()
            usual = os.get_inheritable(source) and source == fd and usual
        except (AttributeError, ValueError, OSError):
            continue  # none here: the command's is whatever our own fd is
        pairs[fd] = source
    if not usual:
        return _keep_standard(pairs)
    if len(pairs) == len(streams) and {*map(type, streams)} == {TextIOWrapper}:
        _state.usual_streams = streams
    return None


def _keep_standard(pairs: FdMap) -> FdMap:
    """A standard descriptor that is only given away under another number stays as well."""
    sources = pairs.values()
    kept = {fd: fd for fd in _STANDARD if fd not in pairs and fd in sources}
    return {**pairs, **kept}


def _map_fds(fd_pipes: Mapping[int, int] | None, close_fds: bool) -> Mapping[int, int] | None:
    if fd_pipes is None:
        return _standard_fds()
    if close_fds or (type(fd_pipes) is dict and fd_pipes.keys() >= _STANDARD):
        return fd_pipes
    return _keep_standard(parse_map(fd_pipes))


def _name_of(binary: Any, opt_name: Any) -> Any:
    """argv[0]: the basename, unless this is our own interpreter, which finds itself by it."""
    if opt_name:
        return opt_name
    return binary if binary == sys.executable else os.path.basename(binary)


def _to_strict(
    fd_pipes: Any,
    close_fds: Any,
    cwd: Any,
    ids: tuple[Any, Any, Any],
    umask: Any,
    pre_exec: Any,
    unshare: tuple[Any, Any, Any, Any],
    cgroup: Any,
    isolated: Any,
) -> tuple[Any, ...]:
    """The engine's options, in its order, for portage's values."""
    uid, gid, groups = ids
    return (
        _map_fds(fd_pipes, close_fds),
        list(groups) if groups else None,
        *(False, cwd, close_fds),  # the program is looked up here
        int(uid) if uid else None,
        int(gid) if gid else None,
        None if umask is None else int(umask) & 0o777,
        None if pre_exec is None else report_status(pre_exec),
        *unshare,
        cgroup or None,
        *("best-effort" if isolated else "required", False, unshare[3]),
    )


def _warn_if_large(words: Any, env: Mapping[Any, Any]) -> None:
    global env_too_large_warnings
    stats = calc_env_stats(env)
    if stats.env_size <= _LARGE_ENV or env_too_large_warnings >= _MOST_WARNINGS:
        return
    env_too_large_warnings += 1
    if sys.stderr is not None:
        sys.stderr.write(
            f"spawnhelper: the environment of {words!r} has {stats.env_size} bytes, it may fail. "
            f"Largest environment variable: {largest_of(stats)}\n"
        )
        sys.stderr.flush()


def _stand_in(
    text: str,
    status: int,
    fd_pipes: Any,
    logfile: Any,
    returnpid: bool,
    returnproc: bool,
) -> int | list[int] | _Process:
    """A process that says the text where the command would have, and has this status."""
    given = fd_pipes if isinstance(fd_pipes, Mapping) else {}
    pairs: FdMap = {}
    for fd in (1, 2):
        for source in (given.get(fd, fd), fd):
            if isinstance(source, int) and is_open(source):
                pairs.setdefault(fd, source)
    return _spawn(
        [_STAND_IN, text, str(status)],
        env={},
        fd_pipes=pairs,
        close_fds=True,
        logfile=logfile if len(pairs) == 2 else None,
        returnpid=returnpid,
        returnproc=returnproc,
    )


def _fd_of_stderr(fd_pipes: Any) -> int:
    source = fd_pipes.get(2, 2) if isinstance(fd_pipes, Mapping) else 2
    return source if isinstance(source, int) else 2


def _launch_isolated(given: tuple[Any, ...], *others: Any) -> Any:
    """The start; what best effort leaves out is a line on the command's stderr."""
    fds = None if given[0] is None else parse_map(given[0])
    fd = _fd_of_stderr(fds)
    token = listener.set(lambda notes: tell_isolation(notes, fd))
    try:
        return _launch((fds, *given[1:]), *others)
    finally:
        listener.reset(token)


def spawn(
    mycommand: Any,
    env: Any = None,
    opt_name: str | None = None,
    fd_pipes: Mapping[int, int] | None = None,
    returnpid: bool = False,
    uid: Any = None,
    gid: Any = None,
    groups: Iterable[Any] | None = None,
    umask: Any = None,
    cwd: Any = None,
    logfile: Any = None,
    path_lookup: bool = True,
    pre_exec: Callable[[], object] | None = None,
    close_fds: bool = False,
    unshare_net: bool = False,
    unshare_ipc: bool = False,
    unshare_mount: bool = False,
    unshare_pid: bool = False,
    cgroup: Any = None,
    returnproc: bool = False,
    warn_on_large_env: bool = False,
) -> int | list[int] | AwaitableProcess:
    """Start a command, and wait for it unless told otherwise.

    As ``portage.process.spawn`` (lib/portage/process.py: spawn, _exec, _exec2).

    Args:
        mycommand: the program and its arguments. A str is split on
            whitespace, without quoting.
        env: the complete environment (a mapping, or pairs); None inherits ours.
        opt_name: argv[0]; falsy means the basename of the program.
        fd_pipes: the command's descriptor -> ours. None means stdin, stdout
            and stderr as Python knows them. A standard descriptor that is no
            key is inherited.
        returnpid: do not wait; return the pids, that of the log's copier (if
            any) first. The caller reaps all of them.
        uid: user id; anything that ``int()`` takes. Falsy means unset.
        gid: group id, likewise.
        groups: supplementary groups. Falsy means unset.
        umask: file mode creation mask; None means unset.
        cwd: directory to enter; None means unset.
        logfile: file to which the output is appended, besides going to fd 1.
        path_lookup: look the program up in the PATH of this process, unless
            it is an absolute path to an executable file.
        pre_exec: called without arguments in the child, as the last step.
        close_fds: the command keeps exactly the keys of ``fd_pipes``.
        unshare_net: a network of its own, with a loopback device.
        unshare_ipc: System V IPC and message queues of its own.
        unshare_mount: mounts of its own.
        unshare_pid: a process space of its own; nothing outlives the command.
        cgroup: directory of the cgroup to join; falsy means ours.
        returnproc: do not wait; return an ``AwaitableProcess``.
        warn_on_large_env: say so on stderr if the environment is larger than
            98304 bytes, three times in all.

    Returns:
        The exit status, negative for a signal; or the list of pids; or the
        AwaitableProcess. A step that fails before exec is reported on the
        command's own stderr and counts as status 1.

    Raises:
        CommandNotFound: there is no such program. It is also portage's class
            of that name, if that is loaded.
        IndexError: the command is empty.
        ValueError: ``logfile`` without the keys 1 and 2.
        OSError: the log cannot be opened, or no process can be created.
    """
    words = mycommand.split() if isinstance(mycommand, str) else mycommand
    if env is not None and not isinstance(env, Mapping):
        env = dict(env)
    if warn_on_large_env:
        _warn_if_large(words, os.environ if env is None else env)
    # Nothing that somebody could notice happens before exec fails.
    unseen = pre_exec is None and not logfile
    binary = _find(words[0], path_lookup, unseen)
    if logfile and fd_pipes is not None and not (1 in fd_pipes and 2 in fd_pipes):
        raise ValueError(fd_pipes)
    log = os.fspath(logfile) if logfile else None
    pids_only = bool(returnpid and not returnproc)
    isolated = unshare_net or unshare_ipc or unshare_mount or unshare_pid or cgroup
    started: Any
    try:
        if cwd is not None and not os.path.isabs(binary):
            binary = os.path.abspath(binary)  # as found, not as seen from there
        ids, unshare = (uid, gid, groups), (unshare_net, unshare_ipc, unshare_mount, unshare_pid)
        given = _to_strict(
            fd_pipes, close_fds, cwd, ids, umask, pre_exec, unshare, cgroup, isolated
        )
        command, name = [binary, *words[1:]], _name_of(binary, opt_name)
        start = _launch_isolated if isolated else _launch
        started = start(given, command, env, name, None, log, pids_only, bool(returnproc))
    except (SpawnError, TypeError, ValueError) as error:
        if isinstance(error, SpawnError) and error.stage is Stage.CLONE:
            raise
        if unseen:
            _find(words[0], path_lookup, False)
        text, status = describe(error, words, env)
        started = _stand_in(text, status, fd_pipes, log, pids_only, bool(returnproc))
    return AwaitableProcess(started) if isinstance(started, _Process) else started


def spawn_bash(
    mycommand: str, debug: bool = False, opt_name: str | None = None, **keywords: Any
) -> int | list[int] | AwaitableProcess:
    """Run a command line with ``bash -c``.

    As ``portage.process.spawn_bash`` (lib/portage/process.py).

    Args:
        mycommand: the command line.
        debug: bash prints what it runs (``-x``).
        opt_name: argv[0]; falsy means the basename of the line's first word.
        keywords: as for ``spawn``.

    Returns:
        As ``spawn``.

    Raises:
        IndexError: the line is blank.
    """
    options = ["-x"] if debug else []
    name = opt_name or os.path.basename(mycommand.split(maxsplit=1)[0])
    return spawn([BASH_BINARY, *options, "-c", mycommand], opt_name=name, **keywords)


def spawn_sandbox(
    mycommand: str, opt_name: str | None = None, **keywords: Any
) -> int | list[int] | AwaitableProcess:
    """Run a command line under the sandbox program; without that program, as ``spawn_bash``.

    As ``portage.process.spawn_sandbox`` (lib/portage/process.py).

    Args:
        mycommand: the command line.
        opt_name: argv[0]; falsy means the basename of the line's first word.
        keywords: as for ``spawn``.

    Returns:
        As ``spawn``.

    Raises:
        IndexError: the line is blank.
    """
    if not sandbox_capable:
        return spawn_bash(mycommand, opt_name=opt_name, **keywords)
    name = opt_name or os.path.basename(mycommand.split(maxsplit=1)[0])
    return spawn([SANDBOX_BINARY, mycommand], opt_name=name, **keywords)


def spawn_fakeroot(
    mycommand: str, fakeroot_state: Any = None, opt_name: str | None = None, **keywords: Any
) -> int | list[int] | AwaitableProcess:
    """Run a command line under fakeroot.

    As ``portage.process.spawn_fakeroot`` (lib/portage/process.py).

    Args:
        mycommand: the command line.
        fakeroot_state: file from which fakeroot's idea of ownership is loaded
            and to which it is saved; made if it is missing.
        opt_name: argv[0]; falsy means the basename of the line's first word.
        keywords: as for ``spawn``.

    Returns:
        As ``spawn``. A missing fakeroot is an exec failure, status 1.

    Raises:
        IndexError: the line is blank.
        OSError: the state file cannot be made.
    """
    words = [FAKEROOT_BINARY]
    if fakeroot_state:
        os.close(os.open(fakeroot_state, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        words += ["-s", fakeroot_state, "-i", fakeroot_state]
    words += ["--", BASH_BINARY, "-c", mycommand]
    name = opt_name or os.path.basename(mycommand.split(maxsplit=1)[0])
    return spawn(words, opt_name=name, **keywords)


# ---- the stages alone, in a process that somebody forked ----


def _end_like(returncode: int) -> NoReturn:
    """End this process with the status of its command, a signal included."""
    if returncode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command's own is enough
        signal.signal(-returncode, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-returncode])
        os.kill(os.getpid(), -returncode)
    os._exit(returncode)


def _setup_pipes(
    fd_pipes: Mapping[int, int] | None, close_fds: bool = True, inheritable: bool | None = None
) -> None:
    """Make this process's descriptors what the map says: for a forked child.

    As ``portage.process._setup_pipes`` (lib/portage/process.py).

    Args:
        fd_pipes: descriptor to have -> descriptor as it is now; any map. One
            that is mapped, but is no key, is closed. None is an empty map.
        close_fds: close everything that is no key.
        inheritable: for all keys; None makes 0 to 2 inheritable and keeps for
            others what the mapped descriptor has.

    Raises:
        OSError: EBADF: one is not open, and nothing was changed.
        TypeError: a key or value is no integer.
    """
    pairs = parse_map(fd_pipes or {})
    private = set()
    for target, source in pairs.items():
        wanted = inheritable
        if wanted is None:
            wanted = target < 3 or os.get_inheritable(source)
        if not wanted:
            private.add(target)
    _core.arrange_fds(pairs, bool(close_fds))
    for fd in private:
        os.set_inheritable(fd, False)


def _exec(
    binary: Any,
    mycommand: Any,
    opt_name: Any,
    fd_pipes: Mapping[int, int] | None,
    env: Any,
    gid: Any,
    groups: Any,
    uid: Any,
    umask: Any,
    cwd: Any,
    pre_exec: Callable[[], object] | None,
    close_fds: bool,
    unshare_net: bool,
    unshare_ipc: bool,
    unshare_mount: bool,
    unshare_pid: bool,
    unshare_flags: int,  # noqa: ARG001
    cgroup: Any,
) -> NoReturn:
    """Turn this process, which was forked for it, into the command. Never returns.

    As ``portage.process._exec`` of the documented era (lib/portage/process.py).
    A failure is reported on stderr; the process ends with status 1, without
    running any cleanup of the program that it was forked from.

    Args:
        binary: path of the program.
        mycommand: the program and its arguments.
        opt_name: argv[0]; falsy means the basename of ``binary``.
        fd_pipes: as for ``spawn``.
        env: the complete environment.
        gid: as for ``spawn``.
        groups: as for ``spawn``.
        uid: as for ``spawn``.
        umask: as for ``spawn``.
        cwd: as for ``spawn``.
        pre_exec: as for ``spawn``.
        close_fds: as for ``spawn``.
        unshare_net: as for ``spawn``.
        unshare_ipc: as for ``spawn``.
        unshare_mount: as for ``spawn``.
        unshare_pid: as for ``spawn``.
        unshare_flags: ignored; the four above say the same.
        cgroup: as for ``spawn``.
    """
    status = 1
    try:
        words, name = [binary, *mycommand[1:]], _name_of(binary, opt_name)
        ids, unshare = (uid, gid, groups), (unshare_net, unshare_ipc, unshare_mount, unshare_pid)
        given = _to_strict(fd_pipes, close_fds, cwd, ids, umask, pre_exec, unshare, cgroup, True)
        if unshare_pid:  # for children only: this process stays, and ends as the command does
            _end_like(_launch_isolated(given, words, env, name, None, None, False, False))
        request = make_request(words, env, name, find_options(given))
        _core.become(request, lambda notes: tell_isolation(notes, 2))
    except BaseException as error:
        text, status = describe(error, mycommand, env)
        os.write(_fd_of_stderr(fd_pipes) if unshare_pid else 2, os.fsencode(text))
    finally:
        os._exit(status)


# ---- network ----


def _configure_loopback_interface() -> None:
    """Bring up lo in this process's network namespace: for a forked child that unshared it.

    As ``portage.process._configure_loopback_interface`` (lib/portage/process.py):
    lo is up, with 127.0.0.1/8, ::1/128, 10.0.0.1/8 and, where the kernel has
    IPv6, fd::1/8. A failure is one line on stderr.
    """
    try:
        _core.raise_loopback()
    except SpawnError as error:
        if sys.stderr is not None:
            sys.stderr.write(f"spawnhelper: {error}\n")
            sys.stderr.flush()


_ipv6: bool | None = None


def has_ipv6() -> bool:
    """Whether a socket can be bound to the IPv6 loopback address; asked once.

    As ``portage.process.has_ipv6`` (lib/portage/process.py).
    """
    global _ipv6
    if _ipv6 is None:
        _ipv6 = _can_bind_ipv6()
    return _ipv6


_has_ipv6 = has_ipv6


def _can_bind_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# ---- which namespaces work ----


class _unshare_validator:  # noqa: N801
    """Which errno unshare(2) gives for a set of flags; each is tried once, elsewhere.

    As ``portage.process._unshare_validator`` (lib/portage/process.py). An
    error that may pass (no memory, no free id) is not remembered.
    """

    _PASSING = frozenset({4, 11, 12, 28, 87})  # EINTR EAGAIN ENOMEM ENOSPC EUSERS

    def __init__(self) -> None:
        self._results: dict[int, int] = {}

    def __call__(self, flags: int) -> int:
        """The errno for these flags, 0 if they work.

        Args:
            flags: CLONE_NEW* flags, or-ed.
        """
        known = self._results.get(flags)
        if known is None:
            known = self._validate(flags)
            if known not in self._PASSING:
                self._results[flags] = known
        return known

    @classmethod
    def _validate(cls, flags: int) -> int:
        """Try it in a process that is thrown away.

        Args:
            flags: CLONE_NEW* flags, or-ed.

        Returns:
            errno; 0 if it works.
        """
        return _core.try_unshare(flags)

    @staticmethod
    def _run_subproc(
        subproc_pipe: Any,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = {},  # noqa: B006
    ) -> None:
        """Call the function and send its result: for a process of its own.

        Args:
            subproc_pipe: a ``multiprocessing`` connection; it is closed.
            target: the function.
            args: its arguments.
            kwargs: its keyword arguments.
        """
        subproc_pipe.send(target(*args, **kwargs))
        subproc_pipe.close()

    @staticmethod
    def _validate_subproc(unshare: Callable[[int], int], flags: int) -> int:
        """Call libc's ``unshare`` in this process.

        Args:
            unshare: a ctypes function that keeps errno.
            flags: CLONE_NEW* flags, or-ed.

        Returns:
            errno; 0 if it worked.
        """
        import ctypes

        return ctypes.get_errno() if unshare(flags) != 0 else 0


_unshare_validate = _unshare_validator()
