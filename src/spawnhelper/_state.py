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

# What was made of the options of the last call without fd_pipes and groups, likewise,
# under the arguments themselves ...
last_options: tuple[tuple[Any, ...], Any] = ((object(),), None)
# ... and of the last other than the defaults, under their values and types.
equal_options: tuple[tuple[Any, ...], list[type], Any] = ((), [], None)

# sys.__stdin__, __stdout__ and __stderr__, once they were seen to be 0, 1 and 2.
usual_streams: tuple[Any, ...] = (object(),)
