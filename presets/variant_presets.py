"""Builds the presets of variants: the sections with a `base`. `variants` has the rules for their options. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from llama_corral.common.base.errors import ConfigError
from msgspec.structs import replace

from . import merge, variants
from .layer import ConfigValue
from .merge import Layer
from .options.table import PRESET_ONLY
from .preset import Preset


def build_variant(
    name: str,
    sections: Mapping[str, Layer],
    bases: Mapping[str, ConfigValue],
    presets: Mapping[str, Preset],
    overlay: Layer,
) -> Preset:
    """Return the preset of the variant `name`. Raise ConfigError.

    `sections`: the layers of all variants; `bases`: their bases; `presets`: those built so far, the bases included;
    `overlay`: the router's command line.
    """
    variants.check_section(sections[name])
    *names, root = variants.root_of(name, bases)
    if root not in presets:
        raise ConfigError(f"{bases[names[-1]].where}: there is no model '{root}'")
    if presets[root].backend is not None:
        raise ConfigError(f"{bases[name].where}: '{root}' has a cmd: only our own worker can serve several presets")
    for base in (root, *reversed(names[1:])):
        if presets[base].unavailable:
            raise ConfigError(f"{bases[name].where}: its base '{base}' cannot be loaded: {presets[base].unavailable}")
    imposed = {field: given for field, given in overlay.items() if field in variants.REQUEST_OPTIONS}
    return _variant(name, presets[root], [sections[one] for one in reversed(names)], imposed)


def by_depth(names: Mapping[str, Layer], bases: Mapping[str, ConfigValue]) -> list[str]:
    """Return the variants in an order in which each comes after its base, if that is a variant too."""

    def depth(name: str) -> int:
        seen = [name]
        while (base := bases.get(seen[-1])) is not None and base.text not in seen:
            seen.append(base.text)
        return len(seen)

    return sorted(names, key=depth)


def _variant(name: str, root: Preset, sections: list[Layer], imposed: Layer) -> Preset:
    """Build a variant's preset. `sections`: from the section nearest to the root to the variant's own."""
    inherited = {field: given for field, given in root.layer.items() if field not in variants.NAMES}
    own_names = {field: given for field, given in sections[-1].items() if field in variants.NAMES}
    shared = [{f: given for f, given in section.items() if f not in variants.NAMES} for section in sections]
    merged = merge.merge(inherited, root.router_layer, *shared, own_names, imposed)
    own = merge.check(merged)
    layer = {field: given for field, given in merged.items() if field not in PRESET_ONLY}
    merge.resolve(layer)
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
