"""The only module that touches cffi: what to start in, struct sh_process or its status out."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from signal import SIGTERM
from time import monotonic
from typing import Any, NoReturn

from . import _errors
from ._errors import Note
from ._fds import FdMap
from ._request import Isolation, Options, Packed, Request
from ._spawnhelper import ffi, lib
from ._stages import Stage

_PROCESS = ffi.typeof("struct sh_process *")
_LOG = ffi.typeof("struct sh_log *")
_REQUEST = ffi.typeof("struct sh_request *")
_FDS = ffi.typeof("struct sh_fdpair[]")
_IDS = ffi.typeof("uint32_t[]")
_new = ffi.new
_from_buffer = ffi.from_buffer
_run_packed = lib.sh_run_packed
_run_logged = lib.sh_run_logged
_NULL = ffi.NULL
_NEW: int = lib.SH_NEW
_RUNNING: int = lib.SH_RUNNING
_ALIVE = (lib.SH_RUNNING, lib.SH_ENDING)
_LOST: int = lib.SH_LOST
_LOOKUP: int = lib.SH_LOOKUP

_error = lib.sh_initialize()
if _error:
    raise ImportError(f"spawnhelper: pthread_atfork: {os.strerror(-_error)}")

# For tests: kernel features to do without, by name, separated by commas.
_AVOIDABLE = {
    "clone3": lib.SH_AVOID_CLONE3,
    "vfork": lib.SH_AVOID_VFORK,
    "pidfd": lib.SH_AVOID_PIDFD,
    "close_range": lib.SH_AVOID_CLOSE_RANGE,
    "listing": lib.SH_AVOID_LISTING,
    "shared_files": lib.SH_AVOID_SHARED_FILES,
    "thread_setns": lib.SH_AVOID_THREAD_SETNS,
    "pidfd_info": lib.SH_AVOID_PIDFD_INFO,
}


def avoid(names: str) -> None:
    """Do without kernel features from now on, as if they were missing.

    Raises:
        ValueError: an unknown name.
    """
    features = 0
    for name in filter(None, names.split(",")):
        if name not in _AVOIDABLE:
            raise ValueError(f"SPAWNHELPER_AVOID: {name!r} is none of {sorted(_AVOIDABLE)}")
        features |= _AVOIDABLE[name]
    lib.sh_avoid(features)


def start_mode() -> str:
    """How commands are started here: clone3, clone or pipe (docs/kernels.md)."""
    return ("clone3", "clone", "pipe")[lib.sh_start_mode()]


avoid(os.environ.get("SPAWNHELPER_AVOID", ""))

_STANDARD_FDS = _new(_FDS, [(0, 0), (1, 1), (2, 2)])

_NOT_ISOLATED = Isolation()
_LONGEST = 2.0**32  # seconds that fit int64_t nanoseconds; a longer wait is repeated

Handle = Any  # struct sh_process *: C fills it in, while signals are blocked
Log = Any  # struct sh_log *


# Python's collector calls C: whatever exception strikes wherever, a handle that
# goes away takes its child along, or leaves it to a later start.
_allocate = ffi.new_allocator(lib.sh_allocate, lib.sh_discard, should_clear_after_alloc=False)


def new_handle() -> Handle:
    """Memory for one child, before there is one. Dropping it kills and reaps the child."""
    return _allocate(_PROCESS)


# Handles of waiting calls that are over. To make and to free one costs more
# right after a child, when caches are cold, than all else that Python does then.
_spare: deque[Handle] = deque(maxlen=16)


# Logs of such calls; most of one is its buffer, which costs more to make than to fill.
_spare_logs: deque[Log] = deque(maxlen=4)


def borrow_handle() -> Handle:
    """A handle without a child, that nobody else sees; a start makes a used one new."""
    try:
        return _spare.pop()
    except IndexError:
        return new_handle()


def _borrow_log() -> Log:
    try:
        return _spare_logs.pop()
    except IndexError:
        return new_log()


def give_back(handle: Handle) -> None:
    """The borrowed handle's child is reaped, and the caller never looks at it again."""
    _spare.append(handle)


