"""What a caller who expects a process is told about a command that could not be started."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ._errors import Note, SpawnError

# What exec takes as one string, less some room (MAX_ARG_STRLEN, 131072 bytes).
_LONGEST_TEXT = 65536
_LONGEST_COMMAND = 2000
_LONGEST_TRACEBACK = 3000  # bytes, of the 4096 that a pre_exec child can report
_STATUS_BASE = 1000  # above every errno


@dataclass(frozen=True)
class EnvStats:
    """How large an environment is (``portage.process.EnvStats``).

    Attributes:
        env_size: bytes, with ``=`` and the final NUL of each variable.
        env_largest_name: the largest variable; None if there is none.
        env_largest_size: its bytes, counted likewise.
    """

    env_size: int
    env_largest_name: str | bytes | None
    env_largest_size: int


def calc_env_stats(env: Mapping[Any, Any]) -> EnvStats:
    """Measure an environment.

    As ``portage.process.calc_env_stats`` (lib/portage/process.py).

    Args:
        env: names and values are str or bytes.

    Returns:
        sizes in bytes; 0, None and 0 for an empty one.
    """
    total = largest = 0
    name_of_largest = None
    for name, value in env.items():
        size = len(os.fsencode(name)) + len(os.fsencode(value)) + 2
        total += size
        if size > largest:
            largest, name_of_largest = size, name
    return EnvStats(total, name_of_largest, largest)


class _PreExecFailed(OSError):
    """Carries status and traceback from the child through the engine's report."""

    def __str__(self) -> str:
        return str(self.strerror)


def report_status(pre_exec: Any) -> Any:
    """The same callable, for the child; what it raises arrives here as status and text."""

    def reporting() -> None:
        try:
            pre_exec()
        except SystemExit as raised:
            raise _PreExecFailed(_STATUS_BASE + _exit_status(raised), "") from None
        except BaseException:
            text = traceback.format_exc().encode("utf-8", "replace")[-_LONGEST_TRACEBACK:]
            raise _PreExecFailed(_STATUS_BASE + 1, text.decode("utf-8", "replace")) from None

    return reporting


def _exit_status(raised: SystemExit) -> int:
    """The status that Python itself would end with."""
    code = raised.code
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def describe(error: BaseException, words: Iterable[object], env: Any) -> tuple[str, int]:
    """What the command's stderr should say, and the status it should have had."""
    if isinstance(error, OSError) and (error.errno or 0) >= _STATUS_BASE:  # of report_status
        text = str(error.strerror)
        marker = f"{_PreExecFailed.__name__}: "  # the engine puts stage and class before it
        if isinstance(error, SpawnError):
            text = text.partition(marker)[2]
        said = _join(text.rstrip(), words, "") if text else ""
        return said, (error.errno or 0) - _STATUS_BASE
    return _join(str(error), words, _explain_size(error, env)), 1


def _join(reason: str, words: Iterable[object], more: str) -> str:
    command = " ".join(word if isinstance(word, str) else _show(word) for word in words)
    if len(command) > _LONGEST_COMMAND:
        command = command[:_LONGEST_COMMAND] + " …"
    text = f"spawnhelper: {reason}\n  command: {command}\n{more}".replace("\0", "\\0")
    return text if len(text) < _LONGEST_TEXT // 4 else text[: _LONGEST_TEXT // 4] + "\n"


def tell_isolation(notes: Iterable[Note], fd: int) -> None:
    """One line about what a command lacks, on its stderr."""
    reasons = "; ".join(map(str, notes))
    if reasons:
        with contextlib.suppress(OSError):
            os.write(fd, f"spawnhelper: less isolated than asked: {reasons}\n".encode())


def _show(word: object) -> str:
    return os.fsdecode(word) if isinstance(word, (bytes, os.PathLike)) else repr(word)


def _explain_size(error: BaseException, env: Any) -> str:
    if not isinstance(error, OSError) or error.errno != errno.E2BIG:
        return ""
    stats = calc_env_stats(os.environ if env is None else env)
    return (
        f"  environment: {stats.env_size} bytes\n"
        f"  Largest environment variable: {largest_of(stats)}\n"
    )


def largest_of(stats: EnvStats) -> str:
    """Name and size of the largest variable, as portage's tests look for them."""
    name = stats.env_largest_name
    shown = os.fsdecode(name) if isinstance(name, bytes) else name
    return f"{shown} ({stats.env_largest_size} bytes)"
