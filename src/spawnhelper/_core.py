"""The only module that touches cffi: Request in, struct sh_process out."""

from __future__ import annotations

import errno
import os
import threading
from _thread import get_ident
from collections.abc import Callable
from time import monotonic
from typing import Any

from . import _errors, _state
from ._errors import Stage
from ._request import Request
from ._spawnhelper import ffi, lib

_PROCESS = ffi.typeof("struct sh_process *")
_REQUEST = ffi.typeof("struct sh_request *")
_FDS = ffi.typeof("struct sh_fdpair[]")
_IDS = ffi.typeof("uint32_t[]")
_new = ffi.new
_from_buffer = ffi.from_buffer
_NULL = ffi.NULL
_NEW: int = lib.SH_NEW
_RUNNING: int = lib.SH_RUNNING
_ENDED: int = lib.SH_ENDED
_LOST: int = lib.SH_LOST
_LOOKUP: int = lib.SH_LOOKUP

_error = lib.sh_initialize()
if _error:
    raise ImportError(f"spawnhelper: pthread_atfork: {os.strerror(-_error)}")

_STANDARD_FDS = _new(_FDS, [(0, 0), (1, 1), (2, 2)])

# Signal handlers run in the main thread only, but the kernel may deliver a
# signal to any thread: the main thread looks up this often from a blocking wait.
_SLICE_NSEC = 50_000_000

LOG_BUFFER_SIZE = 65536

Handle = Any  # struct sh_process *: C fills it in, while signals are blocked
Log = Any  # struct sh_log *


def new_handle() -> Handle:
    """Memory for one child, before there is one."""
    handle = _new(_PROCESS)
    handle.pidfd = handle.report = -1
    return handle


def _to_c(request: Request) -> tuple[Any, Any]:
    """The request as C reads it, and what must live as long."""
    argv, argc, env, envc, file, lookup, cwd, fds, close_fds, uid, gid, groups, umask, _, _ = (
        request
    )
    flags = _LOOKUP if lookup else 0
    if close_fds:
        flags |= lib.SH_CLOSE_FDS
    if fds is None:
        flags |= lib.SH_STANDARD_FDS
        pairs, npairs = _STANDARD_FDS, 3
    else:
        pairs, npairs = _new(_FDS, sorted(fds.items())), len(fds)
    argv_c, env_c, file_c = _from_buffer(argv), _from_buffer(env), _from_buffer(file)
    cwd_c = _NULL if cwd is None else _from_buffer(cwd)
    groups_c = _NULL
    ngroups = 0
    if uid is not None:
        flags |= lib.SH_SET_UID
    if gid is not None:
        flags |= lib.SH_SET_GID
    if umask is not None:
        flags |= lib.SH_SET_UMASK
    if groups is not None:
        flags |= lib.SH_SET_GROUPS
        groups_c, ngroups = _new(_IDS, groups), len(groups)
    c = _new(
        _REQUEST,
        (
            argv_c,
            env_c,
            file_c,
            cwd_c,
            pairs,
            groups_c,
            argc,
            envc,
            npairs,
            ngroups,
            uid or 0,
            gid or 0,
            umask or 0,
            flags,
        ),
    )
    return c, (argv_c, env_c, file_c, cwd_c, pairs, groups_c)


def find_in_env(request: Request) -> bytes | None:
    """Where the start would look the program up; for messages."""
    path = b"/bin:/usr/bin"
    for entry in request.env.split(b"\0"):
        if entry.startswith(b"PATH="):
            path = entry[5:]
            break
    size = 4096
    found = _new("char[]", size)
    cwd = _NULL if request.cwd is None else request.cwd
    if lib.sh_find(request.file, path, cwd, found, size) < 0:
        return None
    name: bytes = ffi.string(found)
    return name


def _failure(request: Request, handle: Handle) -> BaseException:
    """The exception for a start that failed."""
    result = handle.result
    stage, error, started = Stage(result.stage), result.error, result.started
    if stage is Stage.EXEC and error == errno.ENOENT and request.lookup and not started:
        return _errors.command_not_found(request.program)
    program = request.program
    if request.lookup and started:
        found = find_in_env(request)
        if found is not None:
            program = os.fsdecode(found)
    return _errors.failure(stage, error, result.detail, program, request.cwd)


def start(request: Request, handle: Handle) -> None:
    """Start the command; returns when it has been exec'd.

    Raises:
        SpawnError: it was not; nothing is left.
    """
    if _state.dropped:
        reap_dropped()
    if request.pre_exec is not None:
        _start_with_python(request, handle)
        return
    c, _alive = _to_c(request)
    if lib.sh_start(c, handle) < 0:
        raise _failure(request, handle)


def _slice() -> int:
    return _SLICE_NSEC if get_ident() == threading.main_thread().ident else -1


def run(request: Request, handle: Handle, log: Log | None) -> int:
    """Start, wait and copy output in one call without the GIL: the returncode."""
    if request.pre_exec is not None:
        start(request, handle)
        wait(handle, None, log)
        return returncode(handle)
    if _state.dropped:
        reap_dropped()
    c, _alive = _to_c(request)
    done = lib.sh_run(c, handle, _slice(), _NULL if log is None else log)
    if done != 1:
        if handle.state == _NEW:
            raise _failure(request, handle)
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        wait(handle, None, log)
    return returncode(handle)


