"""spawn(): the documented signature, with strict meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, SupportsIndex, overload

from . import _core
from ._log import LogPipe
from ._process import Process
from ._request import Argument, Command, Env, Request, make_request


def _refuse_isolation(**asked: object) -> None:
    for name, value in asked.items():
        if value:
            raise NotImplementedError(f"{name}: isolation is not available in this release")


def _run(request: Request, logfile: Argument | None) -> int:
    handle = _core.borrow_handle()
    log = None if logfile is None else LogPipe(request, logfile, True)
    try:
        if log is None:
            status = _core.run(request, handle, None)
        else:
            status = _core.run(log.request, handle, log.log)
    except BaseException:
        _core.end(handle)
        raise
    finally:
        if log is not None:
            log.close()
    _core.give_back(handle)
    return status


def _start(process: Process, request: Request, logfile: Argument | None) -> None:
    if logfile is None:
        _core.start(request, process._handle)
        return
    log = LogPipe(request, logfile, False)
    try:
        _core.start(log.request, process._handle)
        process._copier = log.start_copier(process)
    finally:
        log.close()


def _give(process: Process, request: Request) -> list[int]:
    """Leave the child to the caller, and the copier."""
    copier = process._copier
    pids = [process.pid] if copier is None else [copier.pid, process.pid]
    _core.give(request, process._handle, None if copier is None else copier._handle)
    return pids


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
        unshare_net: NotImplementedError in this release.
        unshare_ipc: NotImplementedError in this release.
        unshare_mount: NotImplementedError in this release.
        unshare_pid: NotImplementedError in this release.
        cgroup: NotImplementedError in this release.
        returnproc: do not wait; return a ``Process``.

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
        NotImplementedError: isolation was asked for.
        ChildProcessError: somebody else reaped the command (waiting mode).
    """
    if unshare_net or unshare_ipc or unshare_mount or unshare_pid or cgroup:
        _refuse_isolation(
            unshare_net=unshare_net,
            unshare_ipc=unshare_ipc,
            unshare_mount=unshare_mount,
            unshare_pid=unshare_pid,
            cgroup=cgroup,
        )
    if returnpid and returnproc:
        raise ValueError("returnpid and returnproc exclude each other")
    request = make_request(
        mycommand,
        env,
        opt_name,
        fd_pipes,
        uid,
        gid,
        groups,
        umask,
        cwd,
        path_lookup,
        pre_exec,
        close_fds,
    )
    if not returnpid and not returnproc:
        return _run(request, logfile)
    process = Process(request.argv, _core.new_handle())
    try:
        _start(process, request, logfile)
        if returnproc:
            process._keep()
            return process
        return _give(process, request)
    except BaseException:
        process._end()
        raise
