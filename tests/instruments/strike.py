"""Raises an exception at the n-th bytecode instruction that the library executes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import spawnhelper

LIBRARY = str(Path(spawnhelper.__file__).parent) + os.sep


class Struck(BaseException):
    """What strikes; no library code expects it."""


class Striker:
    """Counts instructions of the library's frames in this thread, and raises at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0
        self._owner = os.getpid()  # a forked child is not struck: its signals are blocked

    def _count(self) -> None:
        self.seen += 1
        if self.seen == self.at and os.getpid() == self._owner:
            raise Struck

    def _trace(self, frame, event, _argument):
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self._count()
        return self._trace

    def _run_traced(self, function: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            function()
        finally:
            sys.settrace(before)

    # From 3.12 on: sys.settrace() reports no opcodes there (3.12), or none of the
    # first traced call of each function (3.13).
    def _run_monitored(self, function: Callable[[], object]) -> None:
        monitoring = sys.monitoring
        tool = monitoring.DEBUGGER_ID

        def instruction(code, _offset):
            if code.co_filename.startswith(LIBRARY):
                self._count()

        monitoring.use_tool_id(tool, "strike")
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, instruction)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            function()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(tool)

    def run(self, function: Callable[[], object]) -> bool:
        """Call it; whether it was struck."""
        run = self._run_monitored if sys.version_info >= (3, 12) else self._run_traced
        try:
            run(function)
        except Struck:
            return True
        return False
