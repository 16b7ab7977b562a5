"""Descriptors: the fd map as callers give it, and what is open here."""

from __future__ import annotations

import fcntl
import operator
import os
import sys
from collections.abc import Iterator, Mapping

FdMap = dict[int, int]

_MAX_FD = 2**31 - 1


def parse_map(fd_pipes: Mapping[int, int]) -> FdMap:
    """A checked copy of the caller's fd map.

    Raises:
        TypeError: no mapping, or a key or value is no integer.
        ValueError: a key or value is negative or no possible descriptor.
    """
    if not isinstance(fd_pipes, (dict, Mapping)):
        raise TypeError(f"fd_pipes: expected a mapping, not {type(fd_pipes).__name__}")
    pairs: FdMap = {}
    for target, source in fd_pipes.items():
        pair = operator.index(target), operator.index(source)
        for fd in pair:
            if not 0 <= fd <= _MAX_FD:
                raise ValueError(f"fd_pipes: {fd} is no descriptor")
        pairs[pair[0]] = pair[1]
    return pairs


def is_open(fd: int) -> bool:
    """Whether this process has the descriptor open."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def get_open_fds() -> Iterator[int]:
    """Yield the numbers of this process's open descriptors.

    As ``portage.process.get_open_fds``: the numbers come from /proc/self/fd
    and include the one by which the directory itself was read, which is
    closed again. Without /proc every number below the soft limit is tried.
    """
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield from (fd for fd in range(soft) if is_open(fd))
        return
    yield from (int(name) for name in names if name.isdigit())


def sanitize_fds() -> None:
    """Make every descriptor but the three standard streams close-on-exec.

    For a program's start, so that what it inherited by accident does not
    reach its children. Errors are ignored.
    """
    standard = set()
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            standard.add(stream.fileno())  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            continue  # closed, or no stream
    for fd in get_open_fds():
        if fd not in standard:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue
