"""The steps of a start."""

from __future__ import annotations

import enum


class Stage(enum.IntEnum):
    """The steps between the call and the running command, in their order.

    The numbers are those of ``enum sh_stage`` in ``csrc/spawnhelper.h``.
    """

    CLONE = 0
    CGROUP = 1
    NAMESPACES = 2
    PROPAGATION = 3
    PROC = 4
    HOSTNAME = 5
    LOOPBACK = 6
    FDS = 7
    GROUPS = 8
    GID = 9
    UID = 10
    UMASK = 11
    CHDIR = 12
    PRE_EXEC = 13
    EXEC = 14
