"""Start a zygote process (worker/zygote.py), for the command as the first thing that it does, else for `zygote`.

The router's own imports take as long as most of the zygote's; with an early start both run at the same time. At that
time the options are not read yet, so a router is recognised by its arguments and variables alone. This module imports
almost nothing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llama_corral.common.base.library_environment import zygote_environ

ZYGOTE_COMMAND = (sys.executable, "-P", "-m", "llama_corral.worker.zygote")
OTHER_TASKS = frozenset(
    (
        *("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo"),
        *("-h", "--help", "--usage", "--version", "--completion-bash", "-cl", "--cache-list", "--list-devices"),
    )
)
"""Flags that name one model or print a text: then there is no router."""
ONE_MODEL = ("LLAMA_ARG_MODEL", "LLAMA_ARG_MODEL_URL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_DOCKER_REPO")
"""Environment variables that name one model."""
ONE_MODEL_SUFFIXES = ("-default", "-spec")
"""Ends of the flags that name one known model, such as `--gpt-oss-20b-default`."""


class StartedZygote(NamedTuple):
    """A zygote process and the router's end of its socket."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


_early: list[StartedZygote] = []
"""The zygote that `start_early` has started, until it is taken."""


def start_zygote(command: Sequence[str], environ: Mapping[str, str]) -> StartedZygote:
    """Start a zygote. The calling thread must live as long as it: the zygote dies with that thread. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        options = ("--socket", str(theirs.fileno()), "--router", str(os.getpid()))
        try:
            process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=zygote_environ(environ),
            )
        except OSError:
            ours.close()
            raise
    return StartedZygote(process, ours)


def start_early(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Start a zygote if this platform has one and the arguments look like a router's."""
    if sys.platform.startswith("linux") and is_probably_router(argv, environ):
        try:
            _early.append(start_zygote(ZYGOTE_COMMAND, environ))
        except OSError:
            return  # the launcher tries again and reports the error


def is_probably_router(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return False if a flag or a variable names one model or another task. Files of options are not read."""
    flags = [word.partition("=")[0] for word in argv if word.startswith("-")]
    if any(flag in OTHER_TASKS or flag.endswith(ONE_MODEL_SUFFIXES) for flag in flags):
        return False
    return not any(environ.get(name) for name in ONE_MODEL)


def take_early() -> StartedZygote | None:
    """Return the zygote that was started early, once; None if there is none."""
    return _early.pop() if _early else None


def end_early() -> None:
    """Kill the zygote that was started early, unless a launcher uses it."""
    if (started := take_early()) is not None:
        started.connection.close()
        started.process.kill()
        started.process.wait()
