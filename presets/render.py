"""Writes options as a worker's command line or as a section of a presets file: the inverse of reading them."""

from __future__ import annotations

from .ini import ini_value
from .layer import ConfigValue, Layer
from .options.help import bash_completion, help_text
from .options.option import Option, OptionReader, Repeat
from .options.reference import reference_markdown
from .options.table import OPTIONS, is_option
from .options.values import many

__all__ = ["bash_completion", "help_text", "masked", "reference_markdown", "to_argv", "to_ini"]


def to_argv(layer: Layer) -> list[str]:
    """Return the command line for a merged layer, in llama-server's order and without preset-only keys."""
    options = sorted((OPTIONS[field] for field in layer), key=lambda option: option.flags[0])
    return [argument for option in options for argument in _arguments(option, layer[option.field].text)]


def _arguments(option: Option, text: str) -> list[str]:
    flag = f"--{option.name}"
    if option.reader is OptionReader.PRESET:
        return []
    if option.is_switch:
        return [flag] if text == "true" else list(option.negated[-1:])
    if option.repeat is Repeat.MANY:
        return [argument for value in many(text) for argument in _with_value(flag, value)]
    if len((option.hint or "").split()) > 1:
        return [flag, *text.split(" ")]
    return _with_value(flag, text)


def _with_value(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if is_option(value) else [flag, value]


def to_ini(layer: Layer) -> str:
    """Return the lines of a section for a layer."""
    return "".join(f"{OPTIONS[field].name} = {ini_value(given.text)}\n" for field, given in layer.items())


def masked(layer: Layer) -> Layer:
    """Return the layer for display, with keys and tokens replaced by "…"."""
    return {field: ConfigValue("…", given.where) if OPTIONS[field].secret else given for field, given in layer.items()}
