"""Sections with a command (`cmd`): an external program serves the model, and the router manages it. Pure.

`sources` reads them completely at startup, so mistakes are found before anything runs; the router's `external` starts
them. A command line is split as a shell would split it, but no shell runs it; macros are replaced after the split.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from llama_corral.common.base.errors import ConfigError
from msgspec import Struct
from msgspec.structs import replace

from .layer import ConfigValue, Layer
from .options.settings import Settings

FIELDS = frozenset(
    {
        *("cmd", "cmd_stop", "env", "health", "use_model_name", "proxy", "load_timeout", "memory", "device_memory"),
        "restart_after_errors",
    }
)
COMMAND_LINES = ("cmd", "cmd_stop", "env")
NO_HEALTH = "none"
PORT, PID = "${PORT}", "${PID}"
_MACRO = re.compile(r"\$\{([^}]*)\}")
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


class Backend(Struct, frozen=True):
    """A program that serves one model over HTTP. `${PORT}` and `${PID}` are replaced when the program is started."""

    command: tuple[str, ...]
    stop_command: tuple[str, ...] = ()
    """Command that stops the program; empty: SIGTERM."""
    environ: tuple[tuple[str, str], ...] = ()
    address: str = f"127.0.0.1:{PORT}"
    path: str = ""
    """Prefix of the program's paths."""
    health: str = "/health"
    """Path that returns 200 when the program is ready; "": an accepted connection is enough."""
    load_timeout: float = 600.0
    """Seconds."""
    max_errors: int = 5
    """Number of answers in a row with an error of the server after which it is restarted; 0: no limit."""
    model_name: str = ""
    """The program's name of the model; "": the name in the client's request."""
    host_bytes: int = 0
    device_bytes: tuple[int, ...] = (0,)
    """Memory on each device in order, or one number for all devices; if this and `host_bytes` are 0: unknown."""

    def same_process(self, other: Backend) -> bool:
        """Return True if a running program for `self` can be kept for `other`."""
        policy = {"model_name": "", "max_errors": 0, "host_bytes": 0, "device_bytes": (0,)}
        return replace(self, **policy) == replace(other, **policy)


def with_directory(field: str, text: str, macro: str, directory: str) -> str:
    """Replace `macro` by `directory`; quote it in command lines, since the name may contain spaces."""
    if field not in COMMAND_LINES or macro not in text:
        return text.replace(macro, directory)
    try:
        return shlex.join(word.replace(macro, directory) for word in shlex.split(text))
    except ValueError:
        return text  # the error is reported when the section is read


def read_backend(name: str, layer: Layer, own: Settings, environ: Mapping[str, str]) -> Backend | None:
    """Return the section's program; None if our own worker serves the model. Raise ConfigError."""
    given = {field: layer[field] for field in FIELDS & layer.keys()}
    if not own.backend.cmd:
        for field, value in given.items():
            if value.text:
                raise ConfigError(f"{value.where}: '{field}' is only for sections with cmd")
        return None
    known = {"MODEL": own.main_model.model, "MODEL_ID": name, "NAME": name}

    def fill(kept: tuple[str, ...]) -> Callable[[str, str], str]:
        return lambda text, where: _filled(text, where, known, environ, kept)

    with_port = fill((PORT,))
    address, path = _address(own.backend.proxy, layer)
    return Backend(
        command=_words(own.backend.cmd, layer["cmd"].where, with_port),
        stop_command=_words(own.backend.cmd_stop, layer["cmd_stop"].where, fill((PORT, PID)))
        if own.backend.cmd_stop
        else (),
        environ=_variables(own.backend.env.get_secret_value(), layer["env"].where, with_port)
        if own.backend.env
        else (),
        address=address,
        path=path,
        health=_health(own.backend.health, layer),
        load_timeout=own.backend.load_timeout,
        max_errors=own.backend.restart_after_errors,
        model_name=own.backend.use_model_name,
        host_bytes=own.backend.memory,
        device_bytes=own.backend.device_memory,
    )


def _words(text: str, where: str, fill: Callable[[str, str], str]) -> tuple[str, ...]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not a command line: {error}") from None
    if not words:
        raise ConfigError(f"{where}: the command line is empty")
    return tuple(fill(word, where) for word in words)


def _variables(text: str, where: str, fill: Callable[[str, str], str]) -> tuple[tuple[str, str], ...]:
    found = []
    for word in _words(text, where, lambda word, _: word):
        name, equals, value = word.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{where}: expected NAME=VALUE, separated by spaces, found '{name}'")
        found.append((name, fill(value, where)))
    return tuple(found)


def _filled(text: str, where: str, known: Mapping[str, str], environ: Mapping[str, str], kept: tuple[str, ...]) -> str:
    def value(macro: re.Match[str]) -> str:
        name = macro[1]
        if macro[0] in kept:
            return macro[0]
        if name in known:
            if not known[name]:
                raise ConfigError(f"{where}: ${{{name}}}: this section has no model file")
            return known[name]
        if name.startswith("env.") and name[4:] in environ:
            return environ[name[4:]]
        what = "this environment variable is not set" if name.startswith("env.") else "unknown macro"
        raise ConfigError(f"{where}: ${{{name}}}: {what}")

    return _MACRO.sub(value, text)


def _address(url: str, layer: Layer) -> tuple[str, str]:
    where = layer.get("proxy", ConfigValue("", "proxy")).where
    parts = urlsplit(url.replace(PORT, "65535"))
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or not port or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"{where}: invalid value '{url}': expected http://HOST:PORT or http://HOST:PORT/PATH")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if PORT in url.partition("//")[2].partition("/")[0]:
        return f"{host}:{PORT}", parts.path.rstrip("/")
    return f"{host}:{port}", parts.path.rstrip("/")


def _health(text: str, layer: Layer) -> str:
    if text == NO_HEALTH:
        return ""
    if not text.startswith("/"):
        raise ConfigError(f"{layer['health'].where}: invalid value '{text}': expected a path, or {NO_HEALTH}")
    return text
