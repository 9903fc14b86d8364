"""Loads a model, with a clear error if that fails, and reads its properties.

Used by the engine thread; `ModelInfo` is plain data that all threads may read.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from .devices import buffer_types, choose_devices, offloaded_share
from .errors import LoadError
from .llama import C, complaints, start_backends
from .options import EngineOptions
from .vocab import Vocab

PROGRESS_INTERVAL = 0.2
"""Minimum seconds between two progress reports of a load, as in llama-server: enough for a progress bar."""


class MediaSupport(Struct, frozen=True):
    """The kinds of media that a model's projector supports. `marker` is the placeholder of a file in a prompt."""

    vision: bool
    audio: bool
    video: bool
    marker: str


class ModelInfo(Struct, frozen=True):
    description: str
    path: Path
    metadata: dict[str, str]
    n_params: int
    size: int  # bytes
    size_gpu: int  # estimated bytes of these on a GPU
    ftype: str
    n_ctx: int  # of one slot
    n_ctx_train: int
    n_slots: int
    n_embd: int
    n_embd_out: int
    n_vocab: int
    vocab_type: int
    has_encoder: bool
    has_decoder: bool
    is_recurrent: bool
    pooling: str
    chat_template: str | None
    chat_template_tool_use: str | None
    rerank_template: str | None
    bos_text: str
    eos_text: str
    drafts: tuple[str, ...] = ()  # kinds of drafters
    media: MediaSupport | None = None  # None: no projector


class Model:
    """Owns the llama_model; `close()` frees it. The constructor raises LoadError."""

    def __init__(self, options: EngineOptions, on_progress: Callable[[float], None]) -> None:
        self.options = options
        path = options.model
        _check_readable(path)
        start_backends(options.numa)
        complaints.clear()
        keep: list[Any] = []  # keeps objects alive that llama.cpp reads during the load
        params = _model_params(options, on_progress, keep)
        self.pointer: Any = C.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise LoadError(f"failed to load model '{path}': {_why()}")
        self.vocab = Vocab(self.pointer)
        self.n_ctx_train: int = C.llama_model_n_ctx_train(self.pointer)
        self.n_swa: int = 0 if options.swa_full else C.llama_model_n_swa(self.pointer)
        self.n_embd_out: int = C.llama_model_n_embd_out(self.pointer)
        self.has_encoder: bool = C.llama_model_has_encoder(self.pointer)
        self.has_decoder: bool = C.llama_model_has_decoder(self.pointer)

    def close(self) -> None:
        if self.pointer:
            C.llama_model_free(self.pointer)
            self.pointer = None

    def template(self, name: str | None) -> str | None:
        text = C.llama_model_chat_template(self.pointer, name.encode() if name else None)
        return text.decode("utf-8", "replace") if text else None

    def metadata(self) -> dict[str, str]:
        """Return the GGUF metadata as text. Scalars only: llama.cpp does not return arrays."""
        count = range(C.llama_model_meta_count(self.pointer))
        keys = (read_text(C.llama_model_meta_key_by_index, self.pointer, i) for i in count)
        return {
            key: read_text(C.llama_model_meta_val_str_by_index, self.pointer, i)
            for i, key in zip(count, keys, strict=True)
        }

    def info(self, n_ctx: int, pooling: str) -> ModelInfo:
        vocab = self.vocab
        size = C.llama_model_size(self.pointer)
        options, n_layers = self.options, C.llama_model_n_layer(self.pointer)
        return ModelInfo(
            description=read_text(C.llama_model_desc, self.pointer),
            path=self.options.model,
            metadata=self.metadata(),
            n_params=C.llama_model_n_params(self.pointer),
            size=size,
            size_gpu=int(size * offloaded_share(options.n_gpu_layers, n_layers, options.devices)),
            ftype=(C.llama_ftype_name(C.llama_model_ftype(self.pointer)) or b"").decode(),
            n_ctx=n_ctx,
            n_ctx_train=self.n_ctx_train,
            n_slots=self.options.n_slots,
            n_embd=C.llama_model_n_embd(self.pointer),
            n_embd_out=self.n_embd_out,
            n_vocab=vocab.n_vocab,
            vocab_type=vocab.type,
            has_encoder=self.has_encoder,
            has_decoder=self.has_decoder,
            is_recurrent=C.llama_model_is_recurrent(self.pointer) or C.llama_model_is_hybrid(self.pointer),
            pooling=pooling,
            chat_template=self.template(None),
            chat_template_tool_use=self.template("tool_use"),
            rerank_template=self.template("rerank"),
            bos_text=vocab.piece(vocab.bos).decode("utf-8", "replace"),
            eos_text=vocab.piece(vocab.eos).decode("utf-8", "replace"),
            drafts=options.drafts.kinds if options.drafts else (),
        )


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LoadError(f"failed to load model '{path}': {error.strerror}") from None
    if magic != b"GGUF":
        raise LoadError(f"failed to load model '{path}': not a GGUF file")


