"""The models of a router: presets file, models directory and cache are merged into one `Preset` per model.

Called by the router at startup and at every reload. Reads files, but uses no network and starts nothing. Precedence,
lowest first: `[*]` < cache or models directory < the model's own section < the router's command line. The environment
is not used here: workers inherit it, with lower precedence than all of these.

A fault of one section makes only its model unavailable: every such fault is a ConfigError inside `_Builder.build`, and
`load_presets` turns it into a preset that says why. With --presets-strict it is an error instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.file_cache import FileCache, version_of
from llama_corral.common.hub.gguf_header import GgufError, read_header
from llama_corral.common.hub.resolve import find_cached, list_cached
from msgspec.structs import replace

from . import backends, merge, model_files, models_dir, variants
from .candidate import (
    BACKEND_ONLY,
    MODEL_SOURCES,
    SECTION_ONLY,
    Candidate,
    base_layer,
    check_backend,
    check_text,
    is_repository,
    refuse_commands,
    unavailable_preset,
)
from .ini import PresetFile, read_presets
from .merge import ConfigValue, Layer
from .names import ReportFault, listed_names, named_model, settle
from .notices import Notices, Warn, log_warning
from .options.settings import Settings
from .options.table import NOT_OVERLAID, OPTIONS, PRESET_ONLY, ROUTER_OWN
from .policy import ModelGroup, policy_of
from .preset import Preset
from .variant_presets import build_variant, by_depth

_HERE = "${here}"
"""In a value of a presets file: the file's directory. Plain relative paths refer to the router's working directory."""
MODALITY_KEYS = (("clip.has_vision_encoder", "image"), ("clip.has_audio_encoder", "audio"))
"""Boolean keys in a projector's header → the input modality that they enable."""

NOTHING_KNOWN: Mapping[str, Preset] = MappingProxyType({})

logger = logging.getLogger("corral.presets")


def demo_presets_path() -> Path:
    """Return the presets file of the models that are included in this program."""
    return Path(__file__).parent / "demo" / "demo.ini"


class PresetReader:
    """Reads the sources at the start and at each reload. Names stay with the models that had them."""

    def __init__(
        self, settings: Settings, argv_layer: Layer, environ: Mapping[str, str], *, may_run_commands: bool = True
    ) -> None:
        self._load = partial(load_presets, settings, argv_layer, environ, may_run_commands=may_run_commands)
        self._known: Mapping[str, Preset] = {}
        self._notices = Notices()
        self._is_start = True

    def __call__(self) -> dict[str, Preset]:
        """Raise ConfigError if a source cannot be read. A warning that the last reading had is not logged again."""
        is_complete = False
        try:
            found = self._load(known=self._known, warn=self._notices.warn, is_start=self._is_start)
            is_complete = True
        finally:
            self._notices.end_reading(is_complete=is_complete)
        self._known, self._is_start = found, False
        return found

    def files(self) -> Mapping[str, bool]:
        """Return the paths of the model files that sections name, and whether they existed at the last reading."""
        return model_files.presence(self._known.values())


def load_presets(
    settings: Settings,
    argv_layer: Layer,
    environ: Mapping[str, str],
    *,
    may_run_commands: bool = True,
    known: Mapping[str, Preset] = NOTHING_KNOWN,
    warn: Warn = log_warning,
    is_start: bool = False,
) -> dict[str, Preset]:
    """Return all models' presets, sorted by name; one whose section has a fault is unavailable.

    `may_run_commands`: True if this machine's user wrote the presets file. `known`: the result of the last reading.
    `is_start`: the presets file may be a pipe, whose end is waited for. Raise ConfigError if a source cannot be read,
    for a fault in `[*]`, and with --presets-strict for any fault.
    """
    report = partial(_report, warn, is_strict=settings.router.presets_strict)
    file = _read_file(settings.router.models_preset, warn, may_wait=is_start)
    candidates = _candidates(settings, file, environ, known, report, warn)
    overlay = {name: given for name, given in argv_layer.items() if name not in NOT_OVERLAID}
    builder = _Builder(file, candidates, overlay, environ, settings.router.models_ttl, may_run_commands, warn)
    presets = builder.presets
    for candidate in builder.in_order():
        try:
            presets[candidate.name] = builder.build(candidate)
        except ConfigError as error:
            report(str(error), f"model {candidate.name} cannot be loaded")
            presets[candidate.name] = unavailable_preset(candidate, str(error))
    for where in sorted(builder.ignored):
        warn(f"{where}: ignored: an option of the router, not of a model")
    for preset in presets.values():
        if preset.missing and not preset.base:
            warn(f"model {preset.name} cannot be loaded: {preset.missing_file}")
    _check_groups(file, settings.router.models_preset, presets, report, warn)
    presets = settle(presets, known, report)
    _add_folder_names(presets, candidates.values())
    hidden = _duplicates(presets, builder.dedup & presets.keys(), environ)
    return {name: replace(presets[name], hidden=name in hidden) for name in sorted(presets)}


