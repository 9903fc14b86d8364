"""Variants: sections that share the worker of another one (`base`), and differ only in what requests may say.

`sources` makes their presets. The router names the variant's defaults in a header of each request, the worker reads
them there, so that a change of them restarts nothing. A system prompt goes the same way, also without a base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from llama_corral.common.base.errors import ConfigError

from .layer import ConfigValue, Layer
from .options.sampling import SamplingOptions

DEFAULTS_HEADER = "X-Corral-Defaults"
"""From the router to its workers; what clients send under this name goes nowhere."""
MAX_HEADER = 48 * 1024
"""Bytes; a worker reads heads of 64 KiB."""

NAMES = frozenset({"alias", "tags"})
REQUEST_OPTIONS = frozenset(SamplingOptions.model_fields) | {
    *("n_predict", "keep", "cache_prompt", "cache_reuse", "reverse_prompt", "escape", "sse_ping_interval"),
    *("chat_template_kwargs", "prefill_assistant", "reasoning", "reasoning_format", "reasoning_effort"),
    *("reasoning_budget", "reasoning_budget_message", "reasoning_preserve"),
}
"""Options that a worker looks at anew for each request."""
VARIANT_OPTIONS = REQUEST_OPTIONS | NAMES | {"base", "system_prompt"}


class Defaults(NamedTuple):
    """What holds for the requests to one preset, beside what its worker was started with."""

    name: str
    """The model's in answers."""
    options: Mapping[str, str]
    """Texts by field."""
    system_prompt: str


def check_section(layer: Layer) -> None:
    """Raises ConfigError for what needs a worker of its own."""
    for field, given in layer.items():
        if field not in VARIANT_OPTIONS:
            raise ConfigError(
                f"{given.where}: not in a section with a base: it shares the worker of [{layer['base'].text}], and may "
                "set only what a request can say, system-prompt, alias and tags"
            )


def header_of(name: str, layer: Layer, system_prompt: str, *, shares: bool) -> str:
    """`layer`: with everything that the base gives. "" when the worker needs no word. Raises ConfigError."""
    if not shares and not system_prompt:
        return ""
    options = {field: given.text for field, given in layer.items() if field in REQUEST_OPTIONS} if shares else {}
    text = json.dumps([name, options, system_prompt], separators=(",", ":"))
    if len(text) > MAX_HEADER:
        raise ConfigError(f"model '{name}': its options of requests take more than {MAX_HEADER} bytes together")
    return text


def read_header(text: str) -> Defaults:
    """What `header_of` wrote."""
    return Defaults(*json.loads(text))


def layer_of(defaults: Defaults) -> Layer:
    return {field: ConfigValue(text, f"preset '{defaults.name}'") for field, text in defaults.options.items()}


def root_of(name: str, bases: Mapping[str, ConfigValue]) -> list[str]:
    """The variant itself, its base, and so on; the last one has a worker. Raises ConfigError for a circle."""
    chain = [name]
    while (base := bases.get(chain[-1])) is not None:
        if base.text in chain:
            raise ConfigError(f"{base.where}: [{base.text}] and [{chain[-1]}] are each other's base")
        chain.append(base.text)
    return chain
