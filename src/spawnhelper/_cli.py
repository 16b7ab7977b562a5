"""The command line: its options and what becomes of errors."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from . import __version__
from ._errors import SpawnError
from ._fds import is_open
from ._spawn import spawn
from ._stages import Stage

_OURS, _NOT_EXECUTABLE, _NOT_FOUND = 125, 126, 127
_NAMESPACES = ("net", "ipc", "mount", "pid", "user")

_RUN = """\
Start a command in the foreground, as exactly as asked: isolated, as another
user, with other descriptors. If any step fails, nothing runs.

examples:
  spawnhelper run --user-root --net -- make check     offline, as an ordinary user
  spawnhelper run --user --pid -- sh -c 'daemon& job' the daemon ends with the job
  spawnhelper run --user-root --net --pid -- bash     a shell to look around in
  spawnhelper run --uid nobody --gid nogroup --groups '' --umask 077 -- id
  spawnhelper run --clear-env --env HOME --env LANG=C -- env
  spawnhelper run --logfile build.log -- make         on the terminal and in the log
  spawnhelper run --fd 3=4 --fd 0=- -- prog 4>out     its 3 is our 4; no stdin
"""
_RUN_END = """\
The exit status is the command's, 128+n if signal n ended it; 127: it was not
found; 126: it cannot be executed; 125: anything else failed, as the one line
on stderr says. Signals sent to this process are handed on, Ctrl-C and Ctrl-Z
act as without it, and the command keeps the terminal unless --new-session is
given. `spawnhelper doctor` says what of all this works here.
"""
_DOCTOR = """\
Try what spawnhelper can do on this system, as this user, and say of what does
not work why, and what to change. Nothing is changed, apart from a cgroup that
is made and removed again.
"""


class _Parser(argparse.ArgumentParser):
    """Its errors are one line, with a status of their own."""

    status = 2

    def error(self, message: str) -> NoReturn:
        self.exit(self.status, f"{self.prog}: {message} (see --help)\n")


class _RunParser(_Parser):
    status = _OURS


def _to_names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = set(names) - set(_NAMESPACES)
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r}: a list of {','.join(_NAMESPACES)}")
    return names


def _to_octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no octal number") from None


def _to_uid(text: str) -> int:
    import pwd

    try:
        return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {text!r}") from None


def _to_gid(text: str) -> int:
    import grp

    try:
        return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no group {text!r}") from None


def _to_gids(text: str) -> list[int]:
    return [_to_gid(name) for name in text.split(",") if name]


def _to_pair(text: str) -> tuple[int, int | None]:
    theirs, separator, ours = text.partition("=")
    if not (theirs.isdecimal() and separator and (ours == "-" or ours.isdecimal())):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 5=1 or 5=-")
    return int(theirs), None if ours == "-" else int(ours)


def _add_isolation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("isolation")
    group.add_argument(
        "--unshare",
        metavar="LIST",
        type=_to_names,
        action="extend",
        default=[],
        help="namespaces of its own, of net,ipc,mount,pid,user; or one by one:",
    )
    texts = {
        "net": "no network but a loopback that is up; the host is called localhost",
        "ipc": "System V IPC and POSIX message queues of its own",
        "mount": "mounts made inside stay inside",
        "pid": "a /proc of its own; what the command leaves behind is killed when it ends",
        "user": "a user namespace, in which an ordinary user may do all of these; same ids",
    }
    for name, text in texts.items():
        group.add_argument(
            f"--{name}", dest="unshare", action="append_const", const=name, help=text
        )
    group.add_argument("--user-root", action="store_true", help="the same, as root inside")
    group.add_argument("--cgroup", metavar="DIR", help="the cgroup to be born into")
    group.add_argument(
        "--isolation",
        choices=("required", "best-effort"),
        default="required",
        help="what if some of it is refused: no start (default), or a warning",
    )
    group.add_argument(
        "--new-session",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="a session without the terminal, out of reach of its signals",
    )


def _add_user(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("user")
    group.add_argument("--uid", type=_to_uid, metavar="USER", help="name or number")
    group.add_argument(
        "--gid", type=_to_gid, metavar="GROUP", help="without it, the present one is kept"
    )
    group.add_argument(
        "--groups",
        type=_to_gids,
        metavar="LIST",
        help="supplementary groups, '' for none; without it, the present ones are kept",
    )
    group.add_argument("--umask", type=_to_octal, metavar="OCTAL", help="022, say")


def _add_surroundings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("surroundings")
    group.add_argument("--cwd", metavar="DIR", help="directory to start in, entered as the user")
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable; after --clear-env, NAME alone keeps one",
    )
    group.add_argument("--clear-env", action="store_true", help="start with no variables")
    group.add_argument(
        "--fd",
        action="append",
        default=[],
        type=_to_pair,
        metavar="N=M",
        help="its descriptor N is our M; N=- closes it; 0, 1 and 2 are inherited",
    )
    group.add_argument(
        "--close-fds", action="store_true", help="no descriptors but 0, 1, 2 and those of --fd"
    )
    group.add_argument(
        "--logfile", metavar="FILE", help="append stdout and stderr to it, besides showing them"
    )
    group.add_argument("--opt-name", metavar="NAME", help="argv[0], if not the command's own name")
    group.add_argument(
        "--no-path-lookup", action="store_true", help="the command is a path, never searched"
    )


def _make_run_parser(prog: str) -> argparse.ArgumentParser:
    parser = _RunParser(
        prog=f"{prog} run",
        usage="%(prog)s [options] [--] command [argument ...]",
        description=_RUN,
        epilog=_RUN_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_isolation(parser)
    _add_user(parser)
    _add_surroundings(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _make_env(args: argparse.Namespace) -> dict[str, str] | None:
    if not args.env and not args.clear_env:
        return None
    env = {} if args.clear_env else dict(os.environ)
    for word in args.env:
        name, separator, value = word.partition("=")
        if separator:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def _make_fds(args: argparse.Namespace) -> dict[int, int] | None:
    if not args.fd:
        return None
    fds = {fd: fd for fd in (0, 1, 2) if is_open(fd)}
    for theirs, ours in args.fd:
        if ours is None:
            fds.pop(theirs, None)
            if is_open(theirs):
                os.set_inheritable(theirs, False)
        else:
            fds[theirs] = ours
    return fds


def _make_keywords(args: argparse.Namespace) -> dict[str, Any]:
    wanted = set(args.unshare)
    return {
        "env": _make_env(args),
        "opt_name": args.opt_name,
        "fd_pipes": _make_fds(args),
        "uid": args.uid,
        "gid": args.gid,
        "groups": args.groups,
        "umask": args.umask,
        "cwd": args.cwd,
        "logfile": args.logfile,
        "path_lookup": not args.no_path_lookup,
        "close_fds": args.close_fds,
        **{f"unshare_{name}": name in wanted for name in ("net", "ipc", "mount", "pid")},
        "cgroup": args.cgroup,
        "isolation": args.isolation,
        "start_new_session": args.new_session,
        "unshare_user": "root" if args.user_root else "user" in wanted,
    }


def _say(text: str) -> None:
    print(f"spawnhelper: {text}", file=sys.stderr)


def _explain(error: OSError) -> str:
    name = error.filename
    where = "" if name is None else f"{os.fsdecode(name)}: "
    return f"{where}{error.strerror}"


def _status_of(error: OSError) -> int:
    if not isinstance(error, SpawnError) or error.stage is not Stage.EXEC:
        return _OURS
    return _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE


_DASHES = "\0--"  # argparse would take the command's own, and how differs between versions


def _run(prog: str, words: Sequence[str]) -> int:
    parser = _make_run_parser(prog)
    args = parser.parse_args([_DASHES if word == "--" else word for word in words])
    command = ["--" if word == _DASHES else word for word in args.command]
    if args.command[:1] == [_DASHES]:
        del command[0]
    if not command:
        parser.error("no command is given")
    from ._foreground import run_in_foreground

    keywords = _make_keywords(args)
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    try:
        return run_in_foreground(lambda: spawn(command, returnproc=True, **keywords))
    except OSError as error:
        _say(_explain(error))
        return _status_of(error)
    except (ValueError, TypeError) as error:
        _say(str(error))
        return _OURS


def _doctor(prog: str, words: Sequence[str]) -> int:
    parser = _Parser(prog=f"{prog} doctor", description=_DOCTOR, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--need",
        metavar="LIST",
        action="append",
        default=[],
        help="exit status 1 unless all of these work, by the names shown: net,user+pid",
    )
    args = parser.parse_args(words)
    from ._doctor import report

    needed = [name for text in args.need for name in text.split(",") if name]
    try:
        return report(needed, args.json)
    except LookupError as error:
        parser.error(str(error.args[0]))


_COMMANDS = {"run": _run, "doctor": _doctor}


def main(words: Sequence[str] | None = None) -> int:
    """``spawnhelper`` and ``python -m spawnhelper``.

    Args:
        words: the command line without the program; None takes it from ``sys.argv``.

    Returns:
        The exit status.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
    words = sys.argv[1:] if words is None else words
    prog = os.path.basename(sys.argv[0])
    if prog == "__main__.py":
        prog = "python -m spawnhelper"
    parser = _Parser(
        prog=prog,
        usage="%(prog)s {run,doctor} ...",
        description="Start processes exactly as asked. "
        "`run` starts one; `doctor` says what works here. Each has a --help.",
    )
    parser.add_argument("--version", action="version", version=f"spawnhelper {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="run | doctor")
    chosen = parser.parse_args(words[:1]).command
    return _COMMANDS[chosen](prog, words[1:])
