"""From layers to settings: the command line, the environment and the system's configuration, merged and validated.

Called once by each process; nothing reads the environment later. `merge` is the only place that knows how a higher
layer combines with a lower one, so use it instead of joining dictionaries.
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
    """The command line behind the program's name. Long options may have `_` for `-`, and their value behind `=`."""
    layer: dict[str, ConfigValue] = {}
    arguments = iter(argv)
    for argument in arguments:
        flag, inline = _flag(argument)
        if flag not in FLAGS:
            raise ConfigError(_unknown(flag))
        entry = FLAGS[flag].entry
        count = value_count(entry)
        if inline is not None and count != 1:
            raise ConfigError(f"{flag}: takes no value in this form")
        values = [inline] if inline is not None else list(itertools.islice(arguments, count))
        if len(values) < count:
            raise ConfigError(f"{flag}: a value is missing: {flag} {getattr(entry, 'hint', '')}")
        add(layer, FLAGS[flag], _single(entry, " ".join(values)) if count else "true", flag, repeated=True)
    return layer


def _flag(argument: str) -> tuple[str, str | None]:
    if not argument.startswith("--"):
        return argument, None
    name, equals, value = argument.partition("=")
    return name.replace("_", "-"), value if equals else None


def _single(entry: OptionEntry, text: str) -> str:
    """A text that only looks like a list of several stays one."""
    return join_many([text]) if isinstance(entry, Option) and entry.repeat is Repeat.MANY else text


def _unknown(flag: str) -> str:
    if not flag.startswith("-"):
        return f"unexpected argument '{flag}'{nearest('--' + flag, FLAGS)}"
    return f"unknown option '{flag}'{nearest(flag, FLAGS)}"


def read_environment(environ: Mapping[str, str]) -> dict[str, ConfigValue]:
    """LLAMA_ARG_* and a few others. LLAMA_ARG_NO_X means off whatever its value; otherwise an empty value is none."""
    layer: dict[str, ConfigValue] = {}
    for name, spelling in VARIABLES.items():
        if spelling.negated and name in environ:
            add(layer, spelling, "true", f"environment variable {name}")
        elif environ.get(name):
            add(layer, spelling, environ[name], f"environment variable {name}")
    return layer


def read_system_config(environ: Mapping[str, str]) -> Layer:
    """llama.cpp's own configuration of this machine and of this user.

    All its programs share these files, so what is not for us is left out with a warning.
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
    """One layer out of several, lowest precedence first."""
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
    """What `--mmap`, `--mlock` or `--direct-io`, or its negation, makes of a load mode."""
    if switch == "direct_io":
        return "dio" if on else ("auto" if before == "dio" else before)
    parts = {"mmap"} if before in ("auto", "dio") and switch == "mlock" else set(before.split("+"))
    parts = (parts & {"mmap", "mlock"}) | ({switch} if on else set())
    parts -= set() if on else {switch}
    return "+".join(sorted(parts, reverse=True, key=("mlock", "mmap").index)) or "none"


def resolve(*layers: Layer) -> Settings:
    """The settings of a process out of its layers, lowest precedence first."""
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
    """A line for each option that was set to something and changes nothing; to be logged once."""
    return [
        f"--{option.name} has no effect: {option.notice}"
        for field, option in OPTIONS.items()
        if option.notice and field in settings.model_fields_set and not _without_effect(settings, field)
    ]


def overridden(higher: Layer, lower: Layer) -> Iterable[str]:
    """A line for each value of the environment that the command line replaces."""
    for field in higher.keys() & lower.keys():
        yield f"{lower[field].where} is set, but {higher[field].where} replaces it"


def settings_from(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings of this process."""
    return resolve(read_system_config(environ), read_environment(environ), read_argv(argv))
