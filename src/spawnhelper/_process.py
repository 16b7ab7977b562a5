"""The handle of a started process."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from time import monotonic
from types import TracebackType
from typing import Any

from . import _core, _state
from ._request import Request

_GRACE_SECONDS = 1.0


class Process:
    """A process started by ``spawn(..., returnproc=True)``; never made by hand.

    The handle owns the child until its end has been waited for. Signals go
    through the pidfd (pidfd_send_signal(2)), so they cannot reach a stranger
    that got the same pid later. Any thread may use it. In a process forked
    from the owner, waiting and signalling raise ``RuntimeError``.
    """

    __slots__ = ("__weakref__", "_copier", "_handle", "_request")

    def __init__(self, request: Request, handle: Any) -> None:
        self._handle = handle
        self._request = request
        self._copier: Process | None = None

    # ---- what it is ----

    @property
    def pid(self) -> int:
        """The process id. After the end it may be another process's."""
        pid: int = self._handle.pid
        return pid

    @property
    def pidfd(self) -> int:
        """The descriptor that names the process (pidfd_open(2)), close-on-exec.

        It belongs to the handle and is closed once the end has been seen; -1
        then, and where the kernel (or a seccomp filter) gives no pidfd.
        """
        return _core.pidfd(self._handle)

    def fileno(self) -> int:
        """The pidfd, for select, poll and epoll: readable when the process has ended.

        Raises:
            ValueError: it is closed, because the end has been seen, or there is none.
        """
        fd = self.pidfd
        if fd >= 0:
            return fd
        if _core.is_ended(self._handle):
            raise ValueError(f"process {self.pid} has ended: its pidfd is closed")
        raise ValueError("no pidfd: the kernel lacks pidfd_open or a seccomp filter denies it")

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None until the end has been seen.

        Raises:
            ChildProcessError: the child was reaped by somebody else.
        """
        return _core.returncode(self._handle) if _core.is_ended(self._handle) else None

    # ---- waiting ----

    def poll(self) -> int | None:
        """Look whether it has ended: the returncode, or None.

        Raises:
            ChildProcessError: the child was reaped by somebody else.
            RuntimeError: this process was forked from the owner.
        """
        if not _core.wait(self._handle, 0):
            return None
        if self._copier is not None:
            _core.wait(self._copier._handle, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Args:
            timeout: seconds; None means without limit.

        Returns:
            The exit status, or the negative number of the signal that killed it.

        Raises:
            subprocess.TimeoutExpired: it still runs.
            ChildProcessError: the child was reaped by somebody else.
            RuntimeError: this process was forked from the owner.
        """
        deadline = None if timeout is None else monotonic() + timeout
        ended = _core.wait(self._handle, timeout)
        if ended and self._copier is not None:  # its status is nobody's business
            left = None if deadline is None else max(0.0, deadline - monotonic())
            ended = _core.wait(self._copier._handle, left)
        if not ended:
            import subprocess

            raise subprocess.TimeoutExpired(self._arguments(), timeout or 0.0)
        return _core.returncode(self._handle)

    def _arguments(self) -> list[str]:
        return [os.fsdecode(word) for word in self._request.argv.split(b"\0")]

    # ---- signals ----

    def send_signal(self, number: int) -> None:
        """Send a signal; silently nothing once the process is known to have ended.

        Raises:
            OSError: EINVAL for an unknown signal, EPERM if it changed its user.
            RuntimeError: this process was forked from the owner.
        """
        _core.signal(self._handle, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    # ---- ending ----

    def _end(self) -> None:
        """SIGTERM, one second, SIGKILL; reaped. For a call that cannot deliver its result."""
        if not _core.is_ours(self._handle):
            return
        try:
            with contextlib.suppress(PermissionError):  # it changed its user
                self.terminate()
            _core.wait(self._handle, _GRACE_SECONDS)
        finally:  # also if a second Ctrl-C strikes
            self._kill_and_reap()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill it if it still runs, and reap it."""
        self._kill_and_reap()
        if self._copier is not None:
            _core.wait(self._copier._handle, None)

    def _kill_and_reap(self) -> None:
        """One that may not be killed is left to later starts to reap."""
        if _core.is_ours(self._handle):
            with contextlib.suppress(PermissionError):
                self.kill()
                _core.wait(self._handle, None)

    def __del__(
        self,
        _is_spent: Any = _core.is_spent,
        _is_ours: Any = _core.is_ours,
        _drop: Any = _core.drop,
        _dropped: list[Any] = _state.dropped,
        _warn: Any = warnings.warn,
    ) -> None:
        handle = getattr(self, "_handle", None)
        if handle is None or _is_spent(handle):
            return
        if not _is_ours(handle):
            _drop(handle)
            return
        _dropped.append(handle)
        _warn(f"{self!r} was dropped while it ran", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        words = self._arguments()
        if self.pid == 0:
            state = "not started"
        elif not _core.is_ended(self._handle):
            state = "running"
        else:
            try:
                state = f"returncode {self.returncode}"
            except ChildProcessError:
                state = "reaped by somebody else"
        return f"<{type(self).__name__} pid={self.pid} {state} {words!r}>"
