"""The known models and their names, and the changes when a new set of presets is applied.

Owned by `reducer`, which starts and stops workers; this module does neither. A model whose worker runs keeps its
entry until the worker has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llama_corral.common.hub.gguf_names import canonical_name

from ..placement.states import ModelState
from .backoff import NO_FAILURES
from .model import Instance, Model, command_line, is_same_worker

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset

EDITED = "its preset was changed"
"""Why a worker retires after an edit that leaves its model usable."""


class Catalog:
    def __init__(self, presets: Mapping[str, Preset], command: tuple[str, ...]) -> None:
        self._command = command
        self._sources: Mapping[str, Preset] = {}
        self._presets: Mapping[str, Preset] = {}
        """Those without a base: each has a separate worker."""
        self._variants: dict[str, Preset] = {}
        self._models: dict[str, Model] = {}
        self._aliases: dict[str, str] = {}
        self._repositories: dict[str, str] = {}
        """The names of the models that are named after their repository, by these names in lower case."""
        self._running: dict[str, Model] = {}
        self.unrequested: list[Model] = []
        """The models that are loaded without a request: with `keep-warm` in their preset, or due to be loaded again."""
        self.apply_presets(presets)

    def __iter__(self) -> Iterator[Model]:
        return iter(tuple(self._models.values()))

    @property
    def running(self) -> list[Model]:
        """The models that have a worker."""
        return list(self._running.values())

    def set_instance(self, model: Model, instance: Instance | None) -> None:
        """Record that a worker of the model starts, or that it has ended (None)."""
        model.instance = instance
        if instance is None:
            self._running.pop(model.name, None)
        else:
            self._running[model.name] = model

    def __contains__(self, model: object) -> bool:
        return isinstance(model, Model) and self._models.get(model.name) is model

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    @property
    def presets(self) -> Mapping[str, Preset]:
        """The set that was applied last, with variants."""
        return self._sources

    def resolve(self, name: str) -> str | None:
        """Return the name of the model or variant that has this name or alias; None if there is none.

        A repository is found under every spelling of its quantization, and whatever the case of its letters.
        """
        if name in self._models or name in self._variants:
            return name
        return self._aliases.get(name) or self._repository(name)

    def _repository(self, name: str) -> str | None:
        """Return the model of the repository that `name` spells in another way than the cache; None if there is none.

        For example `user/repo:q8_0` is the model `User/repo:Q8_0`.
        """
        folded = canonical_name(name)
        model = self._models.get(folded)
        return folded if model and _is_repository(model) else self._repositories.get(folded.casefold())

    def find(self, name: str) -> Model | None:
        """Return the model with this name or else alias; for a variant the model that serves it."""
        if (model := self._models.get(name)) is not None:
            return model
        resolved = self.resolve(name)
        if resolved is None:
            return None
        variant = self._variants.get(resolved)
        return self._models.get(variant.base if variant else resolved)

    def variant(self, name: str) -> Preset | None:
        """Return the preset of the variant with this name or alias; None if it is not a variant."""
        return None if name in self._models else self._variants.get(self.resolve(name) or "")

    def names(self) -> list[str]:
        """Return the names of all models and variants, sorted."""
        return sorted([*self._models, *self._variants])

    def variants_of(self, model: str) -> list[str]:
        return [name for name, variant in self._variants.items() if variant.base == model]

    def add(self, model: Model) -> None:
        """Add a model that no source has yet; `remove` removes it again."""
        self._models[model.name] = model
        self._name_repositories()

    def remove(self, model: Model) -> None:
        if model in self:
            del self._models[model.name]
            self._name_repositories()

    def mark_retiring(self, presets: Mapping[str, Preset]) -> list[tuple[Model, Instance]]:
        """Mark each running worker that `presets` no longer describe as retiring; return these with their models.

        A model that loads, or whose new preset has load-on-startup, is to be loaded again.
        """
        running = [(model, model.instance) for model in self if model.instance is not None]
        for model, instance in running:
            new = presets.get(model.name)
            instance.next_fault = new.unavailable if new else ""
            if new is None or new.base or new.unavailable:
                instance.is_retiring, model.is_reload_due = True, False
            else:
                instance.is_retiring = not is_same_worker(model.preset, new)
                is_wanted = new.load_on_startup or model.state is ModelState.LOADING
                model.is_reload_due = instance.is_retiring and is_wanted
            instance.retirement_reason = _what_happened(new) if instance.is_retiring else ""
        return [(model, instance) for model, instance in running if instance.is_retiring]

    def apply_presets(self, presets: Mapping[str, Preset]) -> list[Model]:
        """Apply the set to all models except retiring ones; return the models that were removed."""
        self._presets = {name: preset for name, preset in presets.items() if not preset.base}
        dropped = [model for model in self if not self._refresh(model)]
        self._sources = presets
        for name, preset in self._presets.items():
            if name not in self._models:
                line = command_line(self._command, preset)
                self._models[name] = Model(name, preset, command_line=line, idle_command_line=line)
        self._update_indexes()
        return dropped

    def _update_indexes(self) -> None:
        """Update all that is derived from the models and the sources."""
        self._name_variants()
        self._name_repositories()
        self._name_aliases()
        self.unrequested = [model for model in self if model.preset.policy.keep_warm or model.is_reload_due]

    def _name_variants(self) -> None:
        """Update the variants. A name whose separate worker still runs remains a model until that worker ends."""
        self._variants = {
            name: preset
            for name, preset in self._sources.items()
            if preset.base in self._models and name not in self._models
        }

    def finish_retirement(self, model: Model) -> bool:
        """Apply the current presets to a retired model whose worker has ended; False: the model was removed."""
        is_kept = self._refresh(model)
        self._update_indexes()
        return is_kept

    def _refresh(self, model: Model) -> bool:
        if model.instance is not None and model.instance.is_retiring:
            return True
        preset = self._presets.get(model.name)
        if model.state is ModelState.DOWNLOADING:
            return True
        if preset is None or model.state is ModelState.DOWNLOADED:
            del self._models[model.name]
            return False
        if preset is not model.preset and preset != model.preset:
            model.idle_command_line = command_line(self._command, preset)
        if not is_same_worker(model.preset, preset) or (model.preset.missing and not preset.missing):
            model.backoff = NO_FAILURES
            model.info = {}
            model.is_need_outdated = True
            was_unusable = model.preset.unavailable or model.preset.missing
            if was_unusable and preset.load_on_startup and model.instance is None:
                model.is_reload_due = True
        model.preset = preset
        if model.instance is None:
            if model.state is ModelState.FAILED:
                model.transition_to(ModelState.UNLOADED)
            model.command_line = model.idle_command_line
        return True

    def _name_repositories(self) -> None:
        self._repositories = {}
        for model in self:
            if _is_repository(model):
                self._repositories.setdefault(model.name.casefold(), model.name)

    def _name_aliases(self) -> None:
        """Update the aliases. Those of current presets override those of a removed model that still runs."""
        self._aliases = {alias: name for name, preset in self._sources.items() for alias in preset.aliases}
        for model in self:
            for alias in model.preset.aliases:
                self._aliases.setdefault(alias, model.name)


def _what_happened(new: Preset | None) -> str:
    """Return why a worker retires, for the log and for clients. `new`: its model's preset now; None: there is none."""
    if new is None:
        return "no source has it any more"
    if new.unavailable:
        return f"it cannot be loaded again: {new.unavailable}"
    return f"it is a variant of {new.base} now" if new.base else EDITED


def _is_repository(model: Model) -> bool:
    """Return True if the model is named after its repository."""
    repository = model.preset.layer.get("hf_repo")
    return repository is not None and canonical_name(repository.text) == model.name
