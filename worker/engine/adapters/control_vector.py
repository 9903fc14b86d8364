"""Control vectors: a direction for each layer that is added to what the layer computes. Read from GGUF, set once.

Called when a context has been made; several files add up.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
from llama_corral.common.hub.gguf_header import GgufError, Tensor, read_header
from numpy.typing import NDArray

from ..llama.context import Context
from ..llama.errors import LoadError
from ..llama.llama import C

Directions = dict[int, NDArray[np.float32]]
"""By layer, counted from 1: layer 0 has none."""

_NAME = re.compile(r"direction\.(\d+)")


def apply_control_vectors(context: Context) -> None:
    """Raises LoadError for files that are no control vectors, or not of this model."""
    options = context.model.options
    if not options.control_vectors:
        return
    total: Directions = {}
    for path, scale in options.control_vectors:
        for layer, direction in read_directions(path).items():
            if total and direction.size != _size(total):
                raise LoadError(
                    f"control vector '{path}': {direction.size} numbers a layer, the one before it has others"
                )
            total[layer] = total.get(layer, np.zeros_like(direction)) + np.float32(scale) * direction
    _set(context, total)


def read_directions(path: Path) -> Directions:
    """Raises LoadError. Tensors of one layer add up."""
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
        raise LoadError(f"control vector '{path}': no direction in it")
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
        raise LoadError(f"control vectors have {n_embd} numbers a layer, the model {expected}")
