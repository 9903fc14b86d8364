"""Builds the settings: reads, merges and validates command line, environment, files with secrets and system's files.

Each process does it once; the environment and the files are not read later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llama_corral.common.base.errors import ConfigError

from .layer import ConfigValue, Layer, merge
from .layer_source import LayerSource, check, merged, settings_of
from .options.settings import Settings
from .options.table import FIELDS, OPTIONS
from .process_sources import process_sources, read_argv, read_environment, read_system_config, variable_sources

__all__ = [
    "ConfigValue",
    "Layer",
    "check",
    "merge",
    "overridden",
    "read_argv",
    "read_environment",
    "read_system_config",
    "resolve",
    "resolve_sources",
    "settings_from",
    "unused_option_notices",
    "worker_settings",
]


def resolve(*layers: Layer) -> Settings:
    """Return the settings of a process from its layers, lowest precedence first. Raise ConfigError."""
    return resolve_sources([LayerSource(layer) for layer in reversed(layers)])


def resolve_sources(sources: Sequence[LayerSource]) -> Settings:
    """Return the settings of a process from its sources, highest precedence first. Raise ConfigError."""
    settings = settings_of(sources)
    for field, given in merged(sources).items():
        option = OPTIONS[field]
        if option.unsupported and not _without_effect(settings, field):
            raise ConfigError(f"{given.where}: not supported: {option.unsupported}")
    return settings


def _without_effect(settings: Settings, field: str) -> bool:
    value, built = settings.value(field), OPTIONS[field].built
    if isinstance(value, tuple) and built:
        return all(part in built for part in value)
    return value == FIELDS[field].default or value in built


def unused_option_notices(settings: Settings) -> list[str]:
    """Return a line for each option that was set but has no effect; to be logged once."""
    options_set = settings.options_set
    return [
        f"--{option.name} has no effect: {option.notice}"
        for field, option in OPTIONS.items()
        if option.notice and field in options_set and not _without_effect(settings, field)
    ]


def overridden(higher: Layer, lower: Layer) -> Iterable[str]:
    """Yield a line for each lower value, for example of a variable, that the command line overrides."""
    for field in higher.keys() & lower.keys():
        yield f"{lower[field].where} is set, but {higher[field].where} overrides it"


def settings_from(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings of this process. Raise ConfigError."""
    return resolve_sources(process_sources(argv, environ))


def worker_settings(layer: Layer, environ: Mapping[str, str]) -> Settings:
    """Return the settings that a router's worker with this layer as its command line has. Raise ConfigError."""
    return resolve_sources([LayerSource(layer), *variable_sources(environ)])
