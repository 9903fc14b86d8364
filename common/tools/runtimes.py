"""Where tools run: on this machine, in a running container, on another machine. Pure: which command does it there.

A runtime is named by the operator (`--tools-runtime`) or by a request's header, so what would be read as an option of
`docker`, `podman` or `ssh` is refused, and so is what is not known: nothing falls back to this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import RuntimeRefused

ENGINES = ("docker", "podman")
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SSH_TARGET = re.compile(r"[A-Za-z0-9._@][A-Za-z0-9._@-]*")
_SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "PasswordAuthentication=no"),
    *("-o", "KbdInteractiveAuthentication=no", "-o", "StrictHostKeyChecking=yes"),
)
"""Nobody is there to be asked: a key that is known on both sides, or nothing."""


@dataclass(frozen=True)
class Container:
    engine: str
    identifier: str

    def command(self, inner: Sequence[str], *, with_input: bool = False) -> list[str]:
        return [self.engine, "exec", *(["-i"] if with_input else []), self.identifier, *inner]


@dataclass(frozen=True)
class Remote:
    """Another machine, with all that the account there may do."""

    target: str

    def command(self, inner: Sequence[str], *, with_input: bool = False) -> list[str]:
        """The shell over there takes the words apart again."""
        return [*_SSH, *([] if with_input else ["-n"]), self.target, shlex.join(inner)]


Isolate = Container | Remote


@dataclass(frozen=True)
class Image:
    """To be started, and ended with us."""

    engine: str
    name: str


def parse_runtime(text: str) -> Isolate | None:
    """None: this machine. Raises RuntimeRefused."""
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
    """As `--tools-runtime` has it. Raises RuntimeRefused."""
    engine, _, name = text.partition(":")
    if engine not in ENGINES:
        return parse_runtime(text)
    if not name or name.startswith("-"):
        raise RuntimeRefused(f"invalid image name: '{name}'")
    return Image(engine, name)


def in_directory(cwd: str, inner: Sequence[str]) -> list[str]:
    """127 is what a shell says of a command that it could not run."""
    if not cwd:
        return list(inner)
    return ["sh", "-c", 'cd -- "$1" || exit 127; shift; exec "$@"', "sh", cwd, *inner]
