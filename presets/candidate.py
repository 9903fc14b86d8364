"""A model of the sources before its preset is built, and what its section must and must not say. Pure.

Called by `sources`. Each ConfigError is a fault of the one section.
"""

from __future__ import annotations

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.gguf_names import canonical_name, split_repo
from llama_corral.common.hub.hub_cache import is_repo_name
from msgspec import Struct

from . import backends, merge, variants
from .ini import DEFAULT, NOT_AN_ARGUMENT, PresetFile
from .merge import ConfigValue, Layer
from .notices import Warn
from .options.table import PRESET_ONLY
from .preset import Preset, Source

MODEL_SOURCES = frozenset({"model", "model_url", "hf_repo", "docker_repo"})
"""Options that say which model a section is."""
_SAYS_MODEL = MODEL_SOURCES | {"base", "cmd"}
SECTION_ONLY = frozenset({"base"}) | backends.FIELDS
BACKEND_ONLY = frozenset({"model", "mmproj", "alias", "tags"})
"""Model options that are used with an external program; the program's own options are in its command line."""


class Candidate(Struct, frozen=True):
    """A model before its Preset is built. `where` is the place that errors about the whole model name."""

    name: str
    source: Source
    base: Layer
    section: Layer
    where: str
    fault: str = ""
    """The section's."""
    written: str = ""
    """The section's name as it is written."""
    alias: str = ""
    """A name that its folder gives it, unless another model has it."""


def unavailable_preset(candidate: Candidate, fault: str) -> Preset:
    """Return the preset of a model that is listed, but cannot be loaded."""
    names = {field: candidate.section[field] for field in variants.NAMES & candidate.section.keys()}
    own = merge.check(names).main_model
    return Preset(
        candidate.name,
        candidate.source,
        names,
        aliases=tuple(sorted(set(own.alias) - {candidate.name})),
        tags=tuple(sorted(set(own.tags))),
        unavailable=fault,
    )


def check_text(layer: Layer) -> None:
    """Raise ConfigError for a value that is neither a path nor an argument of a command."""
    for given in layer.values():
        if found := NOT_AN_ARGUMENT.search(given.text):
            raise ConfigError(f"{given.where}: the value contains U+{ord(found[0]):04X}")


def refuse_commands(candidate: Candidate) -> None:
    for name in sorted(candidate.section.keys() & backends.FIELDS):
        raise ConfigError(f"{candidate.section[name].where}: a downloaded presets file may not run programs")


def is_repository(name: str, layer: Layer, file: PresetFile) -> bool:
    """Return True if a section with these options is the model of the repository after which it is named."""
    repository = {**file.global_layer, **layer}.get("hf_repo")
    given = {*(field for field, given in layer.items() if given.text), *file.global_layer} - {"hf_repo"}
    is_other = repository is not None and canonical_name(repository.text or name) != canonical_name(name)
    return not (_SAYS_MODEL & given or is_other) and is_repo_name(split_repo(name)[0])


def base_layer(candidate: Candidate, file: PresetFile) -> Layer:
    """Return a model's base layer; if its section names no model, its name may be a repository. Raise ConfigError."""
    if candidate.base or _SAYS_MODEL & {
        *(name for name, given in candidate.section.items() if given.text),
        *file.global_layer,
    }:
        return candidate.base
    if is_repo_name(split_repo(candidate.name)[0]):
        return {"hf_repo": ConfigValue(candidate.name, candidate.where)}
    if candidate.name == DEFAULT:
        raise ConfigError(
            f"{candidate.where}: keys before the first [header] define a model; for all models put them under [*]"
        )
    raise ConfigError(
        f"{candidate.where}: [{candidate.name}] does not say which model it is: add model, hf-repo or model-url "
        "(neither --models-dir nor the cache has a model of this name)"
    )


def check_backend(candidate: Candidate, warn: Warn) -> None:
    """Warn of options in a section with cmd that have no effect. Options from `[*]` are ignored silently.

    Raise ConfigError for a system prompt.
    """
    if (given := candidate.section.get("system_prompt")) is not None:
        raise ConfigError(f"{given.where}: not supported together with cmd: only our own worker can add it")
    for name in sorted(candidate.section.keys() - BACKEND_ONLY - PRESET_ONLY):
        warn(f"{candidate.section[name].where}: has no effect together with cmd")
