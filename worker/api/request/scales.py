"""Reads the scales of LoRA adapters in the clients' format: `[{"id": …, "scale": …}, …]`. Pure.

A list is complete: adapters that are not in it get the scale 0; unknown ids are ignored.
"""

from __future__ import annotations

from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields

Scales = tuple[tuple[int, float], ...]
"""(id, scale) pairs, sorted by id."""

SHAPE = "Field 'lora': Error: 'lora' must be an array of objects with 'id' and 'scale' fields"
LARGEST = 3.4e38  # limit of float32


def read_scales(value: object) -> Scales:
    """Return the scales. If an id occurs more than once, the last scale is used. Raises InvalidRequest."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InvalidRequest(SHAPE)
    scales = {}
    for entry in map(Fields, value):
        scales[entry.integer("id", default=-1)] = entry.limited_real("scale", default=0.0, low=-LARGEST, high=LARGEST)
    return tuple(sorted(scales.items()))


def scales_json(scales: Scales) -> list[dict[str, Any]]:
    return [{"id": number, "scale": scale} for number, scale in scales]
