"""Ends this process when its parent ends, however that happens: a worker with its router, a fork with its zygote."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Make the kernel send SIGKILL to this process when the parent's thread that started it ends.

    Linux only; on other systems the process must exit at the end of stdin. `parent`: the expected parent's process id;
    if it is no longer the parent, this function ends the process.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)