def _why() -> str:
    """Return the cause of a failed load: llama.cpp's first error line. The lines after it are consequences."""
    causes = [re.sub(r"^\w+: ", "", line).strip() for line in complaints]
    return causes[0] if causes else "llama.cpp reported no reason"


def _model_params(options: EngineOptions, on_progress: Callable[[float], None], keep: list[Any]) -> Any:
    params = C.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.split_mode = options.split_mode
    params.main_gpu = options.main_gpu
    params.load_mode = options.load_mode
    params.lazy_mode = options.lazy_mode
    params.check_tensors = options.check_tensors
    params.use_extra_bufts = options.repack
    params.no_host = options.no_host
    params.load_mtp = options.with_head
    if (devices := choose_devices(options.devices)) is not None:
        keep.append(devices)
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
    if options.tensor_split:
        params.tensor_split = _tensor_split(options.tensor_split, keep)
    if options.kv_overrides:
        overrides = _kv_overrides(options.kv_overrides)
        keep.append(overrides)
        params.kv_overrides = overrides
    if options.tensor_overrides:
        params.tensor_buft_overrides = ctypes.cast(_tensor_overrides(options.tensor_overrides, keep), ctypes.c_void_p)
    callback = C.llama_progress_callback(Throttled(on_progress))
    keep.append(callback)
    params.progress_callback = callback
    return params


class Throttled:
    """Reports the first and the last value, and between them at most one per `PROGRESS_INTERVAL`."""

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self._on_progress = on_progress
        self._last = float("-inf")

    def __call__(self, value: float, _data: Any) -> bool:
        now = time.monotonic()
        if value >= 1.0 or now - self._last >= PROGRESS_INTERVAL:
            self._last = now
            self._on_progress(value)
        return True


def _tensor_split(proportions: tuple[float, ...], keep: list[Any]) -> Any:
    n_devices = C.llama_max_devices()
    if len(proportions) >= n_devices:
        raise LoadError(f"--tensor-split: {len(proportions)} proportions, but at most {n_devices - 1} devices")
    array = (ctypes.c_float * n_devices)(*proportions)
    keep.append(array)
    return array


def _kv_overrides(words: tuple[str, ...]) -> Any:
    array = (C.llama_model_kv_override * (len(words) + 1))()  # ends with an empty key
    for entry, word in zip(array, words, strict=False):
        match = re.fullmatch(r"([^=]{1,127})=(int|float|bool|str):(.*)", word, re.DOTALL)
        if match is None:
            raise LoadError(f"--override-kv: {word!r} is not KEY=TYPE:VALUE with TYPE int, float, bool or str")
        key, kind, value = match.groups()
        entry.key = key.encode()
        try:
            _set_override(entry, kind, value)
        except ValueError:
            raise LoadError(f"--override-kv: the value {value!r} of {key} is not of type {kind}") from None
    return array


def _set_override(entry: Any, kind: str, value: str) -> None:
    if kind == "int":
        entry.tag, entry.value.val_i64 = C.LLAMA_KV_OVERRIDE_TYPE_INT, int(value)
    elif kind == "float":
        entry.tag, entry.value.val_f64 = C.LLAMA_KV_OVERRIDE_TYPE_FLOAT, float(value)
    elif kind == "bool":
        entry.tag, entry.value.val_bool = C.LLAMA_KV_OVERRIDE_TYPE_BOOL, {"true": True, "false": False}[value]
    else:
        data = value.encode()
        if len(data) > 127:
            raise ValueError(value)
        entry.tag, entry.value.val_str = C.LLAMA_KV_OVERRIDE_TYPE_STR, data


class _TensorOverride(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _tensor_overrides(pairs: tuple[tuple[str, str], ...], keep: list[Any]) -> Any:
    known = buffer_types()
    array = (_TensorOverride * (len(pairs) + 1))()  # ends with an empty pattern
    for entry, (pattern, name) in zip(array, pairs, strict=False):
        if name not in known:
            raise LoadError(f"--override-tensor: no buffer type {name!r}; known: {', '.join(known)}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise LoadError(f"--override-tensor: {pattern!r} is not a regular expression: {error}") from None
        entry.pattern, entry.buffer_type = pattern.encode(), known[name]
    keep.append(array)
    return array


def read_text(function: Any, *arguments: Any) -> str:
    """Call a C function (…, buffer, buffer size) that returns the text's full length, and return the text."""
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        n = function(*arguments, buffer, room)
        if n < room:
            return buffer.raw[: max(n, 0)].decode("utf-8", "replace")
        room = n + 1
