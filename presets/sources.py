"""The models of a router: presets file, models directory and cache are merged into one `Preset` per model.

Called by the router at startup and at every reload. Reads files, but uses no network and starts nothing. Precedence,
lowest first: `[*]` < cache or models directory < the model's own section < the router's command line. The environment
is not used here: workers inherit it, with lower precedence than all of these.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.gguf_header import GgufError, read_header
from llama_corral.common.hub.gguf_names import canonical_name, split_repo
from llama_corral.common.hub.hub_cache import is_repo_name
from llama_corral.common.hub.resolve import find_cached, list_cached
from msgspec import Struct, field
from msgspec.structs import replace

from . import backends, merge, models_dir, variants
from .backends import Backend
from .ini import DEFAULT, PresetFile, Section, read_presets
from .merge import ConfigValue, Layer
from .options.settings import Settings
from .options.table import NOT_OVERLAID, OPTIONS, PRESET_ONLY, ROUTER_OWN
from .policy import DEFAULT_POLICY, ModelGroup, ModelPolicy, policy_of
from .render import to_ini

HERE = "${here}"
"""In a value of a presets file: the file's directory. Plain relative paths refer to the router's working directory."""
MODEL_SOURCES = frozenset({"model", "model_url", "hf_repo", "docker_repo"})
"""Options that say which model a section is."""
NOT_SHOWN = frozenset({"host", "port", "alias", "tags"})
"""Omitted from `ini_text`: the router sets or shows them elsewhere."""
MODALITY_KEYS = (("clip.has_vision_encoder", "image"), ("clip.has_audio_encoder", "audio"))
"""Boolean keys in a projector's header → the input modality that they enable."""

SECTION_ONLY = frozenset({"base"}) | backends.FIELDS
BACKEND_ONLY = frozenset({"model", "mmproj", "alias", "tags"})
"""Model options that are used with an external program; the program's own options are in its command line."""

Source = Literal["preset", "models_dir", "cache"]
logger = logging.getLogger("corral.presets")


class Preset(Struct, frozen=True):
    name: str
    source: Source
    layer: Layer = field(default_factory=dict)
    """The options of the worker, without the router's own options."""
    router_layer: Layer = field(default_factory=dict)
    """The preset-only keys as given."""
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    load_on_startup: bool = False
    stop_timeout: float = 10.0
    """Seconds."""
    pin: bool = False
    """True if the model is never evicted and never unloaded automatically."""
    ttl: float = 0.0
    """Seconds without use after which the model is unloaded; 0: never."""
    policy: ModelPolicy = DEFAULT_POLICY
    hidden: bool = False
    """True if the model is usable, but not listed."""
    backend: Backend | None = None
    """The external program that serves the model; None: our own worker."""
    base: str = ""
    """The model whose worker serves this one; "": a separate worker."""
    defaults: str = ""
    """Default options that each request carries to the worker, in the format of `variants`."""
    input_modalities: tuple[str, ...] = ("text",)
    output_modalities: tuple[str, ...] = ("text",)

    @property
    def ini_text(self) -> str:
        """The preset as a section of a presets file, with header and without secrets."""
        shown = {**self.layer, **self.router_layer}
        for name in [name for name in shown if name in NOT_SHOWN or OPTIONS[name].secret]:
            del shown[name]
        return f"[{self.name}]\n{to_ini(shown)}\n"


class _Candidate(Struct, frozen=True):
    """A model before its Preset is built. `where` is the place that errors about the whole model name."""

    name: str
    source: Source
    base: Layer
    section: Layer
    where: str


def demo_presets_path() -> Path:
    """Return the presets file of the models that are included in this program."""
    return Path(__file__).parent / "demo" / "demo.ini"


def load_presets(
    settings: Settings, argv_layer: Layer, environ: Mapping[str, str], *, may_run_commands: bool = True
) -> dict[str, Preset]:
    """Return all models' presets, sorted by name. Raise ConfigError for any error in a file or between models.

    `may_run_commands`: True if this machine's user wrote the presets file.
    """
    file = _read_file(settings.router.models_preset)
    if not may_run_commands:
        _refuse_commands(file)
    overlay = {name: given for name, given in argv_layer.items() if name not in NOT_OVERLAID}
    presets = {}
    dedup: set[str] = set()
    left_out: set[str] = set()
    sharing: dict[str, _Candidate] = {}
    for candidate in _candidates(settings, file, environ):
        if "base" in candidate.section:
            sharing[candidate.name] = candidate
            continue
        merged = merge.merge(file.global_layer, candidate.base, candidate.section, overlay)
        kept = {name: given for name, given in merged.items() if name not in ROUTER_OWN}
        left_out |= {merged[name].where for name in merged.keys() - kept.keys()}
        preset, own = _preset(candidate, kept, environ, settings.router.models_ttl, file.groups)
        presets[candidate.name] = preset
        if own.presets.dedup_cache_models and preset.source == "preset":
            dedup.add(candidate.name)
    for where in sorted(left_out):
        logger.warning("%s: ignored: an option of the router, not of a model", where)
    presets.update(_variants(sharing, presets, overlay))
    for name in file.groups.keys() - {preset.policy.group.name for preset in presets.values()}:
        logger.warning("%s: no model is in the group '%s'", settings.router.models_preset, name)
    _check_names(presets)
    hidden = _duplicates(presets, dedup, environ)
    return {name: replace(presets[name], hidden=name in hidden) for name in sorted(presets)}


