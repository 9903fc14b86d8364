"""Builds the settings: reads, merges and validates command line, environment and system configuration.

Each process calls it once; the environment is not read later. Only `merge` knows how a higher layer combines with a
lower one, so use it instead of joining dictionaries.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llama_corral.common.base.errors import ConfigError

from .ini import read_global
from .layer import ConfigValue, Layer, add, check, put
from .options.deprecated import LOAD_SWITCHES
from .options.option import Option, Repeat
from .options.settings import Settings
from .options.table import FLAGS, OPTIONS, VARIABLES, OptionEntry, nearest, value_count
from .options.values import join_many

__all__ = [
    "ConfigValue",
    "Layer",
    "check",
    "merge",
    "read_argv",
    "read_environment",
    "read_system_config",
    "resolve",
    "settings_from",
    "unused_option_notices",
]

log = logging.getLogger("corral.presets")


def read_argv(argv: Sequence[str]) -> dict[str, ConfigValue]:
    """Read the arguments after the program's name. Long options may use `_` for `-` and `=` before their value.

    Raise ConfigError.
    """
    layer: dict[str, ConfigValue] = {}
    arguments = iter(argv)
    for argument in arguments:
        flag, inline = _flag(argument)
        if flag not in FLAGS:
            raise ConfigError(_unknown(flag))
        entry = FLAGS[flag].entry
        count = value_count(entry)
        if inline is not None and count != 1:
            raise ConfigError(f"{flag}: a value after = is not allowed for this option")
        values = [inline] if inline is not None else list(itertools.islice(arguments, count))
        if len(values) < count:
            raise ConfigError(f"{flag}: the value is missing: {flag} {getattr(entry, 'hint', '')}")
        add(layer, FLAGS[flag], _single(entry, " ".join(values)) if count else "true", flag, repeated=True)
    return layer


def _flag(argument: str) -> tuple[str, str | None]:
    if not argument.startswith("--"):
        return argument, None
    name, equals, value = argument.partition("=")
    return name.replace("_", "-"), value if equals else None


def _single(entry: OptionEntry, text: str) -> str:
    """Encode the value so that a text that looks like a JSON list is still a single value."""
    return join_many([text]) if isinstance(entry, Option) and entry.repeat is Repeat.MANY else text


def _unknown(flag: str) -> str:
    if not flag.startswith("-"):
        return f"unexpected argument '{flag}'{nearest('--' + flag, FLAGS)}"
    return f"unknown option '{flag}'{nearest(flag, FLAGS)}"


def read_environment(environ: Mapping[str, str]) -> dict[str, ConfigValue]:
    """Read LLAMA_ARG_* and a few others. LLAMA_ARG_NO_X means off for any value; other empty variables are ignored."""
    layer: dict[str, ConfigValue] = {}
    for name, spelling in VARIABLES.items():
        if spelling.negated and name in environ:
            add(layer, spelling, "true", f"environment variable {name}")
        elif environ.get(name):
            add(layer, spelling, environ[name], f"environment variable {name}")
    return layer


def read_system_config(environ: Mapping[str, str]) -> Layer:
    """Read llama.cpp's configuration files of this machine and this user.

    All programs of llama.cpp share these files, so unsupported options are ignored with a warning.
    """
    home = environ.get("HOME")
    user = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    directories = [Path("/etc"), *([Path(user)] if user else [])]
    files = [path for path in (directory / "llama.cpp" / "config.ini" for directory in directories) if path.is_file()]
    return merge(*(_supported_values(read_global(path)) for path in files))


def _supported_values(layer: Layer) -> Layer:
    refused = {field for field in layer.keys() & OPTIONS.keys() if OPTIONS[field].is_refused}
    for field in refused:
        log.warning("%s: ignored: %s", layer[field].where, OPTIONS[field].unsupported)
    return {field: given for field, given in layer.items() if field not in refused}


def merge(*layers: Layer) -> dict[str, ConfigValue]:
    """Merge layers into one, lowest precedence first."""
    merged: dict[str, ConfigValue] = {}
    for layer in layers:
        for field, given in layer.items():
            if field in LOAD_SWITCHES:
                before = merged["load_mode"].text if "load_mode" in merged else "auto"
                given = ConfigValue(_load_mode(before, field, given.text == "true"), given.where)
                field = "load_mode"
            put(merged, field, given)
    return merged


def _load_mode(before: str, switch: str, on: bool) -> str:
    """Return the load mode after `--mmap`, `--mlock` or `--direct-io`, or its negation, is applied to `before`."""
    if switch == "direct_io":
        return "dio" if on else ("auto" if before == "dio" else before)
    parts = {"mmap"} if before in ("auto", "dio") and switch == "mlock" else set(before.split("+"))
    parts = (parts & {"mmap", "mlock"}) | ({switch} if on else set())
    parts -= set() if on else {switch}
    return "+".join(sorted(parts, reverse=True, key=("mlock", "mmap").index)) or "none"


def resolve(*layers: Layer) -> Settings:
    """Return the settings of a process from its layers, lowest precedence first. Raise ConfigError."""
    merged = merge(*layers)
    settings = check(merged)
    for field, given in merged.items():
        option = OPTIONS[field]
        if option.unsupported and not _without_effect(settings, field):
            raise ConfigError(f"{given.where}: not supported: {option.unsupported}")
    return settings


def _without_effect(settings: Settings, field: str) -> bool:
    value, built = getattr(settings, field), OPTIONS[field].built
    if isinstance(value, tuple) and built:
        return all(part in built for part in value)
    return value == Settings.model_fields[field].default or value in built


def unused_option_notices(settings: Settings) -> list[str]:
    """Return a line for each option that was set but has no effect; to be logged once."""
    return [
        f"--{option.name} has no effect: {option.notice}"
        for field, option in OPTIONS.items()
        if option.notice and field in settings.model_fields_set and not _without_effect(settings, field)
    ]


def overridden(higher: Layer, lower: Layer) -> Iterable[str]:
    """Yield a line for each environment variable that the command line overrides."""
    for field in higher.keys() & lower.keys():
        yield f"{lower[field].where} is set, but {higher[field].where} overrides it"


def settings_from(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings of this process. Raise ConfigError."""
    return resolve(read_system_config(environ), read_environment(environ), read_argv(argv))
