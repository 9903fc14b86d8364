"""Writes LoRA adapters and control vectors. Used by `make_test_models.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def write_lora(
    path: Path,
    architecture: str,
    pairs: Mapping[str, tuple[Array, Array]],
    *,
    alpha: float,
    about: Mapping[str, str] | None = None,
    invocation: Sequence[int] = (),
) -> None:
    """Write a LoRA adapter, or an aLoRA that the tokens of `invocation` activate.

    `pairs` has for each weight the matrices A (rank rows) and B (rank columns).
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in (about or {}).items():
        writer.add_string(f"adapter.lora.{key}", value)
    if invocation:
        kinds = gguf.GGUFValueType
        writer.add_key_value("adapter.alora.invocation_tokens", list(invocation), kinds.ARRAY, sub_type=kinds.UINT32)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    _write(writer)


def write_control_vector(path: Path, directions: Mapping[str, Array]) -> None:
    """Write a control vector. Its tensors are named `direction.<layer>`, with layers counted from 1."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    for name, direction in directions.items():
        writer.add_tensor(name, direction)
    _write(writer)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
