"""Waiting in asyncio and trio tasks, without a child watcher and without a thread.

Imported by the first such wait: ``import spawnhelper`` imports no event loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from . import _core

# Without a pidfd there is nothing that a loop could watch: look ever more rarely.
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02


def _running_trio() -> Any:
    """The trio module, if this is one of its tasks; trio is never imported here."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None


async def _sleep(seconds: float) -> None:
    trio = _running_trio()
    await (asyncio.sleep(seconds) if trio is None else trio.sleep(seconds))


def _wake(future: asyncio.Future[bool], readable: bool) -> None:
    if not future.done():  # cancelled, and the loop has not got so far yet
        future.set_result(readable)


async def wait_readable(fd: int, timeout: float | None = None) -> bool:
    """Wait until the descriptor, which nobody else watches, is readable; False if time is over."""
    trio = _running_trio()
    if trio is not None:
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await trio.lowlevel.wait_readable(fd)
            return True
        return False
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()
    timer = None if timeout is None else loop.call_later(timeout, _wake, future, False)
    loop.add_reader(fd, _wake, future, True)
    try:
        return await future
    finally:
        loop.remove_reader(fd)
        if timer is not None:
            timer.cancel()


async def wait_for_end(handle: Any) -> None:
    """Wait until the process has ended, and reap it.

    Raises:
        RuntimeError: this process was forked from the owner, or no loop runs.
        OSError: no descriptor is free.
    """
    # Each waiter watches a descriptor of its own: a loop keeps one reader for
    # each number, and another thread that reaps closes the handle's. First it is
    # the command's, then that of its pid 1.
    pause = _FIRST_PAUSE
    seen = -1
    while not _core.reap_now(handle):
        phase = _core.phase(handle)
        fd = _core.copy_pidfd(handle)
        if fd < 0 or phase == seen:
            # The only way without a pidfd. With one it has ended; but if somebody
            # traces it (ptrace(2)), we may reap it only after the tracer did.
            await _sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        if fd >= 0:
            try:
                await wait_readable(fd)
            finally:
                os.close(fd)
        seen = phase
