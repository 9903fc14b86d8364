"""Decides which name belongs to which model: the names of sections, and names that several models claim. Pure.

A section's name is used as it is written. One that names a repository is listed as the cache lists the repository,
because both are the same model. A name that two models claim stays with the model that had it at the last reading.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from llama_corral.common.hub.gguf_names import canonical_name
from msgspec.structs import replace

from .preset import Preset

ReportFault = Callable[[str, str], None]
"""Called with a fault of one section (`file:line: …`) and what follows from it."""


def listed_names(
    written: Iterable[str], is_repository: Callable[[str], bool], cached: Iterable[str] = ()
) -> dict[str, str]:
    """Return the name under which each section is listed, by its written name. No two sections get the same name.

    `cached`: the names of the models in the cache. Repositories whose names differ only in case are one.
    """
    written, in_cache = list(written), {name.casefold(): name for name in cached}
    listed = {name: name for name in written}
    taken = set(written)
    for name in written:
        folded = canonical_name(name)
        folded = in_cache.get(folded.casefold(), folded)
        if folded not in taken and is_repository(name):
            taken.add(folded)
            listed[name] = folded
    return listed


def named_model(text: str, listed: Mapping[str, str], models: Container[str], repositories: Iterable[str] = ()) -> str:
    """Return the name of the model that a section means by `text`, for example as its base.

    `repositories`: the models that are named after their repository.
    """
    if text in listed:
        return listed[text]
    if text in models:
        return text
    folded = canonical_name(text)
    by_case = {name.casefold(): name for name in repositories}
    return folded if folded in models else by_case.get(folded.casefold(), text)


def settle(presets: Mapping[str, Preset], known: Mapping[str, Preset], report: ReportFault) -> dict[str, Preset]:
    """Leave out the aliases and models whose name belongs to another model. `known`: the result of the last reading.

    Models that can be loaded come before those that cannot. Then the model that `known` shows with the name keeps it.
    Without that, the name of a section comes before an alias, an alias before the name of a model that was only found,
    and the first of two aliases is used.
    """
    bases = {preset.base for preset in presets.values()}
    owners: dict[str, Preset] = {}
    left_out: set[str] = set()
    kept: dict[str, list[str]] = {}
    for preset in sorted(presets.values(), key=lambda preset: bool(preset.unavailable)):
        kept[preset.name] = []
        for alias in preset.aliases:
            claim = f"{preset.layer['alias'].where}: alias '{alias}' of model '{preset.name}'"
            omitted = f"alias '{alias}' of model {preset.name} is left out"
            other, owner = presets.get(alias), owners.get(alias)
            if other is not None and alias not in left_out:
                if alias in bases or not _alias_comes_first(preset, other, known):
                    report(f"{claim} is the name of another model", omitted)
                    continue
                report(f"{claim} is the name of another model", f"model {alias} ({other.source}) is left out")
                left_out.add(alias)
            if owner is not None:
                fault = f"{claim} is an alias of model '{owner.name}' too"
                if preset.unavailable or _had(known, owner, alias) or not _had(known, preset, alias):
                    report(fault, omitted)
                    continue
                report(fault, f"alias '{alias}' of model {owner.name} is left out")
                kept[owner.name].remove(alias)
            owners[alias] = preset
            kept[preset.name].append(alias)
    return {
        name: preset if len(kept[name]) == len(preset.aliases) else replace(preset, aliases=tuple(kept[name]))
        for name, preset in presets.items()
        if name not in left_out
    }


def _alias_comes_first(preset: Preset, other: Preset, known: Mapping[str, Preset]) -> bool:
    """Return True if the name of `other` belongs to `preset`, which has it as an alias."""
    if bool(preset.unavailable) != bool(other.unavailable):
        return bool(other.unavailable)
    if other.name in known or _had(known, preset, other.name):
        return other.name not in known
    return preset.source == "preset" and other.source != "preset"


def _had(known: Mapping[str, Preset], preset: Preset, alias: str) -> bool:
    """Return True if the model had this alias at the last reading."""
    return preset.name in known and alias in known[preset.name].aliases
