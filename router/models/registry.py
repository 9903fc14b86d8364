"""Which models there are, under which names, and how a new set of presets changes that.

Owned by `lifecycle`, which starts and stops; this starts and stops nothing. A model whose worker runs keeps its entry
until the worker is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..placement.states import ModelState
from .backoff import NO_FAILURES
from .model import Model, command_line, is_same_worker

if TYPE_CHECKING:
    from llama_corral.presets.sources import Preset


class Catalog:
    def __init__(self, presets: Mapping[str, Preset], command: tuple[str, ...]) -> None:
        self._command = command
        self._sources: Mapping[str, Preset] = {}
        self._presets: Mapping[str, Preset] = {}
        """Of those with a worker of their own."""
        self._variants: dict[str, Preset] = {}
        self._models: dict[str, Model] = {}
        self._aliases: dict[str, str] = {}
        self.apply_presets(presets)

    def __iter__(self) -> Iterator[Model]:
        return iter(tuple(self._models.values()))

    def __contains__(self, model: object) -> bool:
        return isinstance(model, Model) and self._models.get(model.name) is model

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def resolve(self, name: str) -> str | None:
        """The name of a model or variant, for that or an alias."""
        if name in self._models or name in self._variants:
            return name
        return self._aliases.get(name)

    def find(self, name: str) -> Model | None:
        """By name, else by alias; of a variant the model that serves it."""
        resolved = self.resolve(name)
        if resolved is None:
            return None
        variant = self._variants.get(resolved)
        return self._models.get(variant.base if variant else resolved)

    def variant(self, name: str) -> Preset | None:
        """By name or alias, if it has no worker of its own."""
        return self._variants.get(self.resolve(name) or "")

    def names(self) -> list[str]:
        """Of all models and variants, sorted."""
        return sorted([*self._models, *self._variants])

    def variants_of(self, model: str) -> list[str]:
        return [name for name, variant in self._variants.items() if variant.base == model]

    def add(self, model: Model) -> None:
        """One that no source has yet; `remove` takes it out again."""
        self._models[model.name] = model

    def remove(self, model: Model) -> None:
        if model in self:
            del self._models[model.name]

    def mark_retiring(self, presets: Mapping[str, Preset]) -> list[Model]:
        """Notes on each running worker whether `presets` still ask for it; returns the models that must go."""
        running = [(model, model.instance) for model in self if model.instance is not None]
        for model, instance in running:
            new = presets.get(model.name)
            instance.is_retiring = new is None or bool(new.base) or not is_same_worker(model.preset, new)
        return [model for model, instance in running if instance.is_retiring]

    def apply_presets(self, presets: Mapping[str, Preset]) -> list[Model]:
        """Takes the set on, but for retiring models; returns the entries that are no more."""
        self._presets = {name: preset for name, preset in presets.items() if not preset.base}
        dropped = [model for model in self if not self._refresh(model)]
        self._sources = presets
        for name, preset in self._presets.items():
            if name not in self._models:
                self._models[name] = Model(name, preset, command_line=command_line(self._command, preset))
        self._name_variants()
        self._name_aliases()
        return dropped

    def _name_variants(self) -> None:
        """A base or a variant whose worker has still to go keeps its entry until then."""
        self._variants = {
            name: preset
            for name, preset in self._sources.items()
            if preset.base in self._models and name not in self._models
        }

    def finish_retirement(self, model: Model) -> bool:
        """Catches up on a retired model now that its worker is gone; False: there is no such model any more."""
        is_kept = self._refresh(model)
        self._name_variants()
        self._name_aliases()
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
        if not is_same_worker(model.preset, preset):
            model.backoff = NO_FAILURES
        model.preset = preset
        if model.instance is None:
            if model.state is ModelState.FAILED:
                model.transition_to(ModelState.UNLOADED)
            model.command_line = command_line(self._command, preset)
        return True

    def _name_aliases(self) -> None:
        """A model that is no more in the sources, and has still to go, leaves its aliases to whoever has them now."""
        self._aliases = {alias: name for name, preset in self._sources.items() for alias in preset.aliases}
        for model in self:
            for alias in model.preset.aliases:
                self._aliases.setdefault(alias, model.name)