def keep(handle: Handle) -> None:
    """Somebody gets the handle: if it is dropped the child runs on, with a ResourceWarning."""
    handle.kept = 1


def keep_silently(handle: Handle) -> None:
    """The same without a warning: for a helper process."""
    handle.kept = 2


def _to_flags(wanted: Isolation) -> int:
    """What clone(2) calls it. A host name goes with a network, private mounts with a /proc."""
    flags = 0
    if wanted.user:
        flags |= lib.SH_NEWUSER
    if wanted.net:
        flags |= lib.SH_NEWNET | lib.SH_NEWUTS
    if wanted.ipc:
        flags |= lib.SH_NEWIPC
    if wanted.mount:
        flags |= lib.SH_NEWNS
    if wanted.pid:
        flags |= lib.SH_NEWPID | lib.SH_NEWNS
    return flags


def _isolation_flags(isolation: Isolation) -> int:
    flags: int = lib.SH_BEST_EFFORT if isolation.best_effort else 0
    if isolation.user == "root":
        flags |= lib.SH_USER_ROOT
    if isolation.new_session:
        flags |= lib.SH_NEW_SESSION
    return flags


def _to_c(options: Options) -> tuple[Any, Any]:
    """The options as C reads them, and what must live as long."""
    cwd, fds, uid, gid = options.cwd, options.fds, options.uid, options.gid
    groups, umask, isolation = options.groups, options.umask, options.isolation
    flags = _LOOKUP if options.lookup else 0
    if options.close_fds:
        flags |= lib.SH_CLOSE_FDS
    if fds is None:
        flags |= lib.SH_STANDARD_FDS
        pairs, npairs = _STANDARD_FDS, 3
    else:
        pairs, npairs = _new(_FDS, sorted(fds.items())), len(fds)
    cwd_c = _NULL if cwd is None else _from_buffer(cwd)
    groups_c, ngroups = _NULL, 0
    if uid is not None:
        flags |= lib.SH_SET_UID
    if gid is not None:
        flags |= lib.SH_SET_GID
    if umask is not None:
        flags |= lib.SH_SET_UMASK
    if groups is not None:
        flags |= lib.SH_SET_GROUPS
        groups_c, ngroups = _new(_IDS, groups), len(groups)
    namespaces, cgroup_c = 0, _NULL
    if isolation is not None:
        flags |= _isolation_flags(isolation)
        namespaces = _to_flags(isolation)
        cgroup_c = _NULL if isolation.cgroup is None else _from_buffer(isolation.cgroup)
    numbers = (0, 0, npairs, ngroups, uid or 0, gid or 0, umask or 0, flags)
    more = (namespaces, _NULL, cgroup_c)
    c = _new(_REQUEST, (_NULL, _NULL, _NULL, cwd_c, pairs, groups_c, *numbers, *more))
    return c, (cwd_c, pairs, groups_c, cgroup_c)


def _make_c(options: Options) -> tuple[Any, Any]:
    """``_to_c``, kept with the options: a build farm gives the same thousands of times."""
    made = _to_c(options)
    options.c = made
    return made


def _complete_c(request: Request, output: int = 0) -> tuple[Any, Any]:
    """The whole request as C reads it, and what must live as long."""
    c, alive = _to_c(request.options)
    argv_c, env_c = _from_buffer(request.argv), _from_buffer(request.env)
    c.argv, c.argc, c.env, c.envc = argv_c, request.argc, env_c, request.envc
    file_c = _NULL
    if request.other_file is not None:
        c.file = file_c = _from_buffer(request.other_file)
    if request.set is not None:
        c.set = request.set
    c.output = output
    return c, (alive, argv_c, env_c, file_c)


