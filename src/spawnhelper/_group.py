"""Waiting for many processes: one epoll, whose cost does not depend on how many there are."""

from __future__ import annotations

import select
from collections.abc import Iterable
from time import monotonic
from typing import Any

from . import _core
from ._process import Process

# Python runs signal handlers in its main thread only, but the kernel may hand
# the signal to any thread: look up this often.
_SLICE_SECONDS = 0.05
_PAUSE_WITHOUT_PIDFD = 0.005
_BATCH = 64


class Completed:
    """Processes in the order of their ends; made by ``as_completed()``.

    An iterator and an asynchronous iterator, for one thread or task at a time.
    Each process is reaped when it is yielded, not before; so what is left when
    an iteration is given up has neither been reaped nor lost.
    """

    def __init__(self, processes: Iterable[Process], timeout: float | None = None) -> None:
        self._deadline = None if timeout is None else monotonic() + timeout
        self._ended: list[Process] = []
        self._watched: dict[int, Process] = {}  # by pidfd
        self._others: list[Process] = []  # no pidfd
        self._epoll = select.epoll()
        for process in dict.fromkeys(processes):
            self._take_up(process)
        self._look()
        for fd in self._watched:
            # Once: a forked child may hold the same file open, and keep it in the epoll.
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        self._ended.reverse()

    def _take_up(self, process: Process) -> None:
        handle = process._handle
        # Held, because another thread that reaps would close the pidfd, and epoll forget it.
        fd = _core.hold(handle)
        if fd >= 0:
            self._watched[fd] = process
        elif _core.is_running(handle):
            _core.check_owner(handle)
            self._others.append(process)
        else:
            self._ended.append(process)

    def _look(self) -> None:
        """Find what has ended already: one poll costs less than a place in the epoll for each."""
        poll = select.poll()
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        try:
            ready = poll.poll(0)
        except OSError:  # EINVAL: more than RLIMIT_NOFILE, which was lowered
            return
        self._note_ended(ready)

    def _note_ended(self, ready: list[tuple[int, int]]) -> None:
        for fd, _ in ready:
            process = self._watched.pop(fd, None)
            if process is not None:
                self._ended.append(process)
                _core.release(process._handle)

    def __len__(self) -> int:
        """How many are still to come."""
        return len(self._ended) + len(self._watched) + len(self._others)

    def _collect(self, seconds: float) -> None:
        """Wait for the first, take what has ended with it.

        Raises:
            RuntimeError: this process was forked from the one that asked: its epoll is
                shared, and what is taken from it here would be missing there.
        """
        for one in self._watched.values():
            _core.check_owner(one._handle)
            break
        self._note_ended(self._epoll.poll(seconds, _BATCH))
        others, self._others = self._others, []
        for process in others:
            (self._ended if _core.reap(process._handle) else self._others).append(process)

    def _take(self) -> Process | None:
        while self._ended:
            process = self._ended.pop()
            if _core.reap(process._handle):
                return process
            self._others.append(process)  # its tracer (ptrace(2)) must reap it first
        return None

    def _time_left(self, longest: float) -> float:
        """Seconds that may be waited now.

        Raises:
            TimeoutError: none.
        """
        if self._others:
            longest = min(longest, _PAUSE_WITHOUT_PIDFD)
        if self._deadline is None:
            return longest
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError(f"{len(self)} processes still run")
        return min(left, longest)

    def __iter__(self) -> Completed:
        return self

    def __next__(self) -> Process:
        if not self._ended and len(self):
            self._collect(0)
        while (process := self._take()) is None:
            if not len(self):
                self.close()
                raise StopIteration
            self._collect(self._time_left(_SLICE_SECONDS))
        return process

    def __aiter__(self) -> Completed:
        return self

    async def __anext__(self) -> Process:
        from . import _aio

        if not self._ended and len(self):
            self._collect(0)
        while (process := self._take()) is None:
            if not len(self):
                self.close()
                raise StopAsyncIteration
            await _aio.wait_readable(self._epoll.fileno(), self._time_left(3600.0))
            self._collect(0)
        return process

    def close(self) -> None:
        """Stop watching; the processes are left as they are."""
        while self._watched:
            _, process = self._watched.popitem()
            _core.release(process._handle)
        self._others.clear()
        self._ended.clear()
        self._epoll.close()

    def __del__(self, _release: Any = _core.release) -> None:
        # The handles may live on; nobody closes a pidfd that is held.
        for process in getattr(self, "_watched", {}).values():
            _release(process._handle)

    def __enter__(self) -> Completed:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def as_completed(processes: Iterable[Process], timeout: float | None = None) -> Completed:
    """Yield the processes in the order in which they end, each reaped.

    For ``for`` and, in asyncio and trio tasks, ``async for``. What has ended
    before comes first. Thousands cost one epoll; a process that is given more
    than once comes once.

    Args:
        processes: handles of any state.
        timeout: seconds from now until the last must have ended; None means without limit.

    Returns:
        The iterator.

    Raises:
        TimeoutError: (while iterating) the time is over.
        RuntimeError: one is the child of a process from which this one was forked.
    """
    return Completed(processes, timeout)


def _first_of(processes: Iterable[Process], timeout: float | None) -> Completed:
    completed = Completed(processes, timeout)
    if not len(completed):
        raise ValueError("processes: empty")
    return completed


def wait_any(processes: Iterable[Process], timeout: float | None = None) -> Process:
    """Wait until one of the processes has ended, and reap it.

    Each call looks at every process; ``as_completed()`` does so once for all.

    Args:
        processes: handles of any state; one that ended before is an answer, too.
        timeout: seconds; None means without limit.

    Returns:
        The process.

    Raises:
        TimeoutError: the time is over.
        ValueError: there is none.
        RuntimeError: one is the child of a process from which this one was forked.
    """
    with _first_of(processes, timeout) as completed:
        return next(completed)


async def wait_any_async(processes: Iterable[Process], timeout: float | None = None) -> Process:
    """``wait_any()`` for an asyncio or trio task.

    Args:
        processes: handles of any state; one that ended before is an answer, too.
        timeout: seconds; None means without limit.

    Returns:
        The process.

    Raises:
        TimeoutError: the time is over.
        ValueError: there is none.
        RuntimeError: one is the child of a process from which this one was forked.
    """
    with _first_of(processes, timeout) as completed:
        return await anext(completed)
