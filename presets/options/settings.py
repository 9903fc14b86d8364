"""The settings of one process: all options of the table as one frozen, validated object.

`merge.resolve` builds it from the command line, the environment and files; it can also be built directly:
`Settings(model="x.gguf", ctx_size=512)`. This module reads no environment and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from pydantic import ConfigDict

from .context import ContextOptions, RopeOptions, ThreadOptions
from .media import MediaOptions
from .model import LoadOptions, ModelOptions
from .option import OptionGroup
from .program import LogOptions, ProgramOptions
from .router import BackendOptions, PresetOptions, RouterOptions
from .sampling import SamplingOptions
from .server import ChatOptions, CorralOptions, EndpointOptions, HttpOptions
from .speculative import DraftModelOptions, DraftOptions, NgramOptions

layer_texts: ContextVar[Mapping[str, str]] = ContextVar("layer_texts")
"""Texts of the layer from which settings are being built; unset for settings that are built directly."""


class Settings(
    NgramOptions,
    DraftModelOptions,
    DraftOptions,
    MediaOptions,
    BackendOptions,
    PresetOptions,
    CorralOptions,
    ChatOptions,
    SamplingOptions,
    EndpointOptions,
    HttpOptions,
    ThreadOptions,
    RopeOptions,
    ContextOptions,
    LoadOptions,
    ModelOptions,
    RouterOptions,
    LogOptions,
    ProgramOptions,
):
    """All options. The base classes are in the reverse order of the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=False)

    def __init__(self, **values: Any) -> None:
        super().__init__(**{**layer_texts.get({}), **values})

    @property
    def is_router(self) -> bool:
        """True if no model is given, so this process serves many models."""
        return not (self.model or self.model_url or self.hf_repo or self.docker_repo)


GROUPS: tuple[type[OptionGroup], ...] = tuple(
    base for base in reversed(Settings.__mro__) if issubclass(base, OptionGroup) and base not in (OptionGroup, Settings)
)
"""The option groups in the order of the help."""
