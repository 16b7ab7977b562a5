"""A command in the foreground of a terminal: signals and job control between it and our shell.

The command is usually in our process group: what the terminal sends reaches
both, and we only have to outlive it. What is sent to us alone is handed on,
and we stop when the command stops, so that the shell sees a stopped job. A
command in another group or session gets what the terminal sends from us.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from ._process import Process

_SI_KERNEL = 0x80  # asm-generic/siginfo.h: nobody's kill(2), so the terminal's
_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
# Not handed on: what cannot be, what this process itself has done, what is the loop's own.
_KEPT = _STOPS | {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP),
    *(signal.SIGSYS, signal.SIGABRT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGXCPU),
}


class _Terminal:
    """The controlling terminal, given back if the command dies with it.

    In a pid namespace a shell cannot name our process group to hand the
    terminal back to it; whoever reads next would be stopped for ever.
    """

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._was_ours = self._fd >= 0 and os.tcgetpgrp(self._fd) == os.getpgrp()

    def take_back(self) -> None:
        """Become the foreground again if the group that is has no process left."""
        if not self._was_ours:
            return
        with contextlib.suppress(OSError):  # it hung up
            try:
                os.killpg(os.tcgetpgrp(self._fd), 0)
            except ProcessLookupError:
                os.tcsetpgrp(self._fd, os.getpgrp())  # SIGTTOU is blocked


def _has_ended(process: Process) -> bool:
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def _has_changed(process: Process, state: int) -> bool:
    """Whether it has stopped (WSTOPPED) or continued (WCONTINUED) since the last look."""
    try:
        return os.waitid(os.P_PID, process.pid, state | os.WNOHANG) is not None
    except ChildProcessError:  # it ended this moment; without WEXITED that is no child
        return False


def _continue_too(process: Process) -> None:
    """We were stopped with it, and now run: so shall it, if the SIGCONT was for us alone.

    A shell's is for the whole group. Then the command has continued, and a
    Ctrl-Z may have stopped it again since: it shall stay stopped. That is asked
    twice, as it may happen between the two questions.
    """
    again = os.WSTOPPED | os.WNOWAIT
    if not any(_has_changed(process, state) for state in (again, os.WCONTINUED, again)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(os.getpgid(process.pid), signal.SIGCONT)


def _hand_on(process: Process, number: int, from_terminal: bool) -> None:
    """Send it to the command; to its group, if a terminal would."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it became root, say
        group = os.getpgid(process.pid)  # not reaped yet, so the pid is its own
        if group == os.getpgrp() and (from_terminal or number == signal.SIGCONT):
            return
        if number in _STOPS and os.getsid(process.pid) != os.getsid(0):
            number = signal.SIGSTOP  # the others do nothing in an orphaned group (setpgid(2))
        if from_terminal:
            os.killpg(group, number)
        else:
            process.send_signal(number)


def _relay_until_end(process: Process, relayed: set[int]) -> bool:
    """Whether a Ctrl-C came."""
    interrupted = False
    waited = relayed | _STOPS | {signal.SIGCHLD, signal.SIGCONT}
    while not _has_ended(process):
        if _has_changed(process, os.WSTOPPED):
            os.kill(os.getpid(), signal.SIGSTOP)  # until the shell continues us
            signal.sigtimedwait({signal.SIGCONT}, 0)  # which it did with this one
            _continue_too(process)
        info = signal.sigwaitinfo(waited)
        if info.si_signo != signal.SIGCHLD:
            from_terminal = info.si_code == _SI_KERNEL
            interrupted |= info.si_signo == signal.SIGINT
            _hand_on(process, info.si_signo, from_terminal)
    while (left := signal.sigtimedwait(relayed, 0)) is not None:
        interrupted |= left.si_signo == signal.SIGINT
    return interrupted


def run_in_foreground(start: Callable[[], Process]) -> int:
    """Start a command and wait as a shell does; for the main thread of a program that ends then.

    Args:
        start: starts the command; called once, with the signal mask as it was.

    Returns:
        The exit status, 128 + n for signal n. A command that Ctrl-C killed ends
        this process by SIGINT, too, so that a loop in a shell ends.

    Raises:
        SpawnError: it could not be started.
    """
    numbers = signal.valid_signals() - _KEPT
    relayed: set[int] = {n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    early: list[int] = []
    for number in relayed:  # they must not end us once there is a command
        signal.signal(number, lambda came, _: early.append(came))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may ignore it
    terminal = _Terminal()
    process = start()
    signal.pthread_sigmask(signal.SIG_BLOCK, relayed | _STOPS | {signal.SIGCHLD, signal.SIGCONT})
    for number in early:
        _hand_on(process, number, from_terminal=False)
    interrupted = _relay_until_end(process, relayed) or signal.SIGINT in early
    for number in relayed:  # the copy of the log may wait for a reader
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, relayed)
    returncode = process.wait()
    terminal.take_back()
    if returncode == -signal.SIGINT and interrupted:
        os.kill(os.getpid(), signal.SIGINT)
    return returncode if returncode >= 0 else 128 - returncode
