"""logfile: the command's stdout and stderr, in order, to a file and to the original stdout."""

from __future__ import annotations

import os
import warnings

from . import _core
from ._errors import LogWarning, spawn_error
from ._fds import FdMap, is_open
from ._process import Process
from ._request import Argument, Request, make_options, make_request
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

    def __init__(self, request: Request, logfile: Argument, waits: bool) -> None:
        """Open everything; nothing runs yet.

        Raises:
            OSError: the log cannot be opened for appending.
            ValueError: the fd map lacks 1 or 2, or the name contains NUL.
        """
        name = os.fsencode(logfile)
        if b"\0" in name:
            raise ValueError("logfile: embedded null byte")
        pairs = _map_of(request)
        self.log = _core.new_log()
        _core.open_log(self.log, name, pairs.get(1, -1), waits)
        end = self.log.pipe_end
        # Everything that named the original stdout or stderr as its own stays.
        self.request = request.with_fds({**pairs, 1: end, 2: end})

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
        _core.start(request, copier._handle)
        return copier

    def close(self) -> None:
        """Close what is left, and say what could not be copied."""
        log = self.log
        _core.close_log(log)
        for name, error in (("the log", log.file_error), ("stdout", log.out_error)):
            if error:
                warnings.warn(
                    f"output could not be copied to {name}: {os.strerror(error)}",
                    LogWarning,
                    stacklevel=4,
                )
