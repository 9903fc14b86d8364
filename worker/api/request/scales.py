"""Scales of LoRA adapters as clients write them: `[{"id": …, "scale": …}, …]`. Pure.

A list says everything: adapters that are not mentioned get the scale 0, unknown ids count for nothing.
"""

from __future__ import annotations

from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields

Scales = tuple[tuple[int, float], ...]
"""(id, scale), by id."""

SHAPE = "Field 'lora': Error: 'lora' must be an array of objects with 'id' and 'scale' fields"
LARGEST = 3.4e38  # of float32


def read_scales(value: object) -> Scales:
    """Of an id that occurs twice the last scale counts."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InvalidRequest(SHAPE)
    scales = {}
    for entry in map(Fields, value):
        scales[entry.integer("id", default=-1)] = entry.limited_real("scale", default=0.0, low=-LARGEST, high=LARGEST)
    return tuple(sorted(scales.items()))


def scales_json(scales: Scales) -> list[dict[str, Any]]:
    return [{"id": number, "scale": scale} for number, scale in scales]
