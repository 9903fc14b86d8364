"""Keeps signals that ask for something, such as SIGUSR1, from ending a process that cannot do it yet, or ever.

The mains of command, zygote, worker and shim call it as the first thing. The router then sets its handlers.
"""

from __future__ import annotations

import os
import signal

_USER_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]  # not on Windows


def ignore_user_signals() -> None:
    """Ignore SIGUSR1 and SIGUSR2 in this process, and from their first moment on in those that it starts."""
    for number in _USER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def ignore_user_signals_here() -> None:
    """Ignore SIGUSR1 and SIGUSR2 in this process. Other programs that it starts have the default again."""
    for number in _USER_SIGNALS:
        signal.signal(number, _do_nothing)


def ignore_early_reload() -> None:
    """Ignore SIGHUP, unless standard input is a terminal: the sources are read later, or watched already."""
    if hasattr(signal, "SIGHUP") and not os.isatty(0) and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _do_nothing)


def _do_nothing(*_: object) -> None:
    pass
