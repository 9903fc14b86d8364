"""A layer: the values of one source of configuration, as text with its origin, so that errors can name both.

`process_sources` and `ini` fill layers with `add`, which expands shorthands and negations; later code sees only field
names. Only this module knows how a higher layer combines with a lower one: use `merge` or `below` instead of joining
dictionaries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from llama_corral.common.base.errors import ConfigError

from .options.deprecated import LOAD_SWITCHES, Removed, load_mode_after
from .options.option import Option, Repeat
from .options.table import OPTIONS, Spelling
from .options.values import boolean, join_many, many


class ConfigValue(NamedTuple):
    """A canonical text ("true" and "false" for switches) and its origin.

    Origins read `--flag`, `environment variable X`, `file:line: key` or `secrets file X`.
    """

    text: str
    where: str
    is_secret: bool = False
    """True if the text must not be shown."""

    def __repr__(self) -> str:
        return f"ConfigValue({'…' if self.is_secret else self.text!r}, {self.where!r})"


Layer = Mapping[str, ConfigValue]


def add(layer: dict[str, ConfigValue], spelling: Spelling, text: str, where: str, *, repeated: bool = False) -> None:
    """Put a spelling's value into the layer. `repeated`: options that allow it append to the layer's earlier value."""
    entry = spelling.entry
    if isinstance(entry, Removed):
        raise ConfigError(f"{where}: {entry.why}")
    if entry.hint is None:
        text = switch_text(text, spelling.negated, where)
    if isinstance(entry, Option):
        before = layer.get(entry.field) if repeated else None
        value = _appended(entry, before.text, text) if before else text
        put(layer, entry.field, ConfigValue(value, where, entry.secret))
        return
    try:
        expansion = entry.expand(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: invalid value '{text}': {entry.help}") from None
    for field, value in expansion:
        put(layer, field, ConfigValue(value, where))


def put(layer: dict[str, ConfigValue], field: str, given: ConfigValue) -> None:
    """Put a value at the end of the layer: if options exclude or modify each other, the last one wins."""
    for other in (field, *_replaced_by(field)):
        layer.pop(other, None)
    layer[field] = given


def _replaced_by(field: str) -> Collection[str]:
    """Return the options that have no effect below this one."""
    if field == "load_mode":
        return LOAD_SWITCHES
    return OPTIONS[field].replaces if field in OPTIONS else ()


def switch_text(text: str, negated: bool, where: str) -> str:
    value = boolean(text)
    if value is None:
        raise ConfigError(
            f"{where}: invalid value '{text}': expected on or off (also true/false, enabled/disabled, 1/0)"
        )
    return "true" if value is not negated else "false"


def _appended(option: Option, before: str, text: str) -> str:
    if option.repeat is Repeat.COMMA:
        return f"{before},{text}"
    return join_many([*many(before), *many(text)]) if option.repeat is Repeat.MANY else text


def below(layer: Layer, higher: Collection[str]) -> Layer:
    """Return what a layer contributes if the higher layers contain the options `higher`."""
    hidden = {*higher, *(other for field in higher for other in _replaced_by(field))}
    return {field: given for field, given in layer.items() if field not in hidden}


def merge(*layers: Layer) -> dict[str, ConfigValue]:
    """Merge layers into one, lowest precedence first."""
    merged: Layer = {}
    for layer in reversed(layers):
        merged = {**below(layer, merged.keys()), **merged}
    return _with_load_mode(merged)


def _with_load_mode(layer: Layer) -> dict[str, ConfigValue]:
    """Apply the earlier switches to the load mode, in their order."""
    result: dict[str, ConfigValue] = {}
    for field, given in layer.items():
        if field in LOAD_SWITCHES:
            before = result["load_mode"].text if "load_mode" in result else "auto"
            given = ConfigValue(load_mode_after(before, field, given.text == "true"), given.where)
            field = "load_mode"
        put(result, field, given)
    return result
