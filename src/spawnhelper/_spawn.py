"""spawn(): the documented signature, with strict meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import is_
from pathlib import PosixPath
from typing import Any, Literal, SupportsIndex, overload

from . import _core, _state
from ._log import LogPipe, run_logged
from ._namespaces import IsolationPolicy, Namespaces, to_best_effort, to_user, warn
from ._process import Process
from ._request import (
    PLAIN,
    Argument,
    Command,
    Env,
    Isolation,
    Options,
    Request,
    encode,
    make_options,
    pack,
)

_NOT_ISOLATED = Isolation()
# What is kept for later calls must not change, and its == must be Python's own; so types
# are compared first. (0.0 is 0, but no uid; b"" == "" may raise.) An object() is equal to
# itself alone: two of them stand for fd_pipes and groups, which may change.
_CONSTANTS = frozenset((type(None), bool, int, str, bytes, PosixPath, object))
_MAP, _LIST = object(), object()
_DEFAULTS = (
    *(None, None, True, None, False, None, None, None, None),
    *(False, False, False, False, None, "required", False, False),
)


def _enter(namespaces: object, unshare: bool | Literal["root"]) -> Namespaces:
    """The set, if it can be entered."""
    if not isinstance(namespaces, Namespaces):
        raise TypeError(f"namespaces: {type(namespaces).__name__} is no Namespaces")
    if unshare:
        raise ValueError("namespaces: a prepared set and unshare_* exclude each other")
    _core.check_set(namespaces._set)
    return namespaces


def _make_isolation(
    net: object,
    ipc: object,
    mount: object,
    pid: object,
    cgroup: Argument | None,
    policy: str,
    user: object,
    session: object,
) -> Isolation | None:
    wanted = Isolation(
        bool(net),
        bool(ipc),
        bool(mount),
        bool(pid),
        to_user(user),
        None if cgroup is None else encode(cgroup, "cgroup"),
        to_best_effort(policy),
        bool(session),
    )
    return None if wanted == _NOT_ISOLATED else wanted


def _to_key(fds: Any, groups: Any, others: Iterable[Any]) -> tuple[Any, ...]:
    """The options as values that can be kept and compared; the map and the list are copies."""
    numbers: tuple[Any, ...] = ()
    if type(fds) is dict:
        numbers = (len(fds), *fds, *fds.values())
        fds = _MAP
    if type(groups) is tuple:
        numbers += groups
        groups = _LIST
    return fds, groups, *others, *numbers


def find_options(given: tuple[Any, ...]) -> Options:
    """What ``spawn()``'s keywords ask for; if they are the last call's, what it made of them."""
    if all(map(is_, given, _DEFAULTS)):
        _state.last_options = given, PLAIN
        return PLAIN
    fds, groups, *others = given
    key = given
    if fds is not None or groups is not None:
        fds = fds.copy() if type(fds) is dict else fds
        groups = tuple(groups) if type(groups) is list else groups
        key = _to_key(fds, groups, others)
    types = list(map(type, key))
    options: Options
    last, last_types, options = _state.equal_options
    if types != last_types or key != last:
        lookup, cwd, close_fds, uid, gid, umask, pre_exec, *rest = others
        wanted = _make_isolation(*rest)
        options = make_options(
            lookup, cwd, fds, close_fds, uid, gid, groups, umask, pre_exec, wanted
        )
        if not _CONSTANTS.issuperset(types):
            return options
        _state.equal_options = key, types, options
    if key is given:
        _state.last_options = given, options
    return options


def _has_user(request: Request) -> bool:
    """Whether the command gets a user namespace, its own or that of its set."""
    isolation, entered = request.options.isolation, request.set
    fresh = isolation is not None and bool(isolation.user)
    return fresh or (entered is not None and _core.set_has_user(entered))


def _warn(request: Request, handle: Any, stacklevel: int) -> None:
    isolation = request.options.isolation
    if isolation is None or not isolation.best_effort:
        return
    in_user = _has_user(request)
    known = () if request.set is None else _core.notes(request.set, in_user)
    notes = _core.notes(handle, in_user)
    warn(tuple(note for note in notes if note not in known), stacklevel + 1)


def _run(request: Request, logfile: Argument | None) -> int:
    handle = _core.borrow_handle()
    log = None if logfile is None else LogPipe(request, logfile, True)
    try:
        opened = None if log is None else log.log
        _core.start(request, handle, opened)
        _warn(request, handle, 4)  # now, not after an hour's build
        status = _core.finish_run(handle, opened)
    except BaseException:
        _core.end(handle)
        raise
    finally:
        if log is not None:
            log.close()
    _core.give_back(handle)
    return status


def _open(request: Request, logfile: Argument | None, process: Process) -> None:
    if logfile is None:
        _core.start(request, process._handle, None)
        return
    log = LogPipe(request, logfile, False)
    try:
        _core.start(request, process._handle, log.log)
        process._copier = log.start_copier(process)
    finally:
        log.close()


def _give(process: Process, request: Request) -> list[int]:
    """Leave the child to the caller, and the copier."""
    copier = process._copier
    pids = [process.pid] if copier is None else [copier.pid, process.pid]
    _core.give(request, process._handle, None if copier is None else copier._handle)
    return pids


def _start(request: Request, logfile: Argument | None, returnproc: bool) -> list[int] | Process:
    process = Process(request.argv, _core.new_handle())
    try:
        _open(request, logfile, process)
        process._in_user = _has_user(request)
        _warn(request, process._handle, 4)
        if returnproc:
            process._keep()
            return process
        return _give(process, request)
    except BaseException:
        process._end()
        raise


def launch(
    given: tuple[Any, ...],
    command: Command,
    env: Env | None,
    opt_name: str | bytes | None,
    entered: Any,
    logfile: Argument | None,
    returnpid: bool,
    returnproc: bool,
) -> int | list[int] | Process:
    """Start what ``spawn()`` or ``process.spawn()`` was asked for; both are its only callers.

    Args:
        given: the options, in the order of ``_DEFAULTS``.
        command: as for ``spawn()``.
        env: as for ``spawn()``.
        opt_name: as for ``spawn()``.
        entered: the prepared set.
        logfile: as for ``spawn()``.
        returnpid: as for ``spawn()``.
        returnproc: as for ``spawn()``.
    """
    last, options = _state.last_options
    if not all(map(is_, given, last)):
        options = find_options(given)
    packed = pack(command, env, opt_name)
    waits = not returnpid and not returnproc
    if waits and options.runs_in_c:
        if logfile is not None:
            return run_logged(packed, options, entered, logfile)
        return _core.run(packed, options, entered)
    request = Request(*packed, options, entered)
    return _run(request, logfile) if waits else _start(request, logfile, returnproc)


@overload
def spawn(
    mycommand: Command,
    env: Env | None = ...,
    opt_name: str | bytes | None = ...,
    fd_pipes: Mapping[int, int] | None = ...,
    returnpid: Literal[False] = ...,
    uid: SupportsIndex | None = ...,
    gid: SupportsIndex | None = ...,
    groups: Iterable[SupportsIndex] | None = ...,
    umask: SupportsIndex | None = ...,
    cwd: Argument | None = ...,
    logfile: Argument | None = ...,
    path_lookup: bool = ...,
    pre_exec: Callable[[], object] | None = ...,
    close_fds: bool = ...,
    unshare_net: bool = ...,
    unshare_ipc: bool = ...,
    unshare_mount: bool = ...,
    unshare_pid: bool = ...,
    cgroup: Argument | None = ...,
    *,
    returnproc: Literal[False] = ...,
    namespaces: Namespaces | None = ...,
    isolation: IsolationPolicy = ...,
    start_new_session: bool | None = ...,
    unshare_user: bool | Literal["root"] = ...,
) -> int: ...
@overload
def spawn(
    mycommand: Command,
    env: Env | None = ...,
    opt_name: str | bytes | None = ...,
    fd_pipes: Mapping[int, int] | None = ...,
    *,
    returnpid: Literal[True],
    uid: SupportsIndex | None = ...,
    gid: SupportsIndex | None = ...,
    groups: Iterable[SupportsIndex] | None = ...,
    umask: SupportsIndex | None = ...,
    cwd: Argument | None = ...,
    logfile: Argument | None = ...,
    path_lookup: bool = ...,
    pre_exec: Callable[[], object] | None = ...,
    close_fds: bool = ...,
    unshare_net: bool = ...,
    unshare_ipc: bool = ...,
    unshare_mount: bool = ...,
    unshare_pid: bool = ...,
    cgroup: Argument | None = ...,
    returnproc: Literal[False] = ...,
    namespaces: Namespaces | None = ...,
    isolation: IsolationPolicy = ...,
    start_new_session: bool | None = ...,
    unshare_user: bool | Literal["root"] = ...,
) -> list[int]: ...
@overload
def spawn(
    mycommand: Command,
    env: Env | None = ...,
    opt_name: str | bytes | None = ...,
    fd_pipes: Mapping[int, int] | None = ...,
    returnpid: Literal[False] = ...,
    uid: SupportsIndex | None = ...,
    gid: SupportsIndex | None = ...,
    groups: Iterable[SupportsIndex] | None = ...,
    umask: SupportsIndex | None = ...,
    cwd: Argument | None = ...,
    logfile: Argument | None = ...,
    path_lookup: bool = ...,
    pre_exec: Callable[[], object] | None = ...,
    close_fds: bool = ...,
    unshare_net: bool = ...,
    unshare_ipc: bool = ...,
    unshare_mount: bool = ...,
    unshare_pid: bool = ...,
    cgroup: Argument | None = ...,
    *,
    returnproc: Literal[True],
    namespaces: Namespaces | None = ...,
    isolation: IsolationPolicy = ...,
    start_new_session: bool | None = ...,
    unshare_user: bool | Literal["root"] = ...,
) -> Process: ...
@overload
def spawn(
    mycommand: Command,
    env: Env | None = ...,
    opt_name: str | bytes | None = ...,
    fd_pipes: Mapping[int, int] | None = ...,
    returnpid: bool = ...,
    uid: SupportsIndex | None = ...,
    gid: SupportsIndex | None = ...,
    groups: Iterable[SupportsIndex] | None = ...,
    umask: SupportsIndex | None = ...,
    cwd: Argument | None = ...,
    logfile: Argument | None = ...,
    path_lookup: bool = ...,
    pre_exec: Callable[[], object] | None = ...,
    close_fds: bool = ...,
    unshare_net: bool = ...,
    unshare_ipc: bool = ...,
    unshare_mount: bool = ...,
    unshare_pid: bool = ...,
    cgroup: Argument | None = ...,
    *,
    returnproc: bool = ...,
    namespaces: Namespaces | None = ...,
    isolation: IsolationPolicy = ...,
    start_new_session: bool | None = ...,
    unshare_user: bool | Literal["root"] = ...,
) -> int | list[int] | Process: ...
def spawn(
    mycommand: Command,
    env: Env | None = None,
    opt_name: str | bytes | None = None,
    fd_pipes: Mapping[int, int] | None = None,
    returnpid: bool = False,
    uid: SupportsIndex | None = None,
    gid: SupportsIndex | None = None,
    groups: Iterable[SupportsIndex] | None = None,
    umask: SupportsIndex | None = None,
    cwd: Argument | None = None,
    logfile: Argument | None = None,
    path_lookup: bool = True,
    pre_exec: Callable[[], object] | None = None,
    close_fds: bool = False,
    unshare_net: bool = False,
    unshare_ipc: bool = False,
    unshare_mount: bool = False,
    unshare_pid: bool = False,
    cgroup: Argument | None = None,
    *,
    returnproc: bool = False,
    namespaces: Namespaces | None = None,
    isolation: IsolationPolicy = "required",
    start_new_session: bool | None = None,
    unshare_user: bool | Literal["root"] = False,
) -> int | list[int] | Process:
    """Start a command, and wait for it unless told otherwise.

    The signature is ``portage.process.spawn``'s; the meaning is strict: None
    means unset and 0 is a value, and a step that fails is an exception that
    names the step, never an exit status.

    Args:
        mycommand: the program and its arguments. A str is split on
            whitespace, without quoting.
        env: the complete environment; None inherits this process's. Names and
            values are str (encoded as ``os.fsencode`` does) or bytes.
        opt_name: argv[0]; None means the program as given.
        fd_pipes: the command's descriptor -> ours, any map. None means 0, 1
            and 2, as far as they are open. One of ours that is mapped, but is
            itself no key, is closed in the command. Other inheritable
            descriptors are inherited, unless ``close_fds``.
        returnpid: do not wait; return the pids, log copier (if any) first.
            The caller reaps all of them (os.waitpid).
        uid: real, effective and saved user id to change to. Without
            ``groups`` and ``gid`` **the command keeps this process's groups
            and gid**, root's for example.
        gid: real, effective and saved group id.
        groups: supplementary groups; ``[]`` clears them.
        umask: file mode creation mask, 0 to 0o777.
        cwd: directory to enter, as the new user.
        logfile: file to which stdout and stderr are appended, in order,
            besides going to the original fd 1. Needs keys 1 and 2 in
            ``fd_pipes``. A process that the command leaves behind does not
            delay the call: what it writes after the command's end is lost.
        path_lookup: look a name without slash up in PATH: that of ``env``, or
            of this process if ``env`` is None; if PATH is not set, in /bin
            and /usr/bin; with the rights of this process, not of ``uid``.
            False uses the name as it is.
        pre_exec: called without arguments in the child as the last step.
            This alone needs a real fork with Python code in the child: slow
            for large programs, and unsafe in threaded ones. All signals are
            blocked while it runs.
        close_fds: the command keeps exactly the keys of ``fd_pipes``.
        unshare_net: a network and UTS namespace of its own: lo is up with
            127.0.0.1, ::1, 10.0.0.1/8 and, where the kernel has IPv6, fd::1/8;
            the host is called localhost.
        unshare_ipc: an IPC namespace of its own (ipc_namespaces(7)).
        unshare_mount: a mount namespace of its own: mounts made inside stay
            there, those that the host makes later arrive (MS_SLAVE).
        unshare_pid: a pid namespace of its own, with a /proc, and a mount
            namespace for that. The command is still this process's child,
            with its own exact status. When it ends, everything that it has
            left is killed, and gone when its end has been waited for.
        cgroup: directory of the cgroup to be born into (v2, Linux 5.7), or to
            be moved into before anything else (v1).
        returnproc: do not wait; return a ``Process``.
        namespaces: a prepared set to enter, instead of ``unshare_*``. It is
            entered as a whole, or the start fails, under either policy; what
            a set lacks that was made with best effort is in the ``notes`` of
            its commands, too.
        isolation: ``"required"``: the command never runs less isolated than
            asked. ``"best-effort"``: failures of CGROUP, NAMESPACES,
            PROPAGATION, HOSTNAME and LOOPBACK become notes
            (``Process.notes``) and one ``IsolationWarning``; a namespace that
            is refused is left out alone.
        start_new_session: give the command a session of its own (setsid(2));
            None: if it is in a pid namespace, whose ``kill(0, …)`` could
            otherwise reach outside. False keeps the terminal: for
            interactive commands.
        unshare_user: a user namespace of its own, in which an ordinary user
            has the rights for all the others, where the kernel allows it
            (user_namespaces(7)): True maps the effective uid and gid to
            themselves, ``"root"`` to 0. No other id exists inside, and
            setgroups is denied. Not with ``pre_exec`` and ``unshare_pid``.

    Returns:
        The exit status, negative for a signal; or the list of pids; or the Process.

    The command starts with this thread's signal mask. SIGINT, SIGTERM,
    SIGQUIT, SIGCHLD, SIGPIPE and SIGXFSZ have their default disposition, and
    so has every signal that is caught here; others that are ignored stay so.

    If an exception (KeyboardInterrupt, say) interrupts the call, the command
    gets SIGTERM, after one second SIGKILL, and is reaped before it propagates.

    Raises:
        CommandNotFound: PATH has no such program.
        SpawnError: a step failed; ``.stage`` says which. It is also an
            instance of the builtin class of its errno.
        TypeError: an argument has the wrong type.
        ValueError: an argument has an impossible value.
        ChildProcessError: somebody else reaped the command (waiting mode).
    """
    if returnpid and returnproc:
        raise ValueError("returnpid and returnproc exclude each other")
    entered, in_pid, in_user = None, unshare_pid, unshare_user
    if namespaces is not None:
        fresh = unshare_net or unshare_ipc or unshare_mount or unshare_pid or unshare_user
        chosen = _enter(namespaces, fresh)
        entered, in_pid, in_user = chosen._set, chosen._in_pid, chosen._in_user
    if pre_exec is not None and in_pid and in_user:
        raise ValueError(
            "pre_exec: no thread may enter a user namespace (setns(2)), so Python code "
            "cannot run in a pid namespace inside one"
        )
    given = (
        fd_pipes,
        groups,
        path_lookup,
        cwd,
        close_fds,
        uid,
        gid,
        umask,
        pre_exec,
        unshare_net,
        unshare_ipc,
        unshare_mount,
        unshare_pid,
        cgroup,
        isolation,
        unshare_user,
        in_pid if start_new_session is None else start_new_session,
    )
    return launch(given, mycommand, env, opt_name, entered, logfile, returnpid, returnproc)
