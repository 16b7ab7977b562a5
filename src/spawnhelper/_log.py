"""logfile: the command's stdout and stderr, in order, to a file and to the original stdout."""

from __future__ import annotations

import os
import warnings
from typing import Any

from . import _core
from ._errors import LogWarning, spawn_error
from ._fds import FdMap, above_standard, is_open
from ._process import Process
from ._request import Argument, Request, make_request
from ._stages import Stage

COPIER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_tee")


def _map_of(request: Request) -> FdMap:
    fds = request.options.fds
    if fds is None:
        return {fd: fd for fd in (0, 1, 2) if is_open(fd)}
    if 1 not in fds or 2 not in fds:
        raise ValueError("logfile: fd_pipes needs the keys 1 and 2")
    for source in fds.values():
        # Before our own descriptors open: one could take a closed source's number.
        if not is_open(source):
            raise spawn_error(Stage.FDS, 9, f"FDS: fd {source}: Bad file descriptor")
    return fds


class LogPipe:
    """A pipe into which the command writes, and where its content goes."""

    def __init__(self, request: Request, logfile: Argument) -> None:
        """Open everything; nothing runs yet.

        Raises:
            OSError: the log cannot be opened for appending.
            ValueError: the fd map lacks 1 or 2.
        """
        pairs = _map_of(request)
        self.out = pairs.get(1, -1)
        self.file = self.source = self.pipe_end = -1
        self._log: Any = None
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self.file = above_standard(os.open(logfile, flags, 0o666))
            self.source, self.pipe_end = os.pipe2(os.O_CLOEXEC)
            self.source = above_standard(self.source)
            self.pipe_end = above_standard(self.pipe_end)
        except BaseException:
            self.close()
            raise
        # Everything that named the original stdout or stderr as its own stays.
        self.request = request.with_fds({**pairs, 1: self.pipe_end, 2: self.pipe_end})

    def for_waiting_call(self) -> Any:
        """The copy as the C core runs it while it waits. Takes over the pipe."""
        os.set_blocking(self.source, False)
        self._log = _core.new_log(self.source, self.pipe_end, self.file, self.out)
        self.source = self.pipe_end = -1
        return self._log

    def start_copier(self, command: Process) -> Process:
        """A process that copies until the command has ended.

        Raises:
            SpawnError: it could not be started.
        """
        pipe_end, self.pipe_end = self.pipe_end, -1  # never closed twice
        os.close(pipe_end)
        fds = {0: self.source, 3: self.file}
        if self.out >= 0:
            fds[1] = self.out
        if command.pidfd >= 0:
            fds[4] = command.pidfd
        request = make_request([COPIER], env={}, fd_pipes=fds, close_fds=True)
        copier = Process(request.argv, _core.new_handle())
        _core.start(request, copier._handle)
        return copier

    def close(self) -> None:
        """Close what is left, and say what could not be copied."""
        log, self._log = self._log, None
        fds = {self.source, self.pipe_end, self.file}  # struck in between, both name the same
        self.source = self.pipe_end = self.file = -1
        if log is not None:
            fds |= {log.source, log.pipe_end}
            log.source = log.pipe_end = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        if log is not None:
            for name, error in (("the log", log.file_error), ("stdout", log.out_error)):
                if error:
                    warnings.warn(
                        f"output could not be copied to {name}: {os.strerror(error)}",
                        LogWarning,
                        stacklevel=4,
                    )
