"""A model as its sources describe it: one frozen value for the router. Pure.

Created by `sources` and `variant_presets`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from .backends import Backend
from .layer import ConfigValue, Layer
from .options.table import OPTIONS
from .policy import DEFAULT_POLICY, ModelPolicy
from .render import to_ini

NOT_SHOWN = frozenset({"host", "port", "alias", "tags"})
"""Omitted from `ini_text`: the router sets or shows them elsewhere."""

Source = Literal["preset", "models_dir", "cache"]


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
    unavailable: str = ""
    """Why the model cannot be loaded until its section is corrected, as `file:line: …`; "": it can be loaded."""
    files: tuple[ConfigValue, ...] = ()
    """The paths of the model files of this machine that the worker needs."""
    missing: tuple[ConfigValue, ...] = ()
    """Those of `files` that do not exist."""
    input_modalities: tuple[str, ...] = ("text",)
    output_modalities: tuple[str, ...] = ("text",)

    @property
    def missing_file(self) -> str:
        """Why the model cannot be loaded until a file exists, as `file:line: …`; "": all files exist."""
        return f"{self.missing[0].where}: no such file: {self.missing[0].text}" if self.missing else ""

    @property
    def ini_text(self) -> str:
        """The preset as a section of a presets file, with header and without secrets."""
        shown = {**self.layer, **self.router_layer}
        for name in [name for name in shown if name in NOT_SHOWN or OPTIONS[name].secret]:
            del shown[name]
        return f"[{self.name}]\n{to_ini(shown)}\n"
