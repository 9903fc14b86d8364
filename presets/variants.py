"""Variants: sections that share the worker of another section (`base`) and differ only in options of requests.

`sources` builds their presets. The router sends a variant's defaults in a header of each request and the worker reads
them there, so a change of defaults needs no restart. System prompts are sent the same way, also without a base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from llama_corral.common.base.errors import ConfigError

from .layer import ConfigValue, Layer
from .options.sampling import SamplingOptions

DEFAULTS_HEADER = "X-Corral-Defaults"
"""Header from the router to its workers; clients' headers with this name are removed."""
MAX_HEADER = 48 * 1024
"""Maximum bytes; a worker accepts headers of 64 KiB."""

NAMES = frozenset({"alias", "tags"})
REQUEST_OPTIONS = frozenset(SamplingOptions.model_fields) | {
    *("n_predict", "keep", "cache_prompt", "cache_reuse", "reverse_prompt", "escape", "sse_ping_interval"),
    *(
        "chat_template_kwargs",
        "prefill_assistant",
        "special_in_messages",
        "reasoning",
        "reasoning_format",
        "reasoning_effort",
    ),
    *("reasoning_budget", "reasoning_budget_message", "reasoning_preserve"),
}
"""Options that a worker reads again for each request."""
VARIANT_OPTIONS = REQUEST_OPTIONS | NAMES | {"base", "system_prompt"}


class Defaults(NamedTuple):
    """The defaults for requests to one preset, in addition to its worker's options."""

    name: str
    """The model's name in responses."""
    options: Mapping[str, str]
    """Texts by field name."""
    system_prompt: str


def check_section(layer: Layer) -> None:
    """Raise ConfigError for options that need a separate worker."""
    for field, given in layer.items():
        if field not in VARIANT_OPTIONS:
            raise ConfigError(
                f"{given.where}: not allowed in a section with a base: it shares the worker of [{layer['base'].text}] "
                "and may set only options of requests, system-prompt, alias and tags"
            )


def header_of(name: str, layer: Layer, system_prompt: str, *, shares: bool) -> str:
    """Return the header's value; "" if the worker needs none. Raise ConfigError if it is too long.

    `layer` must include the base's options. `shares`: the model shares the worker of a base.
    """
    if not shares and not system_prompt:
        return ""
    options = {field: given.text for field, given in layer.items() if field in REQUEST_OPTIONS} if shares else {}
    text = json.dumps([name, options, system_prompt], separators=(",", ":"))
    if len(text) > MAX_HEADER:
        raise ConfigError(f"model '{name}': its request options need more than {MAX_HEADER} bytes in total")
    return text


def read_header(text: str) -> Defaults:
    """Parse a header value of `header_of`."""
    return Defaults(*json.loads(text))


def layer_of(defaults: Defaults) -> Layer:
    return {field: ConfigValue(text, f"preset '{defaults.name}'") for field, text in defaults.options.items()}


def root_of(name: str, bases: Mapping[str, ConfigValue]) -> list[str]:
    """Return the variant, its base, and so on; the last one has a worker. Raise ConfigError for a cycle."""
    chain = [name]
    while (base := bases.get(chain[-1])) is not None:
        if base.text in chain:
            raise ConfigError(f"{base.where}: [{base.text}] and [{chain[-1]}] are each other's base")
        chain.append(base.text)
    return chain
