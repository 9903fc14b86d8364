"""Reads control vectors from GGUF files and sets them in a new context.

A control vector has one direction for each layer, which llama.cpp adds to the layer's output. The vectors of several
files are added up.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
from llama_corral.common.base.user_files import why_not_a_file
from llama_corral.common.hub.gguf_header import GgufError, Tensor, read_header
from numpy.typing import NDArray

from ..llama.context import Context
from ..llama.errors import LoadError
from ..llama.llama import C

Directions = dict[int, NDArray[np.float32]]
"""Direction of shape (n_embd,) by layer, counted from 1; layer 0 has none."""

_NAME = re.compile(r"direction\.(\d+)")


def apply_control_vectors(context: Context) -> None:
    """Set the control vectors of the model's options in the context.

    Raises LoadError for a file that is not a control vector or does not fit the model.
    """
    options = context.model.options
    if not options.control_vectors:
        return
    total: Directions = {}
    for path, scale in options.control_vectors:
        for layer, direction in read_directions(path).items():
            if total and direction.size != _size(total):
                raise LoadError(
                    f"control vector '{path}' has {direction.size} values per layer; the file before it has a"
                    " different number"
                )
            total[layer] = total.get(layer, np.zeros_like(direction)) + np.float32(scale) * direction
    _set(context, total)


def read_directions(path: Path) -> Directions:
    """Return the directions in a GGUF file; several tensors of one layer are added up. Raises LoadError."""
    if why := why_not_a_file(path):
        raise LoadError(f"control vector '{path}': {why}")
    try:
        header = read_header(path)
        with path.open("rb") as file:
            directions: Directions = {}
            for tensor in header.tensors:
                layer = _layer(path, tensor)
                file.seek(header.data_offset + tensor.offset)
                direction = np.frombuffer(file.read(tensor.size), np.float32)
                if directions and direction.size != _size(directions):
                    raise LoadError(f"control vector '{path}': its layers have different sizes")
                directions[layer] = directions.get(layer, np.zeros_like(direction)) + direction
    except (OSError, GgufError) as error:
        raise LoadError(f"control vector '{path}': {error}") from None
    if not directions:
        raise LoadError(f"control vector '{path}': it contains no direction")
    return directions


def _size(directions: Directions) -> int:
    return next(iter(directions.values())).size


def _layer(path: Path, tensor: Tensor) -> int:
    match = _NAME.match(tensor.name)
    problem = None
    if match is None or int(match[1]) == 0:
        problem = "is not named direction.<layer>, with layers counted from 1"
    elif tensor.type != "f32":
        problem = f"is {tensor.type}, not f32"
    elif len(tensor.shape) != 1:
        problem = f"has {len(tensor.shape)} dimensions, not one"
    if problem or match is None:
        raise LoadError(f"control vector '{path}': tensor {tensor.name!r} {problem}")
    return int(match[1])


def _set(context: Context, directions: Directions) -> None:
    model, n_embd = context.model, _size(directions)
    n_layers = C.llama_model_n_layer(model.pointer)
    data = np.zeros((n_layers, n_embd), np.float32)
    for layer, direction in directions.items():
        if layer <= n_layers:
            data[layer - 1] = direction
    first, last = model.options.control_vector_layers
    last = last if last > 0 else n_layers
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if C.llama_set_adapter_cvec(context.pointer, pointer, data.size, n_embd, max(1, first), last):
        expected = C.llama_model_n_embd(model.pointer)
        raise LoadError(f"the control vectors have {n_embd} values per layer, the model has {expected}")