def _report(warn: Warn, fault: str, effect: str, *, is_strict: bool) -> None:
    """Log a fault of one section, or raise it as ConfigError."""
    if is_strict:
        raise ConfigError(fault)
    warn(f"{effect}: {fault}")


def _check_groups(file: PresetFile, path: str, presets: Mapping[str, Preset], report: ReportFault, warn: Warn) -> None:
    """Report the groups that no model is in. A fault of a group that has models is one of these models."""
    used = {preset.policy.group.name for preset in presets.values()}
    unavailable = {preset.unavailable for preset in presets.values()}
    for name in file.groups.keys() - used - file.faulty_groups.keys():
        warn(f"{path}: no model is in the group '{name}'")
    for name, fault in file.faulty_groups.items():
        if fault not in unavailable:
            report(fault, f"the group '{name}' is left out")


class _Builder:
    """Builds one preset after the other. All its ConfigErrors are faults of single sections."""

    def __init__(
        self,
        file: PresetFile,
        candidates: Mapping[str, Candidate],
        overlay: Layer,
        environ: Mapping[str, str],
        models_ttl: float,
        may_run_commands: bool,
        warn: Warn,
    ) -> None:
        self.presets: dict[str, Preset] = {}
        """Those built so far."""
        self.dedup: set[str] = set()
        """The models whose preset has dedup-cache-models."""
        self.ignored: set[str] = set()
        """Where options of the router are set for models."""
        self._file, self._candidates, self._overlay, self._environ = file, candidates, overlay, environ
        self._models_ttl, self._may_run_commands, self._warn = models_ttl, may_run_commands, warn
        listed = {one.alias: name for name, one in candidates.items() if one.alias and one.alias not in candidates}
        listed |= {one.written: name for name, one in candidates.items() if one.written}
        repositories = [name for name, one in candidates.items() if "hf_repo" in one.base]
        self._variants = {name: one.section for name, one in candidates.items() if "base" in one.section}
        self._bases = {
            name: section["base"]._replace(text=named_model(section["base"].text, listed, candidates, repositories))
            for name, section in self._variants.items()
        }

    def in_order(self) -> list[Candidate]:
        """Return the candidates, each after its base."""
        separate = [candidate for name, candidate in self._candidates.items() if name not in self._variants]
        return separate + [self._candidates[name] for name in by_depth(self._variants, self._bases)]

    def build(self, candidate: Candidate) -> Preset:
        """Return the preset of a candidate. Raise ConfigError."""
        if candidate.fault:
            raise ConfigError(candidate.fault)
        check_text(candidate.section)
        if candidate.name in self._variants:
            return build_variant(candidate.name, self._variants, self._bases, self.presets, self._overlay)
        if not self._may_run_commands:
            refuse_commands(candidate)
        base = base_layer(candidate, self._file)
        merged = merge.merge(self._file.global_layer, base, candidate.section, self._overlay)
        kept = {name: given for name, given in merged.items() if name not in ROUTER_OWN}
        self.ignored |= {merged[name].where for name in merged.keys() - kept.keys()}
        preset, own = _preset(candidate, kept, self._environ, self._models_ttl, self._file.groups, self._warn)
        if fault := self._file.faulty_groups.get(own.presets.group) if own.presets.group else None:
            raise ConfigError(fault)
        if own.presets.dedup_cache_models and preset.source == "preset":
            self.dedup.add(candidate.name)
        return preset


def _read_file(path: str, warn: Warn, *, may_wait: bool) -> PresetFile:
    if not path:
        return PresetFile({}, (), {})
    file = read_presets(path, warn, may_wait=may_wait)
    check_text(file.global_layer)
    for name in file.global_layer.keys() & SECTION_ONLY:
        raise ConfigError(f"{file.global_layer[name].where}: not allowed in [*]: put it into a model's own section")
    merge.resolve({name: given for name, given in file.global_layer.items() if name not in ROUTER_OWN | PRESET_ONLY})
    here = str(Path(path).resolve().parent)
    sections = tuple(replace(section, layer=_expand(section.layer, here)) for section in file.sections)
    return replace(file, global_layer=_expand(file.global_layer, here), sections=sections)


def _expand(layer: Layer, here: str) -> Layer:
    return {
        name: given._replace(text=backends.with_directory(name, given.text, _HERE, here))
        for name, given in layer.items()
    }


