"""From spawn()'s arguments to a Request: checked, encoded, and nothing started. Pure."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

from . import _state
from ._fds import FdMap, parse_map

Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Command = str | Sequence[Argument]
Env = Mapping[str, str] | Mapping[bytes, bytes]

_MAX_ID = 2**32 - 2  # (uid_t)-1 means "leave it" to setresuid(2)
_MAX_GROUPS = 65536  # NGROUPS_MAX, linux/limits.h


class Request(NamedTuple):
    """What is to be started. Byte strings are NUL-separated, as the C core takes them."""

    argv: bytes
    argc: int
    env: bytes
    envc: int
    file: bytes
    lookup: bool
    cwd: bytes | None
    fds: FdMap | None  # None: 0, 1 and 2 as far as they are open
    close_fds: bool
    uid: int | None
    gid: int | None
    groups: Sequence[int] | None
    umask: int | None
    pre_exec: Callable[[], object] | None
    program: str | bytes  # as the caller gave it


def _encode(value: Argument, what: str) -> bytes:
    try:
        encoded = os.fsencode(value)
    except TypeError:
        raise TypeError(
            f"{what}: expected str, bytes or a path, not {type(value).__name__}"
        ) from None
    if b"\0" in encoded:
        raise ValueError(f"{what}: embedded NUL in {encoded!r}")
    return encoded


def _join(strings: Sequence[Argument], what: str) -> bytes:
    try:
        packed = os.fsencode("\0".join(strings))  # type: ignore[arg-type]
    except TypeError:
        packed = b"\0".join([_encode(string, what) for string in strings])
    if packed.count(b"\0") != len(strings) - 1:
        raise ValueError(f"{what}: embedded NUL")
    return packed


def _split(command: Command) -> Sequence[Argument]:
    if isinstance(command, str):
        words: Sequence[Argument] = command.split()
    elif isinstance(command, (bytes, bytearray, os.PathLike)):
        raise TypeError("command: expected str or a sequence of arguments; wrap one in a list")
    else:
        words = command if isinstance(command, (list, tuple)) else list(command)
    if not words:
        raise ValueError("command: empty")
    return words


def _pack(env: Mapping[Any, Any]) -> tuple[bytes, int]:
    """The mapping as NAME=value strings, each followed by NUL but the last; and their number."""
    if not env:
        return b"", 0
    try:
        packed = os.fsencode("\0".join(map("=".join, env.items())))
        names = "\0".join(env).encode("utf-8", "surrogateescape")
    except (TypeError, UnicodeEncodeError):
        pairs = [(_encode(name, "env"), _encode(value, "env")) for name, value in env.items()]
        packed = b"\0".join(map(b"=".join, pairs))
        names = b"\0".join([name for name, _ in pairs])
    if packed.count(b"\0") != len(env) - 1:
        raise ValueError("env: embedded NUL")
    if b"=" in names or b"\0\0" in b"\0" + names + b"\0":
        raise ValueError("env: a name is empty or contains '='")
    return packed, len(env)


def pack_env(env: Env | None) -> tuple[bytes, int]:
    """The environment, packed; from the cache if it equals the last one.

    Raises:
        TypeError: env is no mapping, or holds something that is not str or bytes.
        ValueError: a NUL, an empty name, or a name with ``=``.
    """
    current: Mapping[Any, Any]
    if env is None:
        # The bytes that os.environ itself keeps; os.environ decodes at every access.
        current = getattr(os.environ, "_data", os.environ)
    elif isinstance(env, type(os.environ)):
        current = getattr(env, "_data", env)
    else:
        current = env
    copy, packed = _state.env_cache
    if current == copy:
        return packed
    if not isinstance(current, Mapping):
        raise TypeError(f"env: expected a mapping, not {type(env).__name__}")
    copy = dict(current)
    packed = _pack(copy)
    _state.env_cache = copy, packed
    return packed


def _to_id(value: SupportsIndex, what: str, largest: int = _MAX_ID) -> int:
    number = operator.index(value)
    if not 0 <= number <= largest:
        raise ValueError(f"{what}: {number} is out of range (0 to {largest})")
    return number


def _to_groups(groups: Iterable[SupportsIndex]) -> list[int]:
    ids = [_to_id(group, "groups") for group in groups]
    if len(ids) > _MAX_GROUPS:
        raise ValueError(f"groups: {len(ids)} are more than the {_MAX_GROUPS} that Linux allows")
    return ids


def make_request(
    command: Command,
    env: Env | None = None,
    opt_name: str | bytes | None = None,
    fd_pipes: Mapping[int, int] | None = None,
    uid: SupportsIndex | None = None,
    gid: SupportsIndex | None = None,
    groups: Iterable[SupportsIndex] | None = None,
    umask: SupportsIndex | None = None,
    cwd: Argument | None = None,
    path_lookup: bool = True,
    pre_exec: Callable[[], object] | None = None,
    close_fds: bool = False,
) -> Request:
    """Check and encode. The arguments are those of ``spawn()``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has an impossible value.
    """
    words = _split(command)
    first = words[0]
    file = _encode(first, "command")
    if not file:
        raise ValueError("command: the program's name is empty")
    if opt_name is not None:
        words = [opt_name, *words[1:]]
    packed_env, envc = pack_env(env)
    if pre_exec is not None and not callable(pre_exec):
        raise TypeError(f"pre_exec: {type(pre_exec).__name__} is not callable")
    return Request(
        _join(words, "command"),
        len(words),
        packed_env,
        envc,
        file,
        bool(path_lookup) and b"/" not in file,
        None if cwd is None else _encode(cwd, "cwd"),
        None if fd_pipes is None else parse_map(fd_pipes),
        bool(close_fds),
        None if uid is None else _to_id(uid, "uid"),
        None if gid is None else _to_id(gid, "gid"),
        None if groups is None else _to_groups(groups),
        None if umask is None else _to_id(umask, "umask", 0o777),
        pre_exec,
        first if isinstance(first, (str, bytes)) else os.fspath(first),
    )
