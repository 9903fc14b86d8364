"""A llama_context and its sequence memory. Used by the engine thread only, except `abort()`.

Guards all calls that could abort the process: batches above n_batch, outputs that were not computed, sequences that do
not exist, partial removal from a memory that does not support it.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import numpy as np
from llama_corral.presets.context_shape import ResolvedContext
from msgspec.structs import replace
from numpy.typing import NDArray

from .batch import Batch, MediaBatch
from .errors import LoadError
from .llama import ABORT_TEST, EXT, C, complaints, fast, floats_at, log_lines
from .model import Model
from .options import EngineOptions

log = logging.getLogger("corral.engine")

POOLING_NAMES = {-1: "none", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_POOLING_NONE, _POOLING_LAST, _POOLING_RANK = 0, 3, 4

DECODED, NO_ROOM, ABORTED = 0, 1, 2
"""Results of `decode`. A negative result is an error after which the batch's sequences have unknown contents."""


class Context:
    """Owns the llama_context. `close()` frees it; call it before the model's."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._abort_flag = ctypes.create_string_buffer(b"0")
        complaints.clear()
        self.pointer: Any = C.llama_init_from_model(model.pointer, self._params(model.options))
        if not self.pointer:
            why = complaints[0] if complaints else "llama.cpp reported no reason"
            raise LoadError(f"failed to create a context for '{model.options.model}': {why}")
        self.kv_cache: int | None = C.llama_get_memory(self.pointer) or None
        self.shape = self._resolved(self._created_with(model.options))
        self.n_ctx = self.shape.n_ctx
        self.n_ubatch: int = C.llama_n_ubatch(self.pointer)
        self.causal: bool = C.llama_get_causal_attn(self.pointer)
        n_batch = C.llama_n_batch(self.pointer)
        # without memory, or without a causal mask, the whole batch is one physical batch
        self.n_batch: int = n_batch if self.causal and self.kv_cache else min(n_batch, self.n_ubatch)
        self.pooling: int = C.llama_pooling_type(self.pointer)
        self.n_vocab = model.vocab.n_vocab
        self._embeddings: bool | None = None
        if self.pooling == _POOLING_RANK and (problem := _unfit_to_rank(model)):
            self.close()
            raise LoadError(f"'{model.options.model}' cannot rerank: {problem}")

    def close(self) -> None:
        if self.pointer:
            C.llama_free(self.pointer)
            self.pointer = self.kv_cache = None

    @property
    def pooling_name(self) -> str:
        return POOLING_NAMES.get(self.pooling, "none")

    @property
    def n_ctx_slot(self) -> int:
        """The maximum number of tokens of one sequence."""
        return self.shape.n_ctx_slot

    @property
    def embeds_in_pieces(self) -> bool:
        """True if the input of an embedding may be split over several batches."""
        if self.kv_cache is None:
            return False
        return self.pooling == _POOLING_LAST or (self.pooling == _POOLING_RANK and self.causal)

    # -- compute -------------------------------------------------------------------------------------------------------

    def set_causal(self, causal: bool) -> None:
        """Set causal attention. Without it all tokens of a batch attend to each other.

        Some images need it off; such a batch must fit into a physical batch.
        """
        C.llama_set_causal_attn(self.pointer, causal)

    def set_embeddings(self, wanted: bool) -> None:
        if wanted != self._embeddings:
            C.llama_set_embeddings(self.pointer, wanted)
            self._embeddings = wanted

    def decode(self, batch: Batch | MediaBatch, begin: int, n: int) -> int:
        """Decode rows of a batch and wait for the outputs. Returns llama_decode's result. Releases the GIL."""
        result = int(C.llama_decode(self.pointer, batch.view(begin, n)))
        if result == DECODED:
            C.llama_synchronize(self.pointer)
        return result

    def abort(self) -> None:
        """End the running decode with ABORTED at its next graph node. May be called from any thread."""
        log_lines.expects_errors = True
        self._abort_flag[0] = b"1"

    def clear_abort(self) -> None:
        self._abort_flag[0] = b"0"
        log_lines.expects_errors = False

    def warm_up(self) -> None:
        """Decode a dummy batch, so that page faults and lazy initialisation do not delay the first request."""
        vocab = self.model.vocab
        tokens = [token for token in (vocab.bos, vocab.eos) if token >= 0] or [0]
        if self.model.has_encoder:
            C.llama_encode(self.pointer, self._decode_alone(tokens))
            start = C.llama_model_decoder_start_token(self.model.pointer)
            tokens = [start if start >= 0 else tokens[0]]
        if self.model.has_decoder:
            C.llama_decode(self.pointer, self._decode_alone(tokens[: self.n_batch]))
        if self.kv_cache is not None:
            C.llama_memory_clear(self.kv_cache, True)
        C.llama_synchronize(self.pointer)
        C.llama_perf_context_reset(self.pointer)

    def _decode_alone(self, tokens: list[int]) -> Any:
        self._warm_up_batch = batch = Batch(len(tokens))  # keep it alive: llama.cpp reads from it
        batch.add_run(tokens, 0, 0, output=self.model.options.embeddings)
        batch.want_output(len(tokens) - 1)
        return batch.view(0, len(tokens))

    # -- outputs of the last decode ----------------------------------------------------------------------------------

    def logits(self, row: int) -> NDArray[np.float32]:
        """Return the logits of a row, shape (n_vocab,): a view of llama.cpp's buffer, valid until the next decode.

        Raises IndexError if the row has no output.
        """
        pointer = fast.logits_ith(self.pointer, row)
        if not pointer:
            raise IndexError(f"row {row} has no logits")
        return floats_at(pointer, self.n_vocab)

    def sequence_embedding(self, sequence: int, n: int) -> NDArray[np.float32] | None:
        return _copy(fast.embeddings_seq(self.pointer, sequence), n)

    def token_embedding(self, row: int, n: int) -> NDArray[np.float32] | None:
        return _copy(fast.embeddings_ith(self.pointer, row), n)

    def enable_hidden_states(self) -> None:
        """Make every following decode output the last layer's hidden state of each row, for an MTP head."""
        EXT.llama_set_embeddings_nextn(self.pointer, True, False)

    def hidden_states(self, n: int) -> NDArray[np.float32]:
        """Return the hidden states of the first n rows, shape (n, n_embd_out): a view, valid until the next decode."""
        address = ctypes.cast(EXT.llama_get_embeddings_nextn(self.pointer), ctypes.c_void_p).value
        if not address:
            raise IndexError("there are no hidden states")
        return floats_at(address, n * self.model.n_embd_out).reshape(n, -1)

    # -- sequence memory ---------------------------------------------------------------------------------------------

    def truncate(self, sequence: int, n: int) -> bool:
        """Remove all but the first n positions. Return False if this memory cannot do it; then nothing was changed."""
        return self.kv_cache is None or bool(fast.seq_rm(self.kv_cache, sequence, n, -1))

    def clear_sequence(self, sequence: int) -> None:
        if self.kv_cache is not None:
            fast.seq_rm(self.kv_cache, sequence, -1, -1)

    def copy_sequence(self, source: int, target: int) -> None:
        """Copy a whole sequence. Copying only a part would abort the process if the KV cache is split."""
        if self.kv_cache is not None:
            fast.seq_rm(self.kv_cache, target, -1, -1)
            fast.seq_cp(self.kv_cache, source, target, -1, -1)

    @property
    def can_shift(self) -> bool:
        return self.kv_cache is not None and bool(C.llama_memory_can_shift(self.kv_cache))

    def shift(self, sequence: int, begin: int, end: int, to: int) -> None:
        """Move the positions begin … end down to `to`, and remove those between `to` and `begin`."""
        C.llama_memory_seq_rm(self.kv_cache, sequence, to, begin)
        C.llama_memory_seq_add(self.kv_cache, sequence, begin, end, to - begin)

    @property
    def can_truncate(self) -> bool:
        """True if a sequence can be cut at any position. A recurrent memory contains only its latest state."""
        model = self.model.pointer
        return not (C.llama_model_is_recurrent(model) or C.llama_model_is_hybrid(model))

    def state_size(self, sequence: int) -> int:
        return int(C.llama_state_seq_get_size_ext(self.pointer, sequence, 0))

    def read_state(self, sequence: int, *, part: bool = False) -> NDArray[np.uint8] | None:
        """Return a copy of a sequence's state. None: out of host memory, or llama.cpp failed.

        `part`: only the part that cannot be cut (sliding window, recurrent state), for checkpoints.
        """
        flags = C.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if part else 0
        n_bytes = C.llama_state_seq_get_size_ext(self.pointer, sequence, flags)
        try:
            state = np.empty(n_bytes, np.uint8)
        except MemoryError:
            return None
        n_read = C.llama_state_seq_get_data_ext(self.pointer, _bytes_of(state), n_bytes, sequence, flags)
        return state if n_read == n_bytes else None

    def write_state(self, sequence: int, state: NDArray[np.uint8], *, part: bool = False) -> bool:
        """Load a sequence's state. False: no room or invalid state; then the sequence's contents are unknown."""
        flags = C.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if part else 0
        n = C.llama_state_seq_set_data_ext(self.pointer, _bytes_of(state), state.nbytes, sequence, flags)
        return bool(n == state.nbytes)

    def first_position(self, sequence: int) -> int:
        return -1 if self.kv_cache is None else int(fast.seq_pos_min(self.kv_cache, sequence))

    def last_position(self, sequence: int) -> int:
        return -1 if self.kv_cache is None else int(fast.seq_pos_max(self.kv_cache, sequence))

    def _created_with(self, o: EngineOptions) -> EngineOptions:
        return o

    def _resolved(self, o: EngineOptions) -> ResolvedContext:
        """Return the sizes of the created context. llama.cpp's own are used if they differ from the computed ones."""
        shape = o.shape.resolve(self.model.n_ctx_train)
        n_ctx, n_ctx_seq = int(C.llama_n_ctx(self.pointer)), int(C.llama_n_ctx_seq(self.pointer))
        if (n_ctx, n_ctx_seq) == (shape.n_ctx, shape.n_ctx_seq):
            return shape
        log.warning(
            "the context has %d tokens (%d per stream), and not %d (%d) as computed: the memory estimate is wrong",
            *(n_ctx, n_ctx_seq, shape.n_ctx, shape.n_ctx_seq),
        )
        return replace(shape, n_ctx=n_ctx, n_ctx_seq=n_ctx_seq, n_ctx_slot=min(n_ctx_seq, shape.n_ctx_slot))

    def _params(self, o: EngineOptions) -> Any:
        p = C.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = o.n_ctx, o.n_batch, o.n_ubatch, o.n_slots
        # A generation needs one output row, and one more for each draft token. llama.cpp's default would allocate
        # n_ubatch rows of the whole vocabulary. It aborts the process with fewer rows than sequences, even if a batch
        # is smaller than that.
        n_rows = min(o.n_batch, o.n_slots * (1 + o.drafts.longest)) if o.drafts else 0
        everything = o.embeddings or o.pooling > _POOLING_NONE
        p.n_outputs_max = max(o.n_batch if everything else n_rows, o.n_slots)
        p.n_outputs_max_per_seq = 1
        p.n_threads, p.n_threads_batch = o.n_threads, o.n_threads_batch
        p.embeddings, p.pooling_type = o.embeddings, o.pooling
        p.flash_attn_type, p.type_k, p.type_v = o.flash_attention, o.cache_type_k, o.cache_type_v
        p.offload_kqv, p.op_offload, p.swa_full, p.kv_unified = o.kv_offload, o.op_offload, o.swa_full, o.kv_unified
        p.rope_scaling_type = o.rope_scaling
        p.rope_freq_base, p.rope_freq_scale = o.rope_freq_base, o.rope_freq_scale
        p.yarn_ext_factor, p.yarn_attn_factor = o.yarn_ext_factor, o.yarn_attn_factor
        p.yarn_beta_fast, p.yarn_beta_slow, p.yarn_orig_ctx = o.yarn_beta_fast, o.yarn_beta_slow, o.yarn_orig_ctx
        p.no_perf = True
        if ABORT_TEST is not None:
            p.abort_callback = ctypes.cast(ABORT_TEST, C.ggml_abort_callback)
            p.abort_callback_data = ctypes.addressof(self._abort_flag)
        return p


