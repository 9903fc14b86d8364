"""Loads the LoRA adapters of a model, keeps their scales and determines which of them are active for a request.

Owned by the engine thread. Requests that set no scales use the server's scales, which `/lora-adapters` changes.
Sequences that were computed with other scales are not reused, see `activation`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.base.user_files import why_not_a_file
from msgspec import Struct

from ..llama.context import Context
from ..llama.errors import LoadError
from ..llama.llama import C, complaints
from ..llama.model import Model, read_text
from ..messages import Embedding, Generation
from .activation import BASE, Activation, Scales, activation, last_occurrence


class AdapterInfo(Struct, frozen=True):
    id: int
    path: Path
    task_name: str
    prompt_prefix: str
    invocation_text: str
    invocation: tuple[int, ...]  # tokens that activate an aLoRA; empty for a usual LoRA


class Adapters:
    """The adapters of a model. Load them before the context, which reserves memory for them.

    llama.cpp frees them together with the model.
    """

    def __init__(self, model: Model, scales: Scales | None = None) -> None:
        """Load the adapters of the model's options. Raises LoadError.

        `scales` replace the scales of the options: those that were set before the model was put to sleep.
        """
        options = model.options
        self._pointers = [_load(model, path) for path, _ in options.lora]
        self.infos = tuple(
            _info(number, path, pointer, model)
            for number, ((path, _), pointer) in enumerate(zip(options.lora, self._pointers, strict=True))
        )
        self.scales: Scales = scales if scales is not None else tuple(scale for _, scale in options.lora)
        self._applied: Scales = ()

    def set_scales(self, wanted: Mapping[int, float]) -> None:
        """Set the scales of all later requests. Adapters that are not mentioned get 0; unknown ids are ignored."""
        self.scales = self._scales_of(wanted)

    def activation(self, request: Generation | Embedding, *, in_pieces: bool = True) -> Activation:
        """Return which adapters are active for the request, and from which token on.

        If `in_pieces` is false, the prompt is computed as one batch and an aLoRA is active for all of it or not at all.
        Raises InvalidRequest if several aLoRAs are active, or one with a negative scale.
        """
        if not self.infos:
            return BASE
        own = request.adapters if isinstance(request, Generation) else ()
        scales = self._scales_of(dict(own)) if own else self.scales
        active = [info for info, scale in zip(self.infos, scales, strict=True) if scale]
        if not active or not all(info.invocation for info in active):
            return activation(scales)
        if len(active) > 1 or scales[active[0].id] < 0:
            raise InvalidRequest("Cannot run multiple aLoRAs in a single request")
        start = last_occurrence(request.tokens, active[0].invocation)
        if start < 0:
            return BASE
        return activation(scales, start - 1 if in_pieces else 0)  # from the token before it, as in llama-server

    def apply(self, context: Context, scales: Scales) -> None:
        """Set the scales for the next decode. After a change llama.cpp has to reserve the compute graph again."""
        if scales == self._applied:
            return
        n = len(scales)
        pointers = (C.llama_adapter_lora_p_ctypes * n)(*self._pointers[:n])
        C.llama_set_adapters_lora(context.pointer, pointers, n, (ctypes.c_float * n)(*scales))
        self._applied = scales

    def _scales_of(self, wanted: Mapping[int, float]) -> Scales:
        return tuple(wanted.get(info.id, 0.0) for info in self.infos)


def _load(model: Model, path: Path) -> Any:
    if why := why_not_a_file(path):
        raise LoadError(f"failed to load LoRA adapter '{path}': {why}")
    complaints.clear()
    pointer = C.llama_adapter_lora_init(model.pointer, os.fsencode(path))
    if not pointer:
        why = complaints[0].partition(": ")[2] if complaints else "llama.cpp gave no reason"
        raise LoadError(f"failed to load LoRA adapter '{path}': {why}")
    return pointer


def _info(number: int, path: Path, pointer: Any, model: Model) -> AdapterInfo:
    def metadata(name: bytes) -> str:
        return read_text(C.llama_adapter_meta_val_str, pointer, b"adapter.lora." + name)

    tokens = C.llama_adapter_get_alora_invocation_tokens(pointer)
    invocation = tuple(tokens[: C.llama_adapter_get_alora_n_invocation_tokens(pointer)])
    text = _text(invocation, model)
    return AdapterInfo(number, path, metadata(b"task_name"), metadata(b"prompt_prefix"), text, invocation)


def _text(tokens: Sequence[int], model: Model) -> str:
    return model.vocab.join(tokens).decode("utf-8", "replace")
