"""Finding programs the way the documented module does."""

from __future__ import annotations

import os
from typing import AnyStr


def find_binary(binary: AnyStr | os.PathLike[AnyStr]) -> AnyStr | None:
    """Look a program up in the PATH of this process.

    The first PATH entry under which ``binary`` names a regular file that the
    *real* user may execute wins. An empty entry, and a PATH that is not set,
    mean the current directory. An absolute name is checked as it is.

    This is ``portage.process.find_binary``; ``spawn()`` itself looks names up
    in the command's own environment.

    Args:
        binary: a name; bytes give bytes back.

    Returns:
        The name joined with its PATH entry (possibly relative), or None.

    Raises:
        TypeError: binary is not str, bytes or a path object.
        ValueError: binary contains a NUL.
    """
    name = os.fspath(binary)
    path = os.environ.get("PATH", "")
    entries = path.split(":") if isinstance(name, str) else os.fsencode(path).split(b":")
    if not name:
        return None
    for entry in entries:
        candidate: AnyStr = os.path.join(entry, name)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None
