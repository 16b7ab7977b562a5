"""The few process-wide things on the Python side; the C side's are in csrc/state.h.

All of them are valid after a fork: the cache is a value, and handles of the
parent's children know that they are not this process's.
"""

from __future__ import annotations

from typing import Any

# (copy of the mapping, its packed form): a build farm passes the same
# environment thousands of times, and comparing is ten times cheaper than packing.
# Replaced as a whole, so that threads see one or the other.
env_cache: tuple[dict[Any, Any], tuple[bytes, int]] = ({}, (b"", 0))

# Children whose handle was dropped while they ran. Reaped, if they have
# ended, by every later start: no thread, no SIGCHLD handler.
dropped: list[Any] = []