def find_in_env(request: Request) -> bytes | None:
    """Where the start would look the program up; for messages."""
    path = b"/bin:/usr/bin"
    for entry in request.env.split(b"\0"):
        if entry.startswith(b"PATH="):
            path = entry[5:]
            break
    size = 4096
    found = _new("char[]", size)
    cwd = request.options.cwd
    if lib.sh_find(request.file, path, _NULL if cwd is None else cwd, found, size) < 0:
        return None
    name: bytes = ffi.string(found)
    return name


def _failure(request: Request, handle: Handle) -> BaseException:
    """The exception for a start that failed."""
    result, options = handle.result, request.options
    stage, error, started = Stage(result.stage), result.error, result.started
    program = request.program
    if not isinstance(program, (str, bytes)):
        program = os.fspath(program)
    if options.lookup and b"/" not in request.file:
        if stage is Stage.EXEC and error == errno.ENOENT and not started:
            return _errors.command_not_found(program)
        found = find_in_env(request)
        if found is not None:
            program = os.fsdecode(found)
    isolation = options.isolation or _NOT_ISOLATED
    return _errors.failure(
        stage, error, result.detail, program, options.cwd, isolation.cgroup, bool(isolation.user)
    )


def notes(source: Any, in_user: bool) -> tuple[Note, ...]:
    """What best effort tolerated: of a handle, or of a set; in_user: with a user namespace."""
    result = source.result
    found = []
    for i in range(result.nnotes):
        note = result.notes[i]
        stage = Stage(note.stage)
        message = _errors.describe(stage, note.error, note.detail, in_user)
        found.append(Note(stage, note.error, message))
    return tuple(found)


def start(request: Request, handle: Handle, log: Log | None) -> None:
    """Start the command, its output going to the log; returns when it has been exec'd.

    Raises:
        SpawnError: it was not; nothing is left.
    """
    argv, argc, env, envc, _, file, options, entered = request
    output = 0 if log is None else log.pipe_end
    if options.pre_exec is not None:
        _start_with_python(request, handle, output)
        return
    c = options.c or _make_c(options)
    file_c = _NULL if file is None else file
    set_c = _NULL if entered is None else entered
    if lib.sh_start_packed(c[0], file_c, argv, argc, env, envc, set_c, output, handle) < 0:
        raise _failure(request, handle)


def finish_run(handle: Handle, log: Log | None) -> int:
    """Wait until it has ended, and copy its output: the returncode."""
    if log is not None:
        lib.sh_log_started(log)
    wait(handle, None, log)
    return returncode(handle)


def run(packed: Packed, options: Options, entered: Any) -> int:
    """Start a command without pre_exec, and wait, in one call without the GIL: the returncode.

    Raises:
        SpawnError: it was not started; nothing is left.
        ChildProcessError: somebody else reaped it.
        OSError: the wait failed.
    """
    argv, argc, env, envc, _, file = packed
    c = options.c or _make_c(options)
    file_c = _NULL if file is None else file
    set_c = _NULL if entered is None else entered
    # As borrow_handle() and give_back() do: a call less, where each costs ten
    # times its usual price, because a child leaves cold caches.
    try:
        handle = _spare.pop()
    except IndexError:
        handle = new_handle()
    try:
        done: int = _run_packed(c[0], file_c, argv, argc, env, envc, set_c, handle)
        if done <= 0:
            return _finish_interrupted(Request(*packed, options, entered), handle, -done)
    except BaseException:
        end(handle)
        raise
    _spare.append(handle)
    number = (done - 1) & 0x7F
    return -number if number else (done - 1) >> 8


def _finish_interrupted(
    request: Request, handle: Handle, error: int, log: Log | None = None
) -> int:
    if handle.state == _NEW:
        raise _failure(request, handle)
    if error:
        raise OSError(error, os.strerror(error))
    wait(handle, None, log)
    return returncode(handle)