def _read_file(path: str) -> PresetFile:
    if not path:
        return PresetFile({}, (), {})
    file = read_presets(path)
    for name in file.global_layer.keys() & SECTION_ONLY:
        raise ConfigError(f"{file.global_layer[name].where}: not allowed in [*]: put it into a model's own section")
    here = str(Path(path).resolve().parent)
    sections = tuple(replace(section, layer=_expand(section.layer, here)) for section in file.sections)
    return replace(file, global_layer=_expand(file.global_layer, here), sections=sections)


def _expand(layer: Layer, here: str) -> Layer:
    return {
        name: given._replace(text=backends.with_directory(name, given.text, HERE, here))
        for name, given in layer.items()
    }


def _refuse_commands(file: PresetFile) -> None:
    for section in file.sections:
        for name in sorted(section.layer.keys() & backends.FIELDS):
            raise ConfigError(f"{section.layer[name].where}: a downloaded presets file may not run programs")


def _candidates(settings: Settings, file: PresetFile, environ: Mapping[str, str]) -> Iterator[_Candidate]:
    """Yield the models of cache, models directory and presets file, each name once."""
    found: dict[str, _Candidate] = {}
    for name in list_cached(environ):
        found[name] = _Candidate(name, "cache", {"hf_repo": ConfigValue(name, "the cache")}, {}, "the cache")
    if settings.router.models_dir:
        where = f"--models-dir {settings.router.models_dir}"
        for model in models_dir.scan(Path(settings.router.models_dir)):
            found[model.name] = _Candidate(model.name, "models_dir", _local_layer(model, where), {}, where)
    for section in file.sections:
        base: Layer = found[section.name].base if section.name in found else {}
        if MODEL_SOURCES & set(section.layer):
            base = {}  # it names its own model, so use nothing from a cached or local model with the same name
        where = f"{settings.router.models_preset}:{max(section.line, 1)}"
        found[section.name] = _Candidate(
            section.name, "preset", _named_after(section, base, file, where), section.layer, where
        )
    yield from found.values()


def _local_layer(model: models_dir.LocalModel, where: str) -> Layer:
    """Return the options of a model of the models directory.

    Drafts are left out: they are heads for the model, not separate models. Unsupported options are left out too.
    """
    paths = {"model": model.model, "mmproj": model.mmproj}
    return {
        name: ConfigValue(str(path), where) for name, path in paths.items() if path and not OPTIONS[name].unsupported
    }


def _named_after(section: Section, base: Layer, file: PresetFile, where: str) -> Layer:
    """Return a section's base layer; if the section names no model, its name may be a repository. Raise ConfigError."""
    says_so = MODEL_SOURCES | {"base", "cmd"}
    if says_so & {*(name for name, given in section.layer.items() if given.text), *base, *file.global_layer}:
        return base
    if is_repo_name(split_repo(section.name)[0]):
        return {**base, "hf_repo": ConfigValue(section.name, where)}
    if section.name == DEFAULT:
        raise ConfigError(f"{where}: keys before the first [header] define a model; for all models put them under [*]")
    raise ConfigError(f"{where}: [{section.name}] does not say which model it is: add model, hf-repo or model-url")


def _preset(
    candidate: _Candidate,
    merged: Layer,
    environ: Mapping[str, str],
    models_ttl: float,
    groups: Mapping[str, ModelGroup],
) -> tuple[Preset, Settings]:
    """Return a preset and its settings. All values are checked here, so mistakes are found before the load."""
    own = merge.check(merged)
    layer = {name: given for name, given in merged.items() if name not in PRESET_ONLY}
    backend = backends.read_backend(candidate.name, merged, own, environ)
    if backend is not None:
        _check_backend(candidate)
        layer = {name: given for name, given in layer.items() if name in BACKEND_ONLY}
    try:
        merge.resolve(layer)
    except ConfigError as error:
        logger.warning("model %s cannot be loaded: %s", candidate.name, error)
    preset = Preset(
        candidate.name,
        candidate.source,
        layer,
        {name: given for name, given in merged.items() if name in PRESET_ONLY},
        aliases=tuple(sorted(set(own.main_model.alias) - {candidate.name})),
        tags=tuple(sorted(set(own.main_model.tags))),
        load_on_startup=own.presets.load_on_startup,
        stop_timeout=own.presets.stop_timeout,
        pin=own.presets.pin,
        ttl=own.presets.ttl if own.presets.ttl >= 0 else 0.0 if own.presets.keep_warm else models_ttl,
        policy=policy_of(own, groups),
        backend=backend,
        input_modalities=("text", *_modalities(own, environ)),
        defaults="" if backend else variants.header_of(candidate.name, layer, own.presets.system_prompt, shares=False),
    )
    return preset, own


