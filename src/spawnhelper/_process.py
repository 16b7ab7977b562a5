"""The handle of a started process."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Generator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _core, _errors
from ._errors import Note

if TYPE_CHECKING:
    import resource

_GRACE_SECONDS = 1.0


class Process:
    """A process started by ``spawn(..., returnproc=True)``; never made by hand.

    The handle owns the child until its end has been seen. Signals go through
    the pidfd (pidfd_send_signal(2)), so they cannot reach a stranger that got
    the same pid later. Any thread may use it, several at once too. In a
    process forked from the owner, waiting and signalling raise
    ``RuntimeError`` at once.

    Wait with ``wait()``, with ``await`` in an asyncio (any loop) or trio task,
    with ``fileno()`` in select, poll and epoll, or for many at once with
    ``wait_any()`` and ``as_completed()``. As a context manager, ``with`` or
    ``async with``, it is killed and reaped at the end of the block.

    If somebody else reaps the child (``os.waitpid(-1)``, SIGCHLD ignored) no
    call hangs. From Linux 6.15 on the pidfd still tells the returncode, and
    only ``rusage`` is lost; before, the answer is ``ChildProcessError``.

    A handle that is dropped while the child runs warns (``ResourceWarning``);
    the child runs on, and a later start reaps it.
    """

    __slots__ = ("__weakref__", "_argv", "_copier", "_handle", "_in_user")

    def __init__(self, argv: bytes, handle: Any) -> None:
        self._handle = handle
        self._argv = argv
        self._copier: Process | None = None
        self._in_user = False  # for the notes

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
        if not _core.command_runs(self._handle):
            raise ValueError(f"process {self.pid} has ended: its pidfd is closed")
        raise ValueError("no pidfd: the kernel lacks pidfd_open or a seccomp filter denies it")

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None until the end has been seen.

        Raises:
            ChildProcessError: the child was reaped by somebody else (before Linux 6.15).
        """
        return _core.returncode(self._handle) if _core.is_ended(self._handle) else None

    @property
    def notes(self) -> tuple[Note, ...]:
        """Failures that ``isolation="best-effort"`` tolerated; empty for a command as asked."""
        return _core.notes(self._handle, self._in_user)

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """What the process and the children that it reaped used; None until the end has been seen.

        ``ru_maxrss`` (KiB) begins at the size of the process that started it
        (the kernel inherits it through fork and exec), so it tells something
        about a command only if that is larger than this program.

        Raises:
            ChildProcessError: the child was reaped by somebody else.
        """
        if not _core.is_ended(self._handle):
            return None
        import resource

        return resource.struct_rusage(_core.usage(self._handle))

    @property
    def wall_time(self) -> float | None:
        """Seconds from before the start to when the end was seen; None until then."""
        return _core.wall_time(self._handle) if _core.is_ended(self._handle) else None

    # ---- waiting ----

    def poll(self) -> int | None:
        """Look whether it has ended: the returncode, or None.

        What a command leaves in its pid namespace dies in about 0.1 ms, and is
        waited for, but no longer than 20 ms.

        Raises:
            ChildProcessError: the child was reaped by somebody else (before Linux 6.15).
            RuntimeError: this process was forked from the owner.
        """
        if not _core.wait(self._handle, 0):
            return None
        copier = self._copier
        if copier is not None and _core.wait(copier._handle, 0):
            self._report_copier(copier)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Args:
            timeout: seconds; None means without limit.

        Returns:
            The exit status, or the negative number of the signal that killed it.

        Raises:
            subprocess.TimeoutExpired: it still runs.
            ChildProcessError: the child was reaped by somebody else (before Linux 6.15).
            RuntimeError: this process was forked from the owner.
        """
        deadline = None if timeout is None else monotonic() + timeout
        ended = _core.wait(self._handle, timeout)
        copier = self._copier
        if ended and copier is not None:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            ended = _core.wait(copier._handle, left)
            if ended:
                self._report_copier(copier)
        if not ended:
            import subprocess

            raise subprocess.TimeoutExpired(self._arguments(), timeout or 0.0)
        return _core.returncode(self._handle)

    async def wait_async(self) -> int:
        """Wait for the end in an asyncio or trio task; other tasks run meanwhile.

        ``await process`` is the same. A cancelled wait leaves the process and
        every other waiter alone, so ``asyncio.timeout`` limits it.

        Returns:
            The exit status, or the negative number of the signal that killed it.

        Raises:
            ChildProcessError: the child was reaped by somebody else (before Linux 6.15).
            RuntimeError: this process was forked from the owner, or no event loop runs.
            OSError: no descriptor is free for the duplicate of the pidfd that each wait needs.
        """
        from . import _aio

        if not _core.reap(self._handle):
            await _aio.wait_for_end(self._handle)
        copier = self._copier
        if copier is not None:
            await _aio.wait_for_end(copier._handle)
            self._report_copier(copier)
        return _core.returncode(self._handle)

    def __await__(self) -> Generator[Any, Any, int]:
        return self.wait_async().__await__()

    def _report_copier(self, copier: Process) -> None:
        """Warn, once, of output that its copier could not copy; the status stays the command's."""
        if self._copier is None:  # another waiter was here
            return
        self._copier = None
        try:
            trouble = _errors.log_trouble(_core.returncode(copier._handle))
        except ChildProcessError:
            return  # somebody else knows
        if trouble:
            warnings.warn(trouble, _errors.LogWarning, stacklevel=3)

    def _arguments(self) -> list[str]:
        return [os.fsdecode(word) for word in self._argv.split(b"\0")]

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

    def _keep(self) -> None:
        """The caller of spawn() gets it."""
        if self._copier is not None:
            _core.keep_silently(self._copier._handle)
        _core.keep(self._handle)

    def _end(self) -> None:
        """SIGTERM, one second, SIGKILL; reaped. For a call that cannot deliver its result."""
        _core.end(self._handle)
        copier = self._copier
        if copier is not None and _core.is_ours(copier._handle):
            _core.wait(copier._handle, _GRACE_SECONDS)
            _core.finish(copier._handle)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill it if it still runs, and reap it."""
        if _core.is_ours(self._handle):
            _core.finish(self._handle)  # one that may not be killed is left to later starts
        copier = self._copier
        if copier is not None and _core.is_ours(copier._handle):
            _core.wait(copier._handle, None)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill it if it still runs, and reap it; even if this wait is cancelled."""
        if not _core.is_ours(self._handle):
            return
        try:
            self.kill()
        except PermissionError:
            return  # it changed its user: left to later starts
        try:
            await self.wait_async()
        except ChildProcessError:
            return  # reaped, if not by us
        finally:  # at once, because it was killed
            self.__exit__(kind, value, traceback)

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