def run_logged(
    packed: Packed, options: Options, entered: Any, name: bytes, tell: Callable[[Log], None]
) -> int:
    """The same, copying the output to a log; ``tell`` is called if some could not be copied.

    Raises:
        OSError: the log cannot be opened for appending, or the wait failed.
        SpawnError: it was not started; nothing is left.
        ChildProcessError: somebody else reaped it.
    """
    argv, argc, env, envc, _, file = packed
    c = options.c or _make_c(options)
    file_c = _NULL if file is None else file
    set_c = _NULL if entered is None else entered
    handle, log = borrow_handle(), _borrow_log()
    given = (c[0], file_c, argv, argc, env, envc, set_c, handle, log, name)
    try:
        while (done := _run_logged(*given)) == -errno.EINTR and not log.opened:
            pass  # Python runs signal handlers here
        if done > 0:
            number = (done - 1) & 0x7F
            status: int = -number if number else (done - 1) >> 8
        elif log.opened:
            request = Request(*packed, options, entered)
            status = _finish_interrupted(request, handle, -done, log)
            close_log(log)
        else:
            raise _log_failure(log, name)
    except BaseException:
        try:
            end(handle)
        finally:
            close_log(log)
            tell(log)
        raise
    if log.file_error or log.out_error:
        tell(log)
    give_back(handle)
    _spare_logs.append(log)
    return status


def wait(handle: Handle, timeout: float | None, log: Log | None = None) -> bool:
    """Wait until the process has ended; False if the time (seconds) is over first.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
    """
    deadline = None if timeout is None else monotonic() + timeout
    nsec = -1
    while True:
        if deadline is not None:
            nsec = int(min(max(0.0, deadline - monotonic()), _LONGEST) * 1e9)
        done = lib.sh_wait(handle, nsec) if log is None else lib.sh_wait_log(handle, nsec, log)
        if done == 1:
            return True
        if done < 0:
            raise _wait_error(handle, -done)
        if deadline is not None and monotonic() >= deadline:
            return False


def reap(handle: Handle) -> bool:
    """Reap it if it has ended: whether it had.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
    """
    done = lib.sh_reap(handle)
    if done < 0:
        raise _wait_error(handle, -done)
    return bool(done)


def reap_now(handle: Handle) -> bool:
    """The same, without waiting for the moment in which a pid namespace dies.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
    """
    done = lib.sh_reap_now(handle)
    if done < 0:
        raise _wait_error(handle, -done)
    return bool(done)


def phase(handle: Handle) -> int:
    """What is being waited for: the command, or what it has left."""
    state: int = handle.state
    return state


_GRACE_SECONDS = 1.0


def end(handle: Handle) -> None:
    """SIGTERM, one second, SIGKILL; reaped. For a call that cannot deliver its result."""
    try:
        if is_ours(handle):
            lib.sh_signal(handle, SIGTERM)
            wait(handle, _GRACE_SECONDS)
    finally:  # also if a second Ctrl-C strikes
        if is_ours(handle):
            finish(handle)


def finish(handle: Handle) -> None:
    """Kill it if it runs, and reap it. The first instruction kills: nothing strikes before."""
    while lib.sh_finish(handle) == 0:
        pass  # Python runs signal handlers here


def _wait_error(handle: Handle, error: int) -> BaseException:
    if error == errno.EPERM:
        return RuntimeError(
            f"process {handle.pid} is a child of the process that this one was forked from"
        )
    return OSError(error, os.strerror(error))


def is_ended(handle: Handle) -> bool:
    """Whether its end has been seen."""
    return bool(lib.sh_ended(handle))


def pidfd(handle: Handle) -> int:
    """The descriptor, or -1."""
    fd: int = lib.sh_pidfd(handle)
    return fd


# Keep the pidfd open whoever reaps, until release: the pidfd, or -1 for nothing held. No
# frames around these two: they are called for thousands at a time.
hold: Callable[[Handle], int] = lib.sh_hold
release: Callable[[Handle], None] = lib.sh_release_hold


