"""Namespace sets that serve many commands."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from . import _core
from ._errors import IsolationWarning, Note
from ._request import Isolation

IsolationPolicy = Literal["required", "best-effort"]


def to_best_effort(policy: str) -> bool:
    """Whether failures may be tolerated.

    Raises:
        ValueError: neither of the two words.
    """
    if policy not in ("required", "best-effort"):
        raise ValueError(f"isolation: {policy!r} is neither 'required' nor 'best-effort'")
    return policy == "best-effort"


# Who is told instead of a warning: the portage door, for the time of its own call.
listener: ContextVar[Callable[[tuple[Note, ...]], None] | None] = ContextVar(
    "spawnhelper_listener", default=None
)


def warn(notes: tuple[Note, ...], stacklevel: int) -> None:
    """One warning for all notes of a call, if there are any."""
    tell = listener.get()
    if notes and tell is not None:
        tell(notes)
    elif notes:
        text = "; ".join(map(str, notes))
        warnings.warn(f"less isolated than asked: {text}", IsolationWarning, stacklevel + 1)


def to_user(value: object) -> bool | Literal["root"]:
    """What ``user`` asks for.

    Raises:
        ValueError: a string other than ``"root"``.
    """
    if isinstance(value, str):
        if value != "root":
            raise ValueError(f"user: {value!r} is neither a bool nor 'root'")
        return "root"
    return bool(value)


class Namespaces:
    """A prepared set of namespaces: ``spawn(command, namespaces=set)`` enters it.

    Making a set costs a hundred times more than entering one, and the kernel
    cleans up only about a thousand network namespaces per second. Any number
    of commands may run in a set at once, started by any thread. What a command
    leaves behind in a pid namespace lives until ``close()``, or the end of
    this process, kills it; so do mounts, addresses and shared memory.

    A command gets the set's root directory, so a set that was made before this
    process changed its own (chroot(2)) is refused.

    A small program, the holder, keeps the set alive and is pid 1 of its pid
    namespace (pid_namespaces(7)). It ends with this process, however that ends.

    Args:
        net: network and UTS namespace: lo is up with 127.0.0.1, ::1, 10.0.0.1/8
            and, where the kernel has IPv6, fd::1/8; the host is called localhost.
        ipc: System V IPC and POSIX message queues (ipc_namespaces(7)).
        mount: mount namespace whose mounts receive the host's, and send none
            (MS_SLAVE, mount_namespaces(7)).
        pid: pid namespace with a /proc of its own; implies ``mount``.
        user: user namespace, which gives an ordinary user the rights for all
            the others where the kernel allows it (user_namespaces(7)): True
            maps the effective uid and gid to themselves, ``"root"`` to 0. No
            other id exists inside, and setgroups is denied.
        isolation: ``"required"``, or ``"best-effort"``: what ``spawn()`` would
            tolerate becomes ``notes`` and one ``IsolationWarning``.

    Raises:
        SpawnError: a step failed; its ``stage`` says which, its text what to do.
        ValueError: nothing is asked for, or an unknown policy.
    """

    __slots__ = ("__weakref__", "_in_pid", "_in_user", "_set")

    def __init__(
        self,
        net: bool = False,
        ipc: bool = False,
        mount: bool = False,
        pid: bool = False,
        *,
        user: bool | Literal["root"] = False,
        isolation: IsolationPolicy = "required",
    ) -> None:
        wanted = Isolation(
            bool(net),
            bool(ipc),
            bool(mount),
            bool(pid),
            to_user(user),
            best_effort=to_best_effort(isolation),
        )
        if not any(wanted[:5]):
            raise ValueError("Namespaces: ask for at least one of net, ipc, mount, pid and user")
        self._set = _core.open_set(wanted)
        self._in_pid = _core.set_has_pid(self._set)
        self._in_user = _core.set_has_user(self._set)
        try:
            warn(self.notes, 2)
        except BaseException:  # the warning is an error here
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The holder's process id, for nsenter(1); -1 when closed."""
        return _core.set_facts(self._set)[0]

    @property
    def pidfd(self) -> int:
        """The holder's pidfd, close-on-exec, readable when the set has ended; -1 when closed.

        It belongs to this object: duplicate it to keep it.
        """
        return _core.set_facts(self._set)[1]

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return bool(self._set.closed)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What best effort tolerated when the set was made."""
        return _core.notes(self._set, self._in_user)

    def close(self) -> None:
        """End the set: everything in its pid namespace is killed.

        When it returns it is gone, unless a command was started into it whose
        end has not been waited for: then that wait is what waits for the rest.
        In a process forked from the owner it ends nothing.
        """
        _core.close_set(self._set)

    def __enter__(self) -> Namespaces:
        _core.check_set(self._set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = _core.set_names(self._set)
        if self.closed:
            state = "closed"
        elif self.pid < 0:
            state = "of another process"
        else:
            state = "dead" if _core.set_is_dead(self._set) else f"holder {self.pid}"
        return f"<{type(self).__name__} {' '.join(names)} {state}>"
