"""Makes the models for the benchmark: random llamas, deterministic, in Q8_0, stored in a cache folder.

Random weights cost as much time as trained ones, and their flat distribution is the expensive case for sampling.
Control and byte tokens have embeddings of zeros, so their logits are 0 and top-k excludes them from the text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_VOCAB = 32_000
N_SPECIAL = 3 + 256  # unknown, begin, end, and one token per byte
FIRST_WORD = N_SPECIAL
FORMAT = 1  # increase it when the content of a model changes; then cached files are made again
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


@dataclass(frozen=True)
class LlamaShape:
    """The size of a random llama; models of the same size differ by their `seed`."""

    name: str
    n_embd: int
    n_layer: int
    n_head: int
    n_ff: int
    tied: bool
    seed: int


LARGE = LlamaShape("large", n_embd=768, n_layer=12, n_head=12, n_ff=2048, tied=False, seed=1)  # 134 M parameters
OTHER = LlamaShape("other", n_embd=768, n_layer=12, n_head=12, n_ff=2048, tied=False, seed=2)
TINY = LlamaShape(
    "tiny", n_embd=64, n_layer=2, n_head=4, n_ff=128, tied=True, seed=3
)  # 2 M: mostly overhead is measured


def model_file(shape: LlamaShape, folder: Path) -> Path:
    """Return the path of the model; make it first if it does not exist."""
    path = folder / f"{shape.name}-{FORMAT}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        write_model(shape, partial)
        partial.replace(path)
    return path


def write_model(shape: LlamaShape, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random llama, {shape.name}")
    writer.add_context_length(32_768)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocab(writer)
    _add_tensors(writer, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def words() -> list[str]:
    """Return all text tokens after the byte tokens, letters first, so that every lower-case text can be merged."""
    texts = ["▁", *map(chr, range(ord("a"), ord("z") + 1)), *SYLLABLES]
    texts += ["▁" + syllable for syllable in SYLLABLES]
    texts += [a + b for a in SYLLABLES for b in SYLLABLES]
    texts += ["▁" + a + b for a in SYLLABLES for b in SYLLABLES]
    texts += ["▁" + a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
    return texts[: N_VOCAB - N_SPECIAL]


def _add_vocab(writer: gguf.GGUFWriter) -> None:
    texts = words()
    kind = gguf.TokenType
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * len(texts)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *texts])
    writer.add_token_scores([0.0] * N_SPECIAL + [-float(rank) for rank in range(len(texts))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _add_tensors(writer: gguf.GGUFWriter, shape: LlamaShape) -> None:
    rng = np.random.default_rng(shape.seed)

    def add_matrix(name: str, rows: int, columns: int) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * 0.02
        if rows == N_VOCAB:
            weights[:N_SPECIAL] = 0
        packed: Any = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.n_embd, dtype=np.float32))

    add_matrix("token_embd.weight", N_VOCAB, shape.n_embd)
    add_norm("output_norm.weight")
    if not shape.tied:
        add_matrix("output.weight", N_VOCAB, shape.n_embd)
    for layer in range(shape.n_layer):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add_matrix(f"blk.{layer}.{part}.weight", shape.n_embd, shape.n_embd)
        add_matrix(f"blk.{layer}.ffn_gate.weight", shape.n_ff, shape.n_embd)
        add_matrix(f"blk.{layer}.ffn_up.weight", shape.n_ff, shape.n_embd)
        add_matrix(f"blk.{layer}.ffn_down.weight", shape.n_embd, shape.n_ff)
        add_norm(f"blk.{layer}.attn_norm.weight")
        add_norm(f"blk.{layer}.ffn_norm.weight")
