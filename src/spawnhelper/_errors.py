"""The exceptions, and the warnings."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from ._remedies import namespace_name, remedy
from ._stages import Stage


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
        remedy (str | None): what to do about it, where that is known; ``strerror``
            ends with it.
    """

    stage: Stage
    remedy: str | None = None

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
        return (spawn_error, args, {"remedy": self.remedy})


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


class IsolationWarning(RuntimeWarning):
    """A command runs less isolated than asked, as ``isolation="best-effort"`` allows."""


class Note(NamedTuple):
    """A failure that best effort tolerated.

    Attributes:
        stage (Stage): the step that failed.
        errno (int): its error.
        message (str): a sentence naming stage and reason; ``str(note)`` gives it, too.
    """

    stage: Stage
    errno: int
    message: str

    def __str__(self) -> str:
        return self.message


def log_trouble(status: int) -> str | None:
    """What the exit status of a log copier (csrc/tee.c) says; None: everything was copied."""
    if status == 0:
        return None
    if status < 0:
        return f"output was lost: its copier was killed by signal {-status}"
    sink = "the log" if status < 128 else "stdout"
    return f"output could not be copied to {sink}: {os.strerror(status % 128)}"


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


_SUBJECTS = {Stage.GROUPS: "{} groups", Stage.GID: "gid {}", Stage.UID: "uid {}"}


def _subject(stage: Stage, detail: int) -> str | None:
    if stage is Stage.FDS:
        return f"fd {detail}" if detail >= 0 else None
    if stage is Stage.NAMESPACES:
        return namespace_name(detail)
    if stage in _SUBJECTS:
        return _SUBJECTS[stage].format(detail & 0xFFFFFFFF)
    return None


def _join(stage: Stage, error: int, detail: int, advice: str | None) -> str:
    subject = _subject(stage, detail)
    parts = [stage.name, *([] if subject is None else [subject]), os.strerror(error)]
    return ": ".join(parts) + (f" ({advice})" if advice else "")


def describe(stage: Stage, error: int, detail: int, in_user: bool = False) -> str:
    """A sentence: the stage, what it was about, the error, and what to do."""
    return _join(stage, error, detail, remedy(stage, error, detail, b"", in_user))


def failure(
    stage: Stage,
    error: int,
    detail: int,
    program: str | bytes,
    cwd: bytes | None,
    cgroup: bytes | None,
    in_user: bool = False,
) -> SpawnError:
    """The exception for a failed stage.

    Args:
        stage: the step that failed.
        error: its errno.
        detail: the fd, id, signal or namespace concerned, as ``struct sh_result`` has it.
        program: what was to be executed, for the message.
        cwd: the directory to enter, for the message.
        cgroup: the cgroup to join, for the message.
        in_user: whether a user namespace of its own was asked for.
    """
    if error == errno.ECHILD:
        how = f"killed by signal {detail}" if detail else "ended"
        message = f"{stage.name}: the child {how} before exec"
        return spawn_error(stage, error, message, program)
    filename: str | bytes | None = None
    if stage is Stage.CHDIR:
        filename = None if cwd is None else os.fsdecode(cwd)
    elif stage is Stage.CGROUP:
        filename = os.fsdecode(cgroup or b"")
    elif stage in (Stage.CLONE, Stage.EXEC):
        filename = program
    advice = remedy(stage, error, detail, program, in_user)
    made = spawn_error(stage, error, _join(stage, error, detail, advice), filename)
    made.remedy = advice
    return made


def pre_exec_failure(error: int, text: str, program: str | bytes) -> SpawnError:
    """The exception for a ``pre_exec`` callable that raised."""
    return spawn_error(Stage.PRE_EXEC, error, f"PRE_EXEC: {text}", program)
