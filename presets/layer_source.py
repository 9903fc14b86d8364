"""A layer as a source of pydantic-settings, and the settings of several such sources.

`process_sources` has the sources of a process; `ini` and the readers of presets check single layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_corral.common.base.errors import ConfigError
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from .layer import Layer, below, merge
from .options.describe import allowed
from .options.settings import Settings, grouped
from .options.table import OPTIONS


class LayerSource(PydanticBaseSettingsSource):
    """Gives the texts of a layer by group, without those that a source of higher precedence replaces."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(Settings)
        self.layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, True

    def __call__(self) -> dict[str, Any]:
        higher = {field for group in self.current_state.values() for field in group}
        return _values(below(self.layer, higher))


def _values(layer: Layer) -> dict[str, Any]:
    """Return the texts of a layer by group."""
    return grouped({field: SecretStr(text) if secret else text for field, (text, _, secret) in layer.items()})


def settings_of(sources: Sequence[LayerSource]) -> Settings:
    """Return the settings of the sources, highest precedence first. Raise ConfigError, which names a value's origin.

    Options that this version does not support are accepted here; using them raises an error elsewhere.
    """
    try:
        if len(sources) == 1:
            return Settings.of_groups(_values(sources[0].layer))
        return Settings(sources)
    except ValidationError as error:
        group_and_field = error.errors(include_input=False, include_url=False, include_context=False)[0]["loc"]
        raise ConfigError(_invalid(str(group_and_field[1]), merged(sources))) from None


def merged(sources: Sequence[LayerSource]) -> Layer:
    """Return the sources' values, each with its origin."""
    return merge(*(source.layer for source in reversed(sources)))


def check(layer: Layer) -> Settings:
    """Validate all values of a layer and return its settings. Raise ConfigError."""
    return settings_of([LayerSource(layer)])


def _invalid(field: str, layer: Layer) -> str:
    given = layer[field]
    if not given.text:
        return f"{given.where}: the value is missing: expected {allowed(field)}"
    value = "" if OPTIONS[field].secret else f" '{given.text}'"
    return f"{given.where}: invalid value{value}: expected {allowed(field)}"
