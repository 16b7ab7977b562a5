"""Functions that run when the program ends, or when an event loop does.

What ``portage.process`` documents as ``atexit_register`` and ``run_exitfuncs``.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio


class _Hook(NamedTuple):
    function: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    owner: int  # the process that registered it; a fork inherits the list, not the duty


class _LoopHooks:
    """The coroutine functions of one event loop; None stands for "no loop ran"."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.hooks: list[_Hook] = []


_hooks: list[_Hook] = []
_of_loops: list[_LoopHooks] = []


def atexit_register(func: Callable[..., Any], *args: Any, **kargs: Any) -> None:
    """Have a function called when the program ends; the last one registered is called first.

    A coroutine function belongs to the event loop that runs in this thread: it
    runs when that loop is closed, at the latest when the program ends. If no
    loop runs, it runs at the end of the program in one of its own.

    As ``portage.process.atexit_register`` (lib/portage/process.py).

    Args:
        func: what to call; its result is ignored.
        args: its arguments.
        kargs: its keyword arguments.
    """
    hook = _Hook(func, args, kargs, os.getpid())
    if inspect.iscoroutinefunction(func):
        _hooks_of_running_loop().append(hook)
    else:
        _hooks.append(hook)
    # The interpreter, too, runs the last one first: before multiprocessing's,
    # which waits for children that a hook of ours may be there to end
    # (bugs.gentoo.org/937384).
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def run_exitfuncs() -> None:
    """Call the registered functions now, and forget them.

    A function registered meanwhile is called, too. One that was inherited
    through a fork is dropped. ``SystemExit`` is kept silently, whatever else
    is raised is printed and kept; in the end the last one kept is raised, as
    it is.

    As ``portage.process.run_exitfuncs`` (lib/portage/process.py).

    Raises:
        BaseException: what a function raised.
    """
    raised: BaseException | None = None
    while _hooks:
        hook = _hooks.pop()
        if hook.owner != os.getpid():
            continue
        try:
            hook.function(*hook.args, **hook.keywords)
        except SystemExit as error:
            raised = error
        except BaseException as error:
            _show(error)
            raised = error
    if raised is not None:
        raise raised


async def run_coroutine_exitfuncs() -> None:
    """Run the coroutine functions of the running loop now, and forget them.

    The last one registered starts first; none waits for another. Of several
    that raise, the last one's exception is raised and the others are printed.

    As ``portage.process.run_coroutine_exitfuncs`` (lib/portage/process.py).

    Raises:
        Exception: what a function raised.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    await _run_all([hooks for hooks in _of_loops if hooks.loop in (loop, None)])


async def _run_all(taken: list[_LoopHooks]) -> None:
    import asyncio

    tasks = [asyncio.ensure_future(_call(hook)) for hooks in taken for hook in _take(hooks)]
    raised: list[Exception] = []
    for task in tasks:
        try:
            await task
        except Exception as error:
            raised.append(error)
    for earlier in raised[:-1]:
        _show(earlier)
    if raised:
        raise raised[-1]


def _call(hook: _Hook) -> Coroutine[Any, Any, Any]:
    made: Coroutine[Any, Any, Any] = hook.function(*hook.args, **hook.keywords)
    return made


def _take(hooks: _LoopHooks) -> list[_Hook]:
    """Its hooks, newest first, as far as they are this process's; all are forgotten."""
    if hooks in _of_loops:
        _of_loops.remove(hooks)
    return [hook for hook in reversed(hooks.hooks) if hook.owner == os.getpid()]


def _show(error: BaseException) -> None:
    if sys.stderr is not None:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)


def _hooks_of_running_loop() -> list[_Hook]:
    import asyncio

    loop: asyncio.AbstractEventLoop | None = None
    with contextlib.suppress(RuntimeError):
        loop = asyncio.get_running_loop()
    for known in _of_loops:
        if known.loop is loop:
            return known.hooks
    made = _LoopHooks(loop)
    _of_loops.append(made)
    if loop is not None:
        _run_before_close(loop)
    return made.hooks


def _run_before_close(loop: asyncio.AbstractEventLoop) -> None:
    """Give this one loop a close() that runs its hooks first."""
    close = loop.close

    def close_with_hooks() -> None:
        try:
            _finish(loop)
        finally:
            close()

    # A loop written in C takes no attribute: its hooks run at the end of the program.
    with contextlib.suppress(AttributeError):
        loop.close = close_with_hooks  # type: ignore[method-assign]


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    if loop.is_running() or loop.is_closed():
        return  # close() says so itself
    mine = [hooks for hooks in _of_loops if hooks.loop is loop]
    if mine:
        loop.run_until_complete(_run_all(mine))


def _at_exit() -> None:
    try:
        run_exitfuncs()
    finally:
        while _of_loops:
            _finish_at_exit(_of_loops.pop())


def _finish_at_exit(hooks: _LoopHooks) -> None:
    """In their own loop if it is still there, else in a new one."""
    import asyncio

    if not any(hook.owner == os.getpid() for hook in hooks.hooks):
        return
    loop = hooks.loop
    if loop is None or loop.is_closed() or loop.is_running():
        asyncio.run(_run_all([hooks]))
    else:
        loop.run_until_complete(_run_all([hooks]))
        loop.close()


def register_at_exit() -> None:
    """Let the interpreter call the hooks when it ends."""
    atexit.register(_at_exit)
