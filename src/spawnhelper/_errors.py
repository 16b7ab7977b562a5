"""Stages, and the exceptions that name them."""

from __future__ import annotations

import enum
import errno
import os
from typing import Any


class Stage(enum.IntEnum):
    """The steps between the call and the running command, in their order.

    The numbers are those of ``enum sh_stage`` in ``csrc/spawnhelper.h``.
    """

    CLONE = 0
    CGROUP = 1
    NAMESPACES = 2
    PROPAGATION = 3
    PROC = 4
    HOSTNAME = 5
    LOOPBACK = 6
    FDS = 7
    GROUPS = 8
    GID = 9
    UID = 10
    UMASK = 11
    CHDIR = 12
    PRE_EXEC = 13
    EXEC = 14


class SpawnError(OSError):
    """A process could not be started; nothing of it is left.

    Every instance is also an instance of the builtin class that its errno
    maps to, so ``except FileNotFoundError`` works as with ``subprocess``.

    Attributes:
        stage (Stage): the step that failed.
        errno (int): the error of that step; 0 when ``pre_exec`` raised
            something that has no errno.
        strerror (str): a sentence naming the stage and the reason.
        filename (str | bytes | None): the program or directory concerned.
    """

    stage: Stage

    def __init__(
        self,
        stage: Stage,
        error: int,
        message: str,
        filename: str | bytes | None = None,
    ) -> None:
        if filename is None:
            super().__init__(error, message)
        else:
            super().__init__(error, message, filename)
        self.stage = stage

    def __reduce__(self) -> tuple[Any, ...]:
        args = (self.stage, self.errno, self.strerror, self.filename)
        return (spawn_error, args)


class CommandNotFound(SpawnError):
    """No entry of PATH holds an executable file of this name.

    Always also a ``FileNotFoundError``.

    Attributes:
        value: the name as the caller gave it.
    """

    value: str | bytes

    def __init__(self, value: str | bytes) -> None:
        super().__init__(Stage.EXEC, errno.ENOENT, "EXEC: not found in PATH", value)
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return (command_not_found, (self.value,))


class LogWarning(RuntimeWarning):
    """Output could not be copied to the log file or to the original stdout.

    The command and its status were not affected.
    """


_classes: dict[tuple[type[SpawnError], type[OSError]], type[SpawnError]] = {}


def _class_for(base: type[SpawnError], error: int) -> type[SpawnError]:
    builtin = type(OSError(error, ""))  # CPython's own table, Objects/exceptions.c
    if builtin is OSError:
        return base
    found = _classes.get((base, builtin))
    if found is None:
        found = type(base.__name__, (base, builtin), {"__module__": "spawnhelper"})
        _classes[base, builtin] = found
    return found


def spawn_error(
    stage: Stage, error: int, message: str, filename: str | bytes | None = None
) -> SpawnError:
    """A SpawnError of the class that also matches the errno."""
    return _class_for(SpawnError, error)(stage, error, message, filename)


def command_not_found(value: str | bytes) -> CommandNotFound:
    """A CommandNotFound that is also a FileNotFoundError."""
    made: Any = _class_for(CommandNotFound, errno.ENOENT)
    found: CommandNotFound = made(value)
    return found


_REMEDIES = {
    (Stage.GROUPS, errno.EPERM): "changing groups needs CAP_SETGID",
    (Stage.GID, errno.EPERM): "changing the gid needs CAP_SETGID",
    (Stage.UID, errno.EPERM): "changing the uid needs CAP_SETUID",
    (
        Stage.GROUPS,
        errno.EINVAL,
    ): "the id has no mapping in this user namespace, or too many groups",
    (Stage.GID, errno.EINVAL): "the gid has no mapping in this user namespace",
    (Stage.UID, errno.EINVAL): "the uid has no mapping in this user namespace",
    (Stage.UID, errno.EAGAIN): "RLIMIT_NPROC of the target user is exhausted",
    (Stage.CLONE, errno.EAGAIN): "a limit on processes is exhausted (RLIMIT_NPROC, pids.max)",
    (Stage.CLONE, errno.EMFILE): "no descriptor is free for the pidfd (RLIMIT_NOFILE)",
    (Stage.FDS, errno.EBADF): "not open, or above RLIMIT_NOFILE",
    (Stage.FDS, errno.EMFILE): "RLIMIT_NOFILE is exhausted",
    (Stage.EXEC, errno.EACCES): "not executable, or a directory on the way cannot be searched",
    (Stage.EXEC, errno.ENOEXEC): "no #! line and no known binary format",
    (Stage.EXEC, errno.E2BIG): "argv and env are too large (one string may have 131071 bytes)",
    (Stage.EXEC, errno.ETXTBSY): "another process has the program open for writing",
}

_SUBJECTS = {Stage.GROUPS: "{} groups", Stage.GID: "gid {}", Stage.UID: "uid {}"}


def failure(
    stage: Stage, error: int, detail: int, program: str | bytes, cwd: bytes | None
) -> SpawnError:
    """The exception for a failed stage.

    Args:
        stage: the step that failed.
        error: its errno.
        detail: the fd, id or signal concerned, as ``struct sh_result`` has it.
        program: what was to be executed, for the message.
        cwd: the directory to enter, for the message.
    """
    if error == errno.ECHILD:
        how = f"killed by signal {detail}" if detail else "ended"
        message = f"{stage.name}: the child {how} before exec"
        return spawn_error(stage, error, message, program)
    parts = [stage.name]
    filename: str | bytes | None = None
    if stage is Stage.CHDIR:
        filename = os.fsdecode(cwd or b"")
    elif stage is Stage.FDS:
        if detail >= 0:
            parts.append(f"fd {detail}")
    elif stage in _SUBJECTS:
        parts.append(_SUBJECTS[stage].format(detail & 0xFFFFFFFF))
    else:
        filename = program
    parts.append(os.strerror(error))
    message = ": ".join(parts)
    remedy = _REMEDIES.get((stage, error))
    if remedy is None and stage is Stage.EXEC and error == errno.ENOENT and os.path.exists(program):
        remedy = "the file exists; the interpreter that it names does not"
    return spawn_error(stage, error, f"{message} ({remedy})" if remedy else message, filename)


def pre_exec_failure(error: int, text: str, program: str | bytes) -> SpawnError:
    """The exception for a ``pre_exec`` callable that raised."""
    return spawn_error(Stage.PRE_EXEC, error, f"PRE_EXEC: {text}", program)