def copy_pidfd(handle: Handle) -> int:
    """A duplicate of the pidfd that the caller closes; -1 if it has ended or there is none.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
        OSError: no descriptor is free.
    """
    fd: int = lib.sh_copy_pidfd(handle)
    if fd in (-errno.ESRCH, -errno.ENOSYS):
        return -1
    if fd < 0:
        raise _wait_error(handle, -fd)
    return fd


def usage(handle: Handle) -> tuple[float, ...]:
    """The sixteen fields of getrusage(2).

    Raises:
        ChildProcessError: somebody else reaped the child, and got them.
    """
    if not handle.has_usage:
        raise ChildProcessError(
            errno.ECHILD, f"process {handle.pid} was reaped by somebody else; its rusage is lost"
        )
    user, system, *counts = handle.usage
    return (user / 1e6, system / 1e6, *counts)


def wall_time(handle: Handle) -> float:
    """Seconds from before the start to when the end was seen."""
    seconds: float = (handle.ended_nsec - handle.started_nsec) / 1e9
    return seconds


def is_running(handle: Handle) -> bool:
    """Whether its end has not been seen yet."""
    return handle.state in _ALIVE


def command_runs(handle: Handle) -> bool:
    """Whether the command itself has not been seen to end."""
    state: int = handle.state
    return state == _RUNNING


def check_owner(handle: Handle) -> None:
    """Nothing, if this process started it.

    Raises:
        RuntimeError: it is the child of another process, from which this one was forked.
    """
    if not lib.sh_mine(handle):
        raise _wait_error(handle, errno.EPERM)


def is_ours(handle: Handle) -> bool:
    """Whether a child runs, or waits to be reaped, for which this handle answers."""
    return handle.state in _ALIVE and bool(lib.sh_mine(handle))


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
    check_owner(handle)
    error = lib.sh_signal(handle, number)
    if error < 0:
        raise OSError(-error, os.strerror(-error))


def give(request: Request, handle: Handle, other: Handle | None) -> None:
    """Leave one or two children to the caller, who reaps them.

    Raises:
        SpawnError: a signal killed the first one before exec.
    """
    if lib.sh_give_both(handle, _NULL if other is None else other) < 0:
        raise _failure(request, handle)


def sweep() -> None:
    """Reap children whose handles were dropped, as far as they have ended; some at a call."""
    lib.sh_sweep()


def list_dropped() -> list[int]:
    """The pids of children whose handles were dropped, as far as they are not reaped."""
    count: int = lib.sh_list_dropped(_NULL, 0)
    pids = _new("int32_t[]", count)
    found: int = min(count, lib.sh_list_dropped(pids, count))
    return list(pids)[:found]


_allocate_log = ffi.new_allocator(
    lib.sh_allocate, lib.sh_log_discard, should_clear_after_alloc=False
)


def new_log() -> Log:
    """A log with nothing open. It closes its descriptors when it goes away."""
    return _allocate_log(_LOG)


def _log_failure(log: Log, name: bytes) -> BaseException:
    if log.closed_source >= 0:
        source: int = log.closed_source
        return _errors.failure(Stage.FDS, errno.EBADF, source, "", None, None)
    return OSError(log.open_error, os.strerror(log.open_error), os.fsdecode(name))


def open_log(log: Log, options: Options, name: bytes, waits: bool) -> None:
    """Open the file and a pipe to it, for the waiting call or for a copier.

    Raises:
        OSError: the log cannot be opened for appending.
        SpawnError: the fd map names a descriptor that is not open.
    """
    c = options.c or _make_c(options)
    while (error := lib.sh_log_open(log, c[0], name, waits)) == -errno.EINTR:
        pass  # Python runs signal handlers here
    if error < 0:
        raise _log_failure(log, name)


def log_started(log: Log) -> None:
    """The command has the write end; close ours."""
    lib.sh_log_started(log)