def _candidates(
    settings: Settings,
    file: PresetFile,
    environ: Mapping[str, str],
    known: Mapping[str, Preset],
    report: ReportFault,
    warn: Warn,
) -> dict[str, Candidate]:
    """Return the models of cache, models directory and presets file by name."""
    found: dict[str, Candidate] = {}
    for name in list_cached(environ):
        found[name] = Candidate(name, "cache", {"hf_repo": ConfigValue(name, "the cache")}, {}, "the cache")
    if settings.router.models_dir:
        where = f"--models-dir {settings.router.models_dir}"
        for model in models_dir.scan(Path(settings.router.models_dir), warn):
            if not (model.is_cached and model.name in found):
                layer = _local_layer(model, where)
                found[model.name] = Candidate(model.name, "models_dir", layer, {}, where, alias=model.alias)
    by_alias = {candidate.alias: candidate for candidate in found.values() if candidate.alias}
    repositories = {section.name for section in file.sections if is_repository(section.name, section.layer, file)}
    cached = [name for name, candidate in found.items() if candidate.source == "cache"]
    listed = listed_names((section.name for section in file.sections), repositories.__contains__, cached)
    for section in file.sections:
        if not section.name:
            report(section.fault, "a section without a name is left out")
            continue
        name = listed[section.name]
        same = found.get(name)
        if same is not None and "base" in section.layer:
            fault = f"{section.layer['base'].where}: '{name}' is already a separate model, from {same.where}"
            if name in known and known[name].source != "preset":
                report(fault, f"the section [{name}] is left out")
                continue
            report(fault, f"model {name} from {same.where} is left out")
        source = same or by_alias.get(name)
        # a section that says which model it is uses nothing of a cached or local model with the same name
        base = source.base if source and not (MODEL_SOURCES | {"base"}) & section.layer.keys() else {}
        where = f"{settings.router.models_preset}:{max(section.line, 1)}"
        alias = same.alias if same and base else ""
        found[name] = Candidate(name, "preset", base, section.layer, where, section.fault, section.name, alias)
    return found


def _local_layer(model: models_dir.LocalModel, where: str) -> Layer:
    """Return the options of a model of the models directory.

    Unsupported options are left out.
    """
    paths = {"model": model.model, "mmproj": model.mmproj}
    return {
        name: ConfigValue(str(path), where) for name, path in paths.items() if path and not OPTIONS[name].unsupported
    }


def _preset(
    candidate: Candidate,
    merged: Layer,
    environ: Mapping[str, str],
    models_ttl: float,
    groups: Mapping[str, ModelGroup],
    warn: Warn,
) -> tuple[Preset, Settings]:
    """Return a preset and its settings. All values are checked here, so mistakes are found before the load."""
    own = merge.check(merged)
    layer = {name: given for name, given in merged.items() if name not in PRESET_ONLY}
    backend = backends.read_backend(candidate.name, merged, own, environ)
    if backend is not None:
        check_backend(candidate, warn)
        layer = {name: given for name, given in layer.items() if name in BACKEND_ONLY}
    merge.resolve(layer)
    files = () if backend else model_files.files_of(layer, own)
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
        files=files,
        missing=model_files.missing(files),
        input_modalities=("text", *_modalities(own, environ, warn)),
        defaults="" if backend else variants.header_of(candidate.name, layer, own.presets.system_prompt, shares=False),
    )
    return preset, own


def _modalities(own: Settings, environ: Mapping[str, str], warn: Warn) -> tuple[str, ...]:
    """Return the model's input modalities other than text, if its projector's file is on this machine."""
    if not own.media.mmproj_auto:
        return ()
    cached = (
        find_cached(environ, own.main_model.hf_repo, own.main_model.hf_file)
        if own.main_model.hf_repo and not own.media.mmproj
        else {}
    )
    path = Path(own.media.mmproj) if own.media.mmproj else cached.get("mmproj")
    return projector_modalities(path, warn) if path else ()


def projector_modalities(path: Path, warn: Warn = log_warning) -> tuple[str, ...]:
    """Return the input modalities that a projector enables. Its header is read only if the file has changed."""
    try:
        return _MODALITIES.get(version_of(path))
    except FileNotFoundError:  # `Preset.missing` has it
        return ()
    except (GgufError, OSError) as error:
        warn(f"cannot read the projector: {error}")
        return ()


def _read_modalities(path: Path) -> tuple[str, ...]:
    metadata = read_header(path).metadata
    return tuple(name for key, name in MODALITY_KEYS if metadata.get(key) is True)


_MODALITIES = FileCache(_read_modalities)


def _add_folder_names(presets: dict[str, Preset], candidates: Iterable[Candidate]) -> None:
    """Add the aliases that folders give to models, unless another model has such a name."""
    taken = {*presets, *(alias for preset in presets.values() for alias in preset.aliases)}
    for name, alias in ((candidate.name, candidate.alias) for candidate in candidates):
        if alias and name in presets and alias not in taken:
            presets[name] = replace(presets[name], aliases=tuple(sorted({*presets[name].aliases, alias})))


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
