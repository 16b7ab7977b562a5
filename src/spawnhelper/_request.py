"""From spawn()'s arguments to a Request: checked, encoded, and nothing started. Pure."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex

from . import _state
from ._fds import FdMap, parse_map

Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Command = str | Sequence[Argument]
Env = Mapping[str, str] | Mapping[bytes, bytes]

_MAX_ID = 2**32 - 2  # (uid_t)-1 means "leave it" to setresuid(2)
_MAX_GROUPS = 65536  # NGROUPS_MAX, linux/limits.h


class Isolation(NamedTuple):
    """What separates the command from this process's surroundings."""

    net: bool = False
    ipc: bool = False
    mount: bool = False
    pid: bool = False
    user: bool | Literal["root"] = False
    cgroup: bytes | None = None
    best_effort: bool = False
    new_session: bool = False


class Options:
    """What is asked for besides the command and its environment.

    Never changed; only ``c`` is filled in once.
    """

    __slots__ = (
        *("lookup", "cwd", "fds", "close_fds", "uid", "gid", "groups", "umask", "pre_exec"),
        *("isolation", "runs_in_c", "c"),
    )

    def __init__(
        self,
        lookup: bool = True,
        cwd: bytes | None = None,
        fds: FdMap | None = None,  # None: 0, 1 and 2 as far as they are open
        close_fds: bool = False,
        uid: int | None = None,
        gid: int | None = None,
        groups: Sequence[int] | None = None,
        umask: int | None = None,
        pre_exec: Callable[[], object] | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        self.lookup = lookup
        self.cwd = cwd
        self.fds = fds
        self.close_fds = close_fds
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.umask = umask
        self.pre_exec = pre_exec
        self.isolation = isolation
        # From start to end; without pre_exec, or a warning in between.
        self.runs_in_c = pre_exec is None and not (isolation and isolation.best_effort)
        self.c: Any = None  # for _core: their form in C, and what must live as long


PLAIN = Options()

# Of a command: argv, argc, env, envc, the program as the caller gave it, and its name or
# path if that is not argv[0]; argv and env as the C core takes them, NUL-separated.
Packed = tuple[bytes, int, bytes, int, Argument, bytes | None]


class Request(NamedTuple):
    """What is to be started: a packed command, and how."""

    argv: bytes
    argc: int
    env: bytes
    envc: int
    program: Argument
    other_file: bytes | None
    options: Options
    set: Any  # a prepared set to enter, as _core knows it

    @property
    def file(self) -> bytes:
        """The program's name or path."""
        given = self.other_file
        return self.argv.partition(b"\0")[0] if given is None else given


# os.fsencode() does the same after a check that costs as much again.
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def encode(value: Argument, what: str) -> bytes:
    if type(value) is str:
        encoded = value.encode(_ENCODING, _ERRORS)
    else:
        try:
            encoded = os.fsencode(value)
        except TypeError:
            raise TypeError(
                f"{what}: expected str, bytes or a path, not {type(value).__name__}"
            ) from None
    if b"\0" in encoded:
        raise ValueError(f"{what}: embedded NUL in {encoded!r}")
    return encoded


def _to_words(command: Command) -> Sequence[Argument]:
    if isinstance(command, str):
        return command.split()
    if isinstance(command, (bytes, bytearray, os.PathLike)):
        raise TypeError("command: expected str or a sequence of arguments; wrap one in a list")
    return list(command)


def _pack(env: Mapping[Any, Any]) -> tuple[bytes, int]:
    """The mapping as NAME=value strings, each followed by NUL but the last; and their number."""
    if not env:
        return b"", 0
    try:
        packed = "\0".join(map("=".join, env.items())).encode(_ENCODING, _ERRORS)
        names = "\0".join(env).encode("utf-8", "surrogateescape")
    except (TypeError, UnicodeEncodeError):
        pairs = [(encode(name, "env"), encode(value, "env")) for name, value in env.items()]
        packed = b"\0".join(map(b"=".join, pairs))
        names = b"\0".join([name for name, _ in pairs])
    if packed.count(0) != len(env) - 1:
        raise ValueError("env: embedded NUL")
    if b"=" in names or b"\0\0" in b"\0" + names + b"\0":
        raise ValueError("env: a name is empty or contains '='")
    return packed, len(env)


def _check_mapping(env: object) -> None:
    if not isinstance(env, Mapping):
        raise TypeError(f"env: expected a mapping, not {type(env).__name__}")


def pack_env(env: Env | None) -> tuple[bytes, int]:
    """The environment, packed; from the cache if it equals the last one.

    Raises:
        TypeError: env is no mapping, or holds something that is not str or bytes.
        ValueError: a NUL, an empty name, or a name with ``=``.
    """
    current: Any
    if env is None or env is os.environ:
        # The bytes that os.environ itself keeps; os.environ decodes at every access.
        try:
            current = os.environ._data  # type: ignore[attr-defined]
        except AttributeError:  # replaced by another mapping
            current = os.environ
        cached = _state.inherited_env
        if current == cached[0]:
            return cached[1]
        _check_mapping(current)
        taken = dict(current)
        packed = _pack(taken)
        _state.inherited_env = taken, packed
        return packed
    given: Any = env
    if type(env) is not dict:  # whose == may be looser than that of its names
        _check_mapping(env)
        given = dict(env)
    cached = _state.given_env
    if given == cached[0]:
        return cached[1]
    taken = dict(given)
    packed = _pack(taken)
    if taken:  # an empty one costs nothing to pack
        _state.given_env = taken, packed
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


def make_options(
    path_lookup: bool = True,
    cwd: Argument | None = None,
    fd_pipes: Mapping[int, int] | None = None,
    close_fds: bool = False,
    uid: SupportsIndex | None = None,
    gid: SupportsIndex | None = None,
    groups: Iterable[SupportsIndex] | None = None,
    umask: SupportsIndex | None = None,
    pre_exec: Callable[[], object] | None = None,
    isolation: Isolation | None = None,
) -> Options:
    """Check and encode. The arguments are those of ``spawn()``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has an impossible value.
    """
    if pre_exec is not None and not callable(pre_exec):
        raise TypeError(f"pre_exec: {type(pre_exec).__name__} is not callable")
    return Options(
        bool(path_lookup),
        None if cwd is None else encode(cwd, "cwd"),
        None if fd_pipes is None else parse_map(fd_pipes),
        bool(close_fds),
        None if uid is None else _to_id(uid, "uid"),
        None if gid is None else _to_id(gid, "gid"),
        None if groups is None else _to_groups(groups),
        None if umask is None else _to_id(umask, "umask", 0o777),
        pre_exec,
        isolation,
    )


def pack(command: Command, env: Env | None = None, opt_name: str | bytes | None = None) -> Packed:
    """The command, checked and encoded. The arguments are those of ``spawn()``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has an impossible value.
    """
    words: list[Any] = [*(command if type(command) is list else _to_words(command))]
    if not words:
        raise ValueError("command: empty")
    program, file = words[0], None
    if opt_name is not None:
        file = encode(program, "command")
        words[0] = opt_name
    try:
        argv = "\0".join(words).encode(_ENCODING, _ERRORS)
    except TypeError:
        argv = b"\0".join([encode(word, "command") for word in words])
    argc = argv.count(0) + 1
    if argc != len(words):
        raise ValueError("command: embedded NUL")
    if not ((argv and argv[0]) if file is None else file):
        raise ValueError("command: the program's name is empty")
    env_packed, envc = pack_env(env)
    return argv, argc, env_packed, envc, program, file


def make_request(
    command: Command, env: Env | None, opt_name: str | bytes | None, options: Options
) -> Request:
    """``pack()``, and how to start it, outside of any set."""
    return Request(*pack(command, env, opt_name), options, None)
