"""A layer: the values of one source of configuration, as text with its origin, so that errors can name both.

`merge` and `ini` fill layers with `add`, which expands shorthands and negations; later code sees only field names.
`check` converts a layer to settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llama_corral.common.base.errors import ConfigError
from pydantic import ValidationError

from .options.deprecated import Removed
from .options.describe import allowed
from .options.option import Option, Repeat
from .options.settings import Settings, layer_texts
from .options.table import OPTIONS, Spelling
from .options.values import boolean, join_many, many, unescape

_ESCAPED_FIELDS = ("reverse_prompt", "dry_sequence_breaker")


class ConfigValue(NamedTuple):
    """A canonical text ("true" and "false" for switches) and its origin.

    Origins read `--flag`, `environment variable X` or `file:line: key`.
    """

    text: str
    where: str


Layer = Mapping[str, ConfigValue]


def add(layer: dict[str, ConfigValue], spelling: Spelling, text: str, where: str, *, repeated: bool = False) -> None:
    """Put a spelling's value into the layer. `repeated`: options that allow it append to the layer's earlier value."""
    entry = spelling.entry
    if isinstance(entry, Removed):
        raise ConfigError(f"{where}: this option was removed: {entry.instead}")
    if entry.hint is None:
        text = switch_text(text, spelling.negated, where)
    if isinstance(entry, Option):
        before = layer.get(entry.field) if repeated else None
        put(layer, entry.field, ConfigValue(_appended(entry, before.text, text) if before else text, where))
        return
    try:
        expansion = entry.expand(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: invalid value '{text}': {entry.help}") from None
    for field, value in expansion:
        put(layer, field, ConfigValue(value, where))


def put(layer: dict[str, ConfigValue], field: str, given: ConfigValue) -> None:
    """Put a value at the end of the layer: if options exclude or modify each other, the last one wins."""
    layer.pop(field, None)
    for other in OPTIONS[field].replaces if field in OPTIONS else ():
        layer.pop(other, None)
    layer[field] = given


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


def check(layer: Layer) -> Settings:
    """Validate all values and return the settings. Raise ConfigError.

    Options that this version does not support are accepted here; using them raises an error elsewhere.
    """
    texts = {field: given.text for field, given in layer.items() if field in OPTIONS}
    if texts.get("escape") != "false":
        for field in texts.keys() & set(_ESCAPED_FIELDS):
            texts[field] = join_many([unescape(text) for text in many(texts[field])])
    token = layer_texts.set(texts)
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(_invalid(str(error.errors()[0]["loc"][0]), layer)) from None
    finally:
        layer_texts.reset(token)


def _invalid(field: str, layer: Layer) -> str:
    given = layer[field]
    value = "" if OPTIONS[field].secret else f" '{given.text}'"
    return f"{given.where}: invalid value{value}: expected {allowed(field)}"