def _check_backend(candidate: _Candidate) -> None:
    """Warn of options in a section with cmd that have no effect. Options from `[*]` are ignored silently.

    Raise ConfigError for a system prompt.
    """
    if (given := candidate.section.get("system_prompt")) is not None:
        raise ConfigError(f"{given.where}: not supported together with cmd: only our own worker can add it")
    for name in sorted(candidate.section.keys() - BACKEND_ONLY - PRESET_ONLY):
        logger.warning("%s: has no effect together with cmd", candidate.section[name].where)


def _variants(
    candidates: Mapping[str, _Candidate], presets: Mapping[str, Preset], overlay: Layer
) -> Iterator[tuple[str, Preset]]:
    """Yield the presets of the models that share another model's worker. Raise ConfigError."""
    bases = {name: _canonical(candidate.section["base"]) for name, candidate in candidates.items()}
    imposed = {field: given for field, given in overlay.items() if field in variants.REQUEST_OPTIONS}
    for name, candidate in candidates.items():
        if candidate.base:
            place = next(iter(candidate.base.values())).where
            raise ConfigError(f"{bases[name].where}: '{name}' is already a separate model, from {place}")
        variants.check_section(candidate.section)
        *names, root = variants.root_of(name, bases)
        if root not in presets:
            raise ConfigError(f"{bases[names[-1]].where}: there is no model '{root}'")
        if presets[root].backend is not None:
            raise ConfigError(f"{bases[name].where}: '{root}' has a cmd: only our own worker can serve several presets")
        yield name, _variant(name, presets[root], [candidates[one].section for one in reversed(names)], imposed)


def _canonical(given: ConfigValue) -> ConfigValue:
    return given._replace(text=canonical_name(given.text))


def _variant(name: str, root: Preset, sections: list[Layer], imposed: Layer) -> Preset:
    """Build a variant's preset. `sections`: from the section nearest to the root to the variant's own."""
    inherited = {field: given for field, given in root.layer.items() if field not in variants.NAMES}
    own_names = {field: given for field, given in sections[-1].items() if field in variants.NAMES}
    shared = [{f: given for f, given in section.items() if f not in variants.NAMES} for section in sections]
    merged = merge.merge(inherited, root.router_layer, *shared, own_names, imposed)
    own = merge.check(merged)
    layer = {field: given for field, given in merged.items() if field not in PRESET_ONLY}
    return replace(
        root,
        name=name,
        source="preset",
        layer=layer,
        router_layer={field: given for field, given in merged.items() if field in PRESET_ONLY},
        aliases=tuple(sorted(set(own.main_model.alias) - {name})),
        tags=tuple(sorted(set(own.main_model.tags))),
        load_on_startup=False,
        base=root.name,
        defaults=variants.header_of(name, layer, own.presets.system_prompt, shares=True),
    )


def _modalities(own: Settings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the model's input modalities other than text, if its projector's file is on this machine."""
    if not own.media.mmproj_auto:
        return ()
    cached = (
        find_cached(environ, own.main_model.hf_repo, own.main_model.hf_file)
        if own.main_model.hf_repo and not own.media.mmproj
        else {}
    )
    path = Path(own.media.mmproj) if own.media.mmproj else cached.get("mmproj")
    return projector_modalities(path) if path else ()


def projector_modalities(path: Path) -> tuple[str, ...]:
    try:
        metadata = read_header(path).metadata
    except GgufError as error:
        logger.warning("cannot read the projector: %s", error)
        return ()
    return tuple(name for key, name in MODALITY_KEYS if metadata.get(key) is True)


def _check_names(presets: Mapping[str, Preset]) -> None:
    owners: dict[str, Preset] = {}
    for preset in presets.values():
        for alias in preset.aliases:
            where = f"{preset.layer['alias'].where}: alias '{alias}' of model '{preset.name}'"
            if alias in presets:
                raise ConfigError(f"{where} is the name of another model")
            if alias in owners:
                raise ConfigError(f"{where} is an alias of model '{owners[alias].name}' too")
            owners[alias] = preset


def _duplicates(presets: Mapping[str, Preset], dedup: set[str], environ: Mapping[str, str]) -> set[str]:
    """Return the names of cached models whose file is used by a preset with dedup-cache-models."""
    used: set[Path] = set()
    for name in dedup:
        text = {field: given.text for field, given in presets[name].layer.items()}
        for repo, file in (("hf_repo", "hf_file"), ("hf_repo_draft", "model_draft")):
            if text.get(repo):
                used |= _cached_model(environ, text[repo], text.get(file, ""))
        if text.get("model"):
            used.add(Path(text["model"]).absolute())
    cached = [preset for preset in presets.values() if preset.source == "cache"] if used else []
    hidden = {preset.name for preset in cached if used & _cached_model(environ, preset.name)}
    for name in sorted(hidden):
        logger.info("cached model %s is not listed: a preset uses the same file", name)
    return hidden


def _cached_model(environ: Mapping[str, str], hf_repo: str, hf_file: str = "") -> set[Path]:
    model = find_cached(environ, hf_repo, hf_file).get("model")
    return {model.absolute()} if model else set()
