"""A layer: what one place of configuration gave, as a text for each field, and where, so that errors name both.

`layers.py` and `ini.py` fill layers through `add`, which expands shorthands and negations: nothing later sees a
spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .errors import ConfigError
from .option import Option, Repeat
from .retired import Removed
from .table import OPTIONS, Spelling
from .values import boolean, join_many, many


class Given(NamedTuple):
    """A canonical text ("true" and "false" for switches) and its origin.

    Origins read `--flag`, `environment variable X` or `file:line: key`.
    """

    text: str
    where: str


Layer = Mapping[str, Given]


def add(layer: dict[str, Given], spelling: Spelling, text: str, where: str, *, repeated: bool = False) -> None:
    """Put a spelling's value into the layer. `repeated`: an earlier value of this layer may be appended to."""
    entry = spelling.entry
    if isinstance(entry, Removed):
        raise ConfigError(f"{where}: this option is gone: {entry.instead}")
    if entry.hint is None:
        text = _switch_text(text, spelling.negated, where)
    if isinstance(entry, Option):
        before = layer.get(entry.field) if repeated else None
        put(layer, entry.field, Given(_appended(entry, before.text, text) if before else text, where))
        return
    try:
        expansion = entry.expand(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: invalid value '{text}': {entry.help}") from None
    for field, value in expansion:
        put(layer, field, Given(value, where))


def put(layer: dict[str, Given], field: str, given: Given) -> None:
    """Behind all others, for the last one counts where options exclude or modify each other."""
    layer.pop(field, None)
    for other in OPTIONS[field].replaces if field in OPTIONS else ():
        layer.pop(other, None)
    layer[field] = given


def _switch_text(text: str, negated: bool, where: str) -> str:
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
