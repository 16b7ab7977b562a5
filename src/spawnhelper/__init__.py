"""Start processes through a small async-signal-safe C core.

``spawn()`` starts a process exactly as asked, from any thread of any program,
at a cost that does not depend on the size of the caller.
"""

import sys as _sys

if not _sys.platform.startswith("linux"):
    raise ImportError(
        f"spawnhelper needs Linux (clone3, pidfd, namespaces); this is {_sys.platform}"
    )

from ._errors import CommandNotFound, IsolationWarning, LogWarning, Note, SpawnError
from ._fds import get_open_fds, sanitize_fds
from ._group import Completed, as_completed, wait_any, wait_any_async
from ._lookup import find_binary
from ._namespaces import Namespaces
from ._probe import Finding, ProbeResult, Setting, probe
from ._process import Process
from ._spawn import spawn
from ._stages import Stage

__version__ = "0.1.0"

__all__ = [
    "CommandNotFound",
    "Completed",
    "Finding",
    "IsolationWarning",
    "LogWarning",
    "Namespaces",
    "Note",
    "ProbeResult",
    "Process",
    "Setting",
    "SpawnError",
    "Stage",
    "__version__",
    "as_completed",
    "find_binary",
    "get_open_fds",
    "probe",
    "sanitize_fds",
    "spawn",
    "wait_any",
    "wait_any_async",
]