def wait(handle: Handle, timeout: float | None, log: Log | None = None) -> bool:
    """Wait until the process has ended; False if the time (seconds) is over first.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
    """
    deadline = None if timeout is None else monotonic() + timeout
    longest = _slice()
    while True:
        nsec = longest
        if deadline is not None:
            left = max(0, int((deadline - monotonic()) * 1e9))
            nsec = left if longest < 0 else min(left, longest)
        done = lib.sh_wait(handle, nsec) if log is None else lib.sh_wait_log(handle, nsec, log)
        if done == 1:
            return True
        if done < 0:
            raise _wait_error(handle, -done)
        if deadline is not None and monotonic() >= deadline:
            return False


def _wait_error(handle: Handle, error: int) -> BaseException:
    if error == errno.EPERM:
        return RuntimeError(
            f"process {handle.pid} is a child of process {handle.owner}, not of this one"
        )
    return OSError(error, os.strerror(error))


def is_ended(handle: Handle) -> bool:
    """Whether its end has been seen."""
    state: int = handle.state
    return state in (_ENDED, _LOST)


def is_ours(handle: Handle) -> bool:
    """Whether a child runs, or waits to be reaped, for which this handle answers."""
    return handle.state == _RUNNING and bool(lib.sh_mine(handle))


def returncode(handle: Handle) -> int:
    """Exit status, or the negative signal number.

    Raises:
        ChildProcessError: somebody else reaped the child; its status is lost.
    """
    if handle.state == _LOST:
        raise ChildProcessError(
            errno.ECHILD, f"process {handle.pid} was reaped by somebody else; its status is lost"
        )
    status: int = handle.status
    number = status & 0x7F
    return -number if number else status >> 8


def signal(handle: Handle, number: int) -> None:
    """Send a signal; nothing is sent once the process is known to have ended.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
        OSError: EINVAL (no such signal) or EPERM (it has changed its user).
    """
    if is_ended(handle):
        return
    if not lib.sh_mine(handle):
        raise _wait_error(handle, errno.EPERM)
    error = lib.sh_signal(handle, number)
    if error < 0:
        raise OSError(-error, os.strerror(-error))


def give(handle: Handle) -> int:
    """Leave the child to the caller, who reaps it: its pid."""
    pid: int = lib.sh_give(handle)
    return pid


def drop(handle: Handle) -> None:
    """Close what a handle without child holds."""
    lib.sh_drop(handle)


def reap_dropped() -> None:
    """Reap children whose handles were dropped, as far as they have ended."""
    for handle in list(_state.dropped):
        if not lib.sh_mine(handle) or lib.sh_wait(handle, 0) == 1:
            try:
                _state.dropped.remove(handle)
            except ValueError:
                continue  # another thread was faster


def new_log(source: int, pipe_end: int, file: int, out: int) -> Log:
    """State of a copy from the pipe to the log file and the original stdout (-1: none)."""
    log = _new("struct sh_log *")
    buffer = _new("char[]", LOG_BUFFER_SIZE)
    log.source, log.pipe_end, log.file, log.out = source, pipe_end, file, out
    log.left = -1
    log.buffer, log.size = buffer, LOG_BUFFER_SIZE
    _log_buffers[log] = buffer
    return log


# cffi owns memory by its first cdata; the struct alone would not keep the buffer.
_log_buffers: Any = __import__("weakref").WeakKeyDictionary()


# ---- the slow path: Python code between fork and exec ----

_TEXT_SIZE = 4096


def _start_with_python(request: Request, handle: Handle) -> None:
    c, _alive = _to_c(request)
    orders = _new("struct sh_orders **")
    forked = lib.sh_fork(c, handle, orders)
    if forked == 1:
        _run_child(request.pre_exec, orders[0])
    if forked < 0:
        raise _failure(request, handle)
    size = ffi.sizeof("struct sh_result") + _TEXT_SIZE
    record = _new("char[]", size)
    length = _new("uint32_t *")
    while (done := lib.sh_fork_result(handle, record, size, length)) == 1:
        pass  # Python runs signal handlers here
    if done == 0:
        return
    if handle.result.stage == Stage.PRE_EXEC and length[0] > 0:
        text = ffi.buffer(record, length[0])[ffi.sizeof("struct sh_result") :]
        message = text.decode("utf-8", "replace")
        raise _errors.pre_exec_failure(handle.result.error, message, request.program)
    raise _failure(request, handle)


def _run_child(pre_exec: Callable[[], object] | None, orders: Any) -> None:
    """In the forked child. Never returns, whatever is raised (bugs.gentoo.org/345289)."""
    try:
        lib.sh_child_prepare(orders)
        if pre_exec is not None:
            pre_exec()
        lib.sh_child_execute(orders)
    except BaseException as raised:
        error = raised.errno if isinstance(raised, OSError) and raised.errno else 0
        text = f"{type(raised).__name__}: {raised}".encode("utf-8", "replace")[:_TEXT_SIZE]
        lib.sh_child_fail(orders, Stage.PRE_EXEC, error, 0, text, len(text))
    finally:
        os._exit(127)
