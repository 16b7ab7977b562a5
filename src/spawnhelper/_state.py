"""The few process-wide things on the Python side; the C side's are in csrc/state.h.

All of them are valid after a fork: they are values.
"""

from __future__ import annotations

from typing import Any

Cached = tuple[dict[Any, Any], tuple[bytes, int]]

# (copy of the mapping, its packed form) of this process's environment and of
# the last one given: a build farm passes the same thousands of times, and
# comparing is ten times cheaper than packing. Each is replaced as a whole, so
# that threads see one or the other.
inherited_env: Cached = ({}, (b"", 0))
given_env: Cached = ({}, (b"", 0))

# (arguments, their types, what was made of them) of the last
# call with other options than the defaults, for the same reason and likewise.
given_options: tuple[tuple[Any, ...], list[type], Any] = ((), [], None)