class HeadContext(Context):
    """The context of an MTP head. It computes only the model's last layer; its memory can be cut at any position."""

    def __init__(self, model: Model, main: Context, options: EngineOptions) -> None:
        """`model`: the main model, or the separate file that contains the head."""
        self._main, self._options = main, options
        super().__init__(model)
        self.n_hidden = model.n_embd_out
        EXT.llama_set_embeddings_nextn(self.pointer, True, True)

    @property
    def can_truncate(self) -> bool:
        return True

    def hidden_state(self, row: int) -> NDArray[np.float32]:
        """Return a copy of the hidden state of a row, shape (n_hidden,). Raises IndexError if it has no output."""
        address = ctypes.cast(EXT.llama_get_embeddings_nextn_ith(self.pointer, row), ctypes.c_void_p).value
        if not address:
            raise IndexError(f"row {row} has no hidden state")
        return floats_at(address, self.n_hidden).copy()

    def _created_with(self, o: EngineOptions) -> EngineOptions:
        return self._options

    def _params(self, o: EngineOptions) -> Any:
        p = super()._params(self._options)
        p.ctx_type, p.ctx_other = C.LLAMA_CONTEXT_TYPE_MTP, self._main.pointer
        return p


def _unfit_to_rank(model: Model) -> str | None:
    vocab = model.vocab
    if vocab.bos < 0:
        return "its vocabulary has no BOS token"
    if vocab.eos < 0 and vocab.sep < 0 and model.template("rerank") is None:
        return "it has no EOS token, no SEP token and no rerank template"
    return None


def _bytes_of(array: NDArray[np.uint8]) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_ubyte))


def _copy(pointer: int | None, n: int) -> NDArray[np.float32] | None:
    if not pointer:
        return None
    return floats_at(pointer, n).copy()
