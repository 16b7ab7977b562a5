"""logfile: the command's stdout and stderr, in order, to a file and to the original stdout."""

from __future__ import annotations

import os
import warnings
from typing import Any

from . import _core
from ._errors import LogWarning
from ._process import Process
from ._request import Argument, Options, Packed, Request, encode, make_options, make_request

COPIER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_tee")


def _check(logfile: Argument, options: Options) -> bytes:
    fds = options.fds
    if fds is not None and not (1 in fds and 2 in fds):
        raise ValueError("logfile: fd_pipes needs the keys 1 and 2")
    return encode(logfile, "logfile")


def _warn(log: _core.Log, stacklevel: int) -> None:
    for name, error in (("the log", log.file_error), ("stdout", log.out_error)):
        if error:
            message = f"output could not be copied to {name}: {os.strerror(error)}"
            warnings.warn(message, LogWarning, stacklevel=stacklevel + 1)


def run_logged(packed: Packed, options: Options, entered: Any, logfile: Argument) -> int:
    """``_core.run``, copying the output to the log.

    Raises:
        OSError: the log cannot be opened for appending.
        ValueError: the fd map lacks 1 or 2, or the name contains NUL.
    """
    return _core.run_logged(packed, options, entered, _check(logfile, options), _warn_caller)


def _warn_caller(log: _core.Log) -> None:
    _warn(log, stacklevel=6)  # us, two run_logged(), launch(), spawn()


class LogPipe:
    """A pipe into which the command writes, and where its content goes."""

    def __init__(self, request: Request, logfile: Argument, waits: bool) -> None:
        """Open everything; nothing runs yet.

        Raises:
            OSError: the log cannot be opened for appending.
            ValueError: the fd map lacks 1 or 2, or the name contains NUL.
        """
        name = _check(logfile, request.options)
        self.log = _core.new_log()
        _core.open_log(self.log, request.options, name, waits)

    def start_copier(self, command: Process) -> Process:
        """A process that copies until the command has ended.

        Raises:
            SpawnError: it could not be started.
        """
        log = self.log
        _core.log_started(log)
        fds = {0: log.source, 3: log.file}
        if log.out >= 0:
            fds[1] = log.out
        if command.pidfd >= 0:
            fds[4] = command.pidfd
        options = make_options(fd_pipes=fds, close_fds=True)
        request = make_request([COPIER], {}, None, options)
        copier = Process(request.argv, _core.new_handle())
        _core.start(request, copier._handle, None)
        return copier

    def close(self) -> None:
        """Close what is left, and say what could not be copied."""
        log = self.log
        _core.close_log(log)
        _warn(log, stacklevel=5)
