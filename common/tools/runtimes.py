"""Tool runtimes: this machine, a running container or a remote machine. Pure: builds the command lines for them.

The operator (`--tools-runtime`) or a request's header names the runtime. Names that `docker`, `podman` or `ssh` would
read as options are refused, and so are unknown runtimes: a call never falls back to this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from msgspec import Struct

from .errors import RuntimeRefused

ENGINES = ("docker", "podman")
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SSH_TARGET = re.compile(r"[A-Za-z0-9._@][A-Za-z0-9._@-]*")
_SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "PasswordAuthentication=no"),
    *("-o", "KbdInteractiveAuthentication=no", "-o", "StrictHostKeyChecking=yes"),
)
"""No user can answer prompts, so ssh works only with keys and known hosts."""


class Container(Struct, frozen=True):
    engine: str
    identifier: str

    def command(self, inner: Sequence[str], *, with_input: bool = False) -> list[str]:
        return [self.engine, "exec", *(["-i"] if with_input else []), self.identifier, *inner]


class Remote(Struct, frozen=True):
    """A remote machine, with all rights of the account there."""

    target: str

    def command(self, inner: Sequence[str], *, with_input: bool = False) -> list[str]:
        """Return the command line. The arguments are quoted, because the remote shell splits them again."""
        return [*_SSH, *([] if with_input else ["-n"]), self.target, shlex.join(inner)]


Isolate = Container | Remote


class Image(Struct, frozen=True):
    """An image for a container that this server starts and ends."""

    engine: str
    name: str


def parse_runtime(text: str) -> Isolate | None:
    """Parse a request's runtime; None: this machine. Raise RuntimeRefused."""
    if not text:
        return None
    scheme, _, name = text.partition(":")
    if scheme == "ssh":
        if not _SSH_TARGET.fullmatch(name):
            raise RuntimeRefused(f"invalid ssh target: {name}")
        return Remote(name)
    if scheme in ENGINES:
        raise RuntimeRefused(f"a request can only name a running container ({scheme}-container:ID), not an image")
    if scheme.removesuffix("-container") in ENGINES and scheme.endswith("-container"):
        if not _CONTAINER_ID.fullmatch(name):
            raise RuntimeRefused(f"invalid container id: {name}")
        return Container(scheme.removesuffix("-container"), name)
    raise RuntimeRefused(f"unknown tool runtime: {text}")


def parse_option(text: str) -> Isolate | Image | None:
    """Parse `--tools-runtime`, which may also name an image; None: this machine. Raise RuntimeRefused."""
    engine, _, name = text.partition(":")
    if engine not in ENGINES:
        return parse_runtime(text)
    if not name or name.startswith("-"):
        raise RuntimeRefused(f"invalid image name: '{name}'")
    return Image(engine, name)


def in_directory(cwd: str, inner: Sequence[str]) -> list[str]:
    """Return a command that runs `inner` in `cwd`. Its exit code is 127 if the folder does not exist, as in a shell."""
    if not cwd:
        return list(inner)
    return ["sh", "-c", 'cd -- "$1" || exit 127; shift; exec "$@"', "sh", cwd, *inner]
