"""The settings of one process: all options of the table as one frozen, validated object of nested groups.

`merge.resolve` builds it from the command line, the environment and files. `Settings.of(model="x.gguf", ctx_size=512)`
builds it from values. This module reads no environment and no files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from .context import ContextOptions, RopeOptions, ThreadOptions
from .deprecated import LOAD_SWITCHES
from .media import MediaOptions
from .model import LoadOptions, ModelOptions
from .option import OptionGroup
from .program import LogOptions, ProgramOptions
from .router import BackendOptions, PresetOptions, RouterOptions
from .sampling import SamplingOptions
from .server import ChatOptions, CorralOptions, EndpointOptions, HttpOptions
from .speculative import DraftModelOptions, DraftOptions, NgramOptions
from .values import join_many, many, unescape

_ESCAPED_FIELDS = (("endpoints", "reverse_prompt"), ("sampling", "dry_sequence_breaker"))


class Settings(BaseSettings):
    """All options. The groups are in the order of the help; none of them has the name of an option."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=False)

    program: ProgramOptions
    log: LogOptions
    router: RouterOptions
    main_model: ModelOptions
    load: LoadOptions
    context: ContextOptions
    rope: RopeOptions
    cpu: ThreadOptions
    http: HttpOptions
    endpoints: EndpointOptions
    sampling: SamplingOptions
    chat: ChatOptions
    corral: CorralOptions
    presets: PresetOptions
    backend: BackendOptions
    media: MediaOptions
    drafts: DraftOptions
    draft_model: DraftModelOptions
    ngrams: NgramOptions

    def __init__(self, sources: Sequence[PydanticBaseSettingsSource] = ()) -> None:
        """Take each option's value from the first of the sources that has it. Raise pydantic's ValidationError."""
        super().__init__(sources=tuple(sources))

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Return settings with the values of options, given by the options' names."""
        return cls([InitSettingsSource(cls, grouped(values))])

    @classmethod
    def of_groups(cls, groups: Mapping[str, Any]) -> Settings:
        """Return settings with the given texts by group. Raise pydantic's ValidationError.

        The same as the constructor with one source, but several times as fast: a router validates thousands of models,
        and pydantic-settings prepares its own sources each time, which are not used.
        """
        settings = cls.__new__(cls)
        cls.__pydantic_validator__.validate_python(groups, self_instance=settings)
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources that were passed to the constructor, instead of pydantic-settings' own."""
        sources: tuple[PydanticBaseSettingsSource, ...] = init_settings.init_kwargs["sources"]  # type: ignore[attr-defined]
        return sources

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add the groups of which no option was set, and replace the escape sequences in texts."""
        groups = dict(values)
        if groups.get("endpoints", {}).get("escape") not in ("false", False):
            for name, field in _ESCAPED_FIELDS:
                if isinstance(text := groups.get(name, {}).get(field), str):
                    groups[name] = {**groups[name], field: join_many([unescape(item) for item in many(text)])}
        return {**_default_groups(), **groups} if cls.model_fields.keys() - groups.keys() else groups

    @property
    def is_router(self) -> bool:
        """True if no model is given, so this process serves many models."""
        main = self.main_model
        return not (main.model or main.model_url or main.hf_repo or main.docker_repo)

    @property
    def options_set(self) -> frozenset[str]:
        """The names of the options that were set, from any source."""
        return frozenset(field for name in type(self).model_fields for field in getattr(self, name).model_fields_set)

    def value(self, field: str) -> Any:
        """Return the value of the option with that name."""
        return getattr(getattr(self, GROUP_OF[field]), field)

    def with_options(self, values: Mapping[str, Any], *, unset: Iterable[str] = ()) -> Self:
        """Return a copy with the given values, which are not validated, and the defaults of the options in `unset`."""
        defaults = {field: FIELDS_OF_GROUPS[GROUP_OF[field]][field].default for field in unset}
        groups = {}
        for name, update in grouped({**defaults, **values}).items():
            groups[name] = getattr(self, name).model_copy(update=update)
            groups[name].model_fields_set.difference_update(defaults.keys() - values.keys())
        return self.model_copy(update=groups)


@functools.cache
def _default_groups() -> Mapping[str, OptionGroup]:
    """Return every group with its defaults: validated once, and shared, since groups do not change."""
    settings = Settings.of_groups({name: {} for name in Settings.model_fields})
    return {name: getattr(settings, name) for name in Settings.model_fields}


GROUPS_BY_NAME: Mapping[str, type[OptionGroup]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, OptionGroup)
}
GROUPS: tuple[type[OptionGroup], ...] = tuple(GROUPS_BY_NAME.values())
"""The option groups in the order of the help."""
FIELDS_OF_GROUPS = {name: group.model_fields for name, group in GROUPS_BY_NAME.items()}
GROUP_OF: Mapping[str, str] = {
    **{field: name for name, fields in FIELDS_OF_GROUPS.items() for field in fields},
    **dict.fromkeys(LOAD_SWITCHES, "load"),
}
"""The name of each option's group."""


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options' values by group. Names that are not options stay outside, so that validation refuses them."""
    groups: dict[str, Any] = {}
    for field, value in values.items():
        if field in GROUP_OF:
            groups.setdefault(GROUP_OF[field], {})[field] = value
        else:
            groups[field] = value
    return groups
