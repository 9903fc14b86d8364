"""Writes projectors of three kinds, which encode images or audio for a model. Used by `make_test_models.py`.

The weights are random numbers from `matrix(rows, columns)` and `near(value, n)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensors = dict[str, NDArray[Any]]

N_EMBD, N_FF, N_HEAD, N_LAYER = 32, 48, 2, 2
PATCH = 8  # width and height of a patch in pixels
SIDE = 64  # width and height of an image for the encoder with a fixed size: 8 × 8 patches, merged 2 × 2 to 16 tokens
N_MEL, STACK, N_AUDIO_POSITIONS = 80, 10, 1500  # positions of 30 seconds, stacked to 150 tokens


class Numbers(Protocol):
    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Array: ...
    def near(self, value: float, n: int) -> Array: ...


def write_gemma3_vision(path: Path, numbers: Numbers, n_text: int) -> None:
    """Write a projector that gives every image the same number of tokens, with non-causal attention."""
    tensors = _blocks("v", numbers) | {
        "v.patch_embd.weight": _patches(numbers),
        "v.patch_embd.bias": numbers.near(0, N_EMBD),
        "v.position_embd.weight": numbers.matrix((SIDE // PATCH) ** 2, N_EMBD),
        "mm.input_projection.weight": numbers.matrix(N_EMBD, n_text),
        "mm.soft_emb_norm.weight": numbers.near(1, N_EMBD),
    }
    _write(path, "gemma3", {"vision": {**_vision(n_text), "projector.scale_factor": 2}}, tensors)


def write_qwen2_vision(path: Path, numbers: Numbers, n_text: int) -> None:
    """Write a projector for M-RoPE: the number of tokens, in rows and columns, depends on the size of the image."""
    merged = 4 * N_EMBD
    tensors = _blocks("v", numbers) | {
        "v.patch_embd.weight": _patches(numbers),
        "v.patch_embd.weight.1": _patches(numbers),
        "mm.0.weight": numbers.matrix(merged, merged),
        "mm.0.bias": numbers.near(0, merged),
        "mm.2.weight": numbers.matrix(n_text, merged),
        "mm.2.bias": numbers.near(0, n_text),
    }
    _write(path, "qwen2vl_merger", {"vision": _vision(n_text)}, tensors)


def write_ultravox_audio(path: Path, numbers: Numbers, n_text: int) -> None:
    """Write an audio projector: a small Whisper encoder."""
    tensors = _blocks("a", numbers) | {
        "a.position_embd.weight": numbers.matrix(N_AUDIO_POSITIONS, N_EMBD),
        "a.conv1d.1.weight": _kernel(numbers, N_MEL),
        "a.conv1d.1.bias": numbers.near(0, N_EMBD)[:, None],
        "a.conv1d.2.weight": _kernel(numbers, N_EMBD),
        "a.conv1d.2.bias": numbers.near(0, N_EMBD)[:, None],
        "mm.a.norm_pre.weight": numbers.near(1, STACK * N_EMBD),
        "mm.a.mlp.1.weight": numbers.matrix(2 * N_EMBD, STACK * N_EMBD),
        "mm.a.norm_mid.weight": numbers.near(1, N_EMBD),
        "mm.a.mlp.2.weight": numbers.matrix(n_text, N_EMBD),
    }
    del tensors["a.blk.0.attn_k.bias"], tensors["a.blk.1.attn_k.bias"]
    settings = {**_encoder(n_text), "num_mel_bins": N_MEL, "projector.stack_factor": STACK}
    _write(path, "ultravox", {"audio": settings}, tensors)


def _encoder(n_text: int) -> dict[str, Any]:
    return {
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "block_count": N_LAYER,
        "attention.head_count": N_HEAD,
        "attention.layer_norm_epsilon": 1e-6,
        "projection_dim": n_text,
    }


def _vision(n_text: int) -> dict[str, Any]:
    even = [0.5, 0.5, 0.5]
    return {**_encoder(n_text), "image_size": SIDE, "patch_size": PATCH, "image_mean": even, "image_std": even}


def _blocks(prefix: str, numbers: Numbers) -> Tensors:
    tensors: Tensors = {
        f"{prefix}.post_ln.weight": numbers.near(1, N_EMBD),
        f"{prefix}.post_ln.bias": numbers.near(0, N_EMBD),
    }
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (N_EMBD, N_EMBD))
    shapes |= {"ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
    for layer in range(N_LAYER):
        block = f"{prefix}.blk.{layer}"
        for name, (rows, columns) in shapes.items():
            tensors[f"{block}.{name}.weight"] = numbers.matrix(rows, columns)
            tensors[f"{block}.{name}.bias"] = numbers.near(0, rows)
        for name in ("ln1", "ln2"):
            tensors[f"{block}.{name}.weight"] = numbers.near(1, N_EMBD)
            tensors[f"{block}.{name}.bias"] = numbers.near(0, N_EMBD)
    return tensors


def _patches(numbers: Numbers) -> NDArray[np.float16]:
    return numbers.matrix(N_EMBD, 3 * PATCH * PATCH).reshape(N_EMBD, 3, PATCH, PATCH).astype(np.float16)


def _kernel(numbers: Numbers, n_in: int) -> NDArray[np.float16]:
    return numbers.matrix(N_EMBD, n_in * 3).reshape(N_EMBD, n_in, 3).astype(np.float16)


def _write(path: Path, kind: str, encoders: Mapping[str, Mapping[str, Any]], tensors: Tensors) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string("clip.projector_type", kind)
    writer.add_bool("clip.use_gelu", True)
    for name, settings in encoders.items():
        writer.add_bool(f"clip.has_{name}_encoder", True)
        for key, value in settings.items():
            add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
            add(f"clip.{name}.{key}", value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