def close_log(log: Log) -> None:
    """Close what is open."""
    lib.sh_log_close(log)


# ---- what the kernel has ----

_CLOSE_RANGE, _CLONE3, _PIDFD_OPEN = 436, 435, 434  # the same on every architecture
_CLONE_INTO_CGROUP = 0x200000000


def _try(number: int, *arguments: Any) -> int:
    """The errno of a raw system call."""
    long = [ffi.cast("long", argument) for argument in arguments]
    return ffi.errno if lib.syscall(number, *long) < 0 else 0


def try_clone3() -> int:
    """The errno of a clone3 without arguments: EINVAL where there is one."""
    return _try(_CLONE3, 0, 0)


def try_clone_into_cgroup(directory: int) -> int:
    """The errno of being born into a directory (descriptor) that is no cgroup.

    EBADF where clone3 knows CLONE_INTO_CGROUP (Linux 5.7). No process is made.
    """
    words = _new("uint64_t[11]", [_CLONE_INTO_CGROUP])  # struct clone_args, clone(2)
    words[10] = directory
    return _try(_CLONE3, words, ffi.sizeof(words))


def try_close_range() -> int:
    """The errno of closing the last of all possible descriptors: 0 where there is a close_range."""
    return _try(_CLOSE_RANGE, 2**32 - 1, 2**32 - 1, 0)


def try_pidfd_open() -> int:
    """The errno of a pidfd_open for no process: EINVAL where there is one."""
    return _try(_PIDFD_OPEN, -1, 0)


# ---- namespace sets ----

HOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_holder")


def _read_holder() -> tuple[Any, Any]:
    """The holder's path and bytes as C keeps them: a chroot hides the file."""
    try:
        with open(HOLDER, "rb") as file:
            image = file.read()
    except OSError:
        image = b""  # a pid namespace will say so
    path = _new("char[]", os.fsencode(HOLDER))
    bytes_ = _new("char[]", image)
    lib.sh_set_holder(path, bytes_, len(image))
    return path, bytes_


_holder = _read_holder()

Set = Any  # struct sh_set *


def tolerated(stage: int) -> bool:
    """Whether best effort goes on when this stage failed."""
    return bool(lib.sh_stage_tolerated(stage))


def open_set(wanted: Isolation) -> Set:
    """Prepare a namespace set.

    Raises:
        SpawnError: a step failed.
    """
    made = lib.sh_set_new()
    if made == _NULL:
        raise MemoryError
    # C ends it: an exception that a signal raises inside a Python finalizer is lost.
    owned = ffi.gc(made, lib.sh_set_discard)
    if lib.sh_set_open(owned, _to_flags(wanted), _isolation_flags(wanted)) < 0:
        result = owned.result
        stage = Stage(result.stage)
        raise _errors.failure(
            stage, result.error, result.detail, HOLDER, None, None, bool(wanted.user)
        )
    return owned


def close_set(which: Set) -> None:
    """Kill what runs in it, and wait for that unless a command is still to be reaped."""
    while lib.sh_set_close(which) == 0:
        pass  # Python runs signal handlers here


def check_set(which: Set) -> None:
    """Whether a command can be started into it.

    Raises:
        ValueError: it is closed.
        RuntimeError: it belongs to the process that this one was forked from.
    """
    if not lib.sh_set_mine(which):
        raise RuntimeError("the namespaces belong to the process that this one was forked from")
    if which.closed:
        raise ValueError("the namespaces are closed")


def set_facts(which: Set) -> tuple[int, int]:
    """The holder's pid and pidfd; -1 when it is closed, or another process's."""
    if which.closed or not lib.sh_set_mine(which):
        return -1, -1
    return which.holder, which.holder_pidfd


def set_is_dead(which: Set) -> bool:
    """Whether its holder has ended."""
    return bool(lib.sh_set_is_dead(which))


def set_has_pid(which: Set) -> bool:
    """Whether it has a pid namespace."""
    return bool(which.namespaces & lib.SH_NEWPID)


def set_names(which: Set) -> list[str]:
    """The namespaces that it has."""
    names = {
        "net": lib.SH_NEWNET,
        "ipc": lib.SH_NEWIPC,
        "mount": lib.SH_NEWNS,
        "pid": lib.SH_NEWPID,
        "user": lib.SH_NEWUSER,
    }
    return [name for name, flag in names.items() if which.namespaces & flag]


def set_has_user(which: Set) -> bool:
    """Whether it has a user namespace."""
    return bool(which.namespaces & lib.SH_NEWUSER)


# ---- the child's stages in this very process ----


def become(request: Request, tell: Callable[[tuple[Note, ...]], None]) -> NoReturn:
    """Turn this process into the command: for a process that was forked for it.

    What best effort tolerates is told before the last steps.

    Raises:
        SpawnError: a step failed, which cannot be undone.
        BaseException: what ``pre_exec`` raised.
    """
    options = request.options
    c, _alive = _complete_c(request)
    handle, orders = new_handle(), _new("struct sh_orders **")
    if lib.sh_become(c, handle, orders) < 0:
        raise _failure(request, handle)
    isolation = options.isolation
    tell(notes(handle, isolation is not None and bool(isolation.user)))
    if options.pre_exec is not None:
        options.pre_exec()
    lib.sh_become_execute(orders[0])
    raise _failure(request, handle)


def arrange_fds(fds: FdMap, close_rest: bool) -> None:
    """Make this process's descriptors what the map says; all its keys inheritable.

    Raises:
        SpawnError: a source is not open, and nothing was changed; or no descriptor is free.
    """
    c, _alive = _to_c(Options(lookup=False, fds=fds, close_fds=close_rest))
    c.argv = c.env = _from_buffer(b"\0")
    handle = new_handle()
    if lib.sh_arrange(c, handle) < 0:
        result = handle.result
        raise _errors.failure(Stage(result.stage), result.error, result.detail, "", None, None)


def try_unshare(flags: int) -> int:
    """The errno of unshare(2) with these flags, tried in a throw-away process; 0 if it works."""
    error: int = lib.sh_try_unshare(flags)
    return error


def raise_loopback() -> None:
    """Give this network namespace a loopback device that is up, with 10.0.0.1/8 and fd::1/8.

    Raises:
        SpawnError: the kernel refused (LOOPBACK).
    """
    error = lib.sh_raise_loopback()
    if error < 0:
        raise _errors.failure(Stage.LOOPBACK, -error, -1, "", None, None)


# ---- the slow path: Python code between fork and exec ----

_TEXT_SIZE = 4096


def _start_with_python(request: Request, handle: Handle, output: int) -> None:
    c, _alive = _complete_c(request, output)
    orders = _new("struct sh_orders **")
    owner = os.getpid()
    try:
        forked = lib.sh_fork(c, handle, orders)
        if forked == 1:
            _run_child(request.options.pre_exec, orders[0])
    except BaseException:
        if os.getpid() != owner:  # a trace function's, say: never out into the caller's code
            os._exit(127)
        raise
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
        raise _errors.pre_exec_failure(handle.result.error, message, request.file)
    raise _failure(request, handle)


def _run_child(pre_exec: Callable[[], object] | None, orders: Any) -> None:
    """In the forked child. Never returns, whatever is raised (bugs.gentoo.org/345289)."""
    try:
        lib.sh_child_prepare(orders)
        if pre_exec is not None:
            pre_exec()
        lib.sh_child_execute(orders)
    except BaseException as raised:
        error = raised.errno if isinstance(raised, OSError) else 0
        error = error if isinstance(error, int) else 0
        text = f"{type(raised).__name__}: {raised}".encode("utf-8", "replace")[:_TEXT_SIZE]
        lib.sh_child_fail(orders, Stage.PRE_EXEC, error, 0, text, len(text))
    finally:
        os._exit(127)
