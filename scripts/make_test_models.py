"""Writes the models for the tests into a directory: random, tiny, the same bytes every time.

Usage: make_test_models.py OUTDIR

    tiny-llama.gguf        llama, 2 layers, 2048 tokens of context, vocabulary of 512 with byte fallback, ChatML
    tiny-llama-b.gguf      the same with other weights
    tiny-llama-short.gguf  training context of 256 tokens
    tiny-llama-long.gguf   training context of 131072 tokens: an answer without a limit takes a minute
    tiny-gemma3.gguf       sliding-window attention (32 tokens) in five of its six layers
    tiny-mamba.gguf        recurrent: a sequence has one state, which cannot be truncated
    tiny-glm-mtp.gguf      with an MTP head that drafts for it
    mtp-tiny-glm.gguf, tiny-glm-headless.gguf   that head alone, and the model without it
    tiny-qwen-mtp.gguf     like tiny-glm-mtp, but hybrid: every second layer is recurrent
    tiny-llama-fim.gguf    also has tokens for repositories and files, for infill
    tiny-lora.gguf, tiny-lora-b.gguf, tiny-alora.gguf   adapters for tiny-llama; "fox" activates the last one
    tiny-qwen2vl.gguf      M-RoPE: an image has fewer positions than tokens
    mmproj-gemma3.gguf, mmproj-qwen2vl.gguf, mmproj-audio.gguf   images for tiny-gemma3 (16 tokens each), tiny-qwen2vl;
                           audio for tiny-llama (150 tokens for 30 seconds)
    tiny-control.gguf      a control vector for tiny-llama's second layer
    tiny-bert.gguf         embeddings of 64 values, mean pooling
    tiny-rerank.gguf, tiny-rerank-template.gguf   tiny-bert with a ranking head, the second one with a prompt template
    sharded/…-0000n-of-00003.gguf   tiny-llama in three files
    truncated.gguf, not-a-model.gguf, empty.gguf   invalid files

Special tokens and single bytes are never likely: text is readable and ends only at a limit or a stop string.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from spm import BYTE, NORMAL, Vocabulary, learn_pieces
from tiny_adapters import write_control_vector, write_lora
from tiny_gguf import Tensors, TinyShape, write_bert, write_gemma3, write_llama, write_mamba, write_qwen2vl
from tiny_heads import write_glm4, write_qwen35
from tiny_projectors import write_gemma3_vision, write_qwen2_vision, write_ultravox_audio

Array = NDArray[np.float32]
CONTROL = ("<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
TEXT = """The quick brown fox jumps over the lazy dog while a small herd of horses stands by the fence in the morning.
Once upon a time there was a little rancher who kept many models in one corral and opened the gate for each of them.
What is the answer to this question? Write a story about the sea, the moon and the stars; then count from 1 to 9.
def main(): return {"name": "value", "list": [1, 2]} # Hello, world! I believe that the meaning of life is to live."""
ALPHABET = "".join(map(chr, range(32, 127))).replace(" ", "") + "\n\täöüéñ€日本🤠"


def vocabulary(*more_control: str) -> Vocabulary:
    control = (*CONTROL, *more_control)
    return Vocabulary(learn_pieces([TEXT], 512 - 259 - len(control), ALPHABET), control)


class Weights:
    """Random matrices, scaled so that their products keep values of about one."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Array:
        values: Array = (self._random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)
        return values

    def near(self, value: float, n: int) -> Array:
        return (value + 0.1 * self._random.standard_normal(n)).astype(np.float32)


def output_matrix(weights: Weights, words: Vocabulary, n_embd: int) -> Array:
    rows = weights.matrix(len(words), n_embd, scale=3.0)
    rows[[kind not in (NORMAL, BYTE) for kind in words.types]] = 0.0
    rows[[kind == BYTE for kind in words.types]] *= 0.1
    return rows


def end_matrices(weights: Weights, words: Vocabulary, n_embd: int) -> Tensors:
    return {
        "token_embd.weight": weights.matrix(len(words), n_embd, scale=np.sqrt(n_embd)),
        "output_norm.weight": weights.near(1, n_embd),
        "output.weight": output_matrix(weights, words, n_embd),
    }


def attention(weights: Weights, block: str, shape: TinyShape) -> Tensors:
    n_kv = shape.n_head_kv * shape.n_head_dim
    return {
        f"{block}.attn_norm.weight": weights.near(1, shape.n_embd),
        f"{block}.attn_q.weight": weights.matrix(shape.n_embd, shape.n_embd),
        f"{block}.attn_k.weight": weights.matrix(n_kv, shape.n_embd),
        f"{block}.attn_v.weight": weights.matrix(n_kv, shape.n_embd),
        f"{block}.attn_output.weight": weights.matrix(shape.n_embd, shape.n_embd),
        f"{block}.ffn_norm.weight": weights.near(1, shape.n_embd),
        f"{block}.ffn_gate.weight": weights.matrix(shape.n_ff, shape.n_embd),
        f"{block}.ffn_up.weight": weights.matrix(shape.n_ff, shape.n_embd),
        f"{block}.ffn_down.weight": weights.matrix(shape.n_embd, shape.n_ff),
    }


def decoder(seed: int, shape: TinyShape, words: Vocabulary, *, gemma: bool = False) -> Tensors:
    weights = Weights(seed)
    tensors = dict(end_matrices(weights, words, shape.n_embd))
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        tensors |= attention(weights, block, shape)
        if gemma:
            tensors[f"{block}.attn_q_norm.weight"] = weights.near(1, shape.n_head_dim)
            tensors[f"{block}.attn_k_norm.weight"] = weights.near(1, shape.n_head_dim)
            tensors[f"{block}.post_attention_norm.weight"] = weights.near(1, shape.n_embd)
            tensors[f"{block}.post_ffw_norm.weight"] = weights.near(1, shape.n_embd)
    return tensors


def recurrent(seed: int, shape: TinyShape, words: Vocabulary, n_state: int, n_conv: int) -> Tensors:
    weights = Weights(seed)
    n_inner, n_rank = shape.n_ff, shape.n_embd // 16
    tensors = dict(end_matrices(weights, words, shape.n_embd))
    decay = -np.tile(np.arange(1, n_state + 1, dtype=np.float32), (n_inner, 1))
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_norm.weight": weights.near(1, shape.n_embd),
            f"{block}.ssm_in.weight": weights.matrix(2 * n_inner, shape.n_embd),
            f"{block}.ssm_conv1d.weight": weights.matrix(n_inner, n_conv),
            f"{block}.ssm_conv1d.bias": weights.near(0, n_inner),
            f"{block}.ssm_x.weight": weights.matrix(n_rank + 2 * n_state, n_inner),
            f"{block}.ssm_dt.weight": weights.matrix(n_inner, n_rank),
            f"{block}.ssm_dt.bias": weights.near(-3, n_inner),
            f"{block}.ssm_a": decay,
            f"{block}.ssm_d": weights.near(1, n_inner),
            f"{block}.ssm_out.weight": weights.matrix(shape.n_embd, n_inner),
        }
    return tensors


def encoder(seed: int, shape: TinyShape, n_vocab: int) -> Tensors:
    weights = Weights(seed)
    n = shape.n_embd
    tensors = {
        "token_embd.weight": weights.matrix(n_vocab, n, scale=np.sqrt(n)),
        "token_types.weight": weights.matrix(2, n),
        "position_embd.weight": weights.matrix(shape.n_ctx, n),
        "token_embd_norm.weight": weights.near(1, n),
        "token_embd_norm.bias": weights.near(0, n),
    }
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", n, n),
            ("attn_k", n, n),
            ("attn_v", n, n),
            ("attn_output", n, n),
            ("ffn_up", shape.n_ff, n),
            ("ffn_down", n, shape.n_ff),
        ):
            tensors[f"{block}.{name}.weight"] = weights.matrix(rows, columns)
            tensors[f"{block}.{name}.bias"] = weights.near(0, rows)
        for name in ("attn_output_norm", "layer_output_norm"):
            tensors[f"{block}.{name}.weight"] = weights.near(1, n)
            tensors[f"{block}.{name}.bias"] = weights.near(0, n)
    return tensors


def ranking_head(seed: int, n: int) -> Tensors:
    weights = Weights(seed)
    return {
        "cls.weight": weights.matrix(n, n),
        "cls.bias": weights.near(0, n),
        "cls.output.weight": weights.matrix(1, n, scale=3.0),
        "cls.output.bias": weights.near(0, 1),
    }


def low_rank(seed: int, shape: TinyShape, rank: int = 4) -> dict[str, tuple[Array, Array]]:
    """Return LoRA pairs for the feed-forward output of every layer; the change is about as large as the weights."""
    weights = Weights(seed)
    return {
        f"blk.{layer}.ffn_down.weight": (weights.matrix(rank, shape.n_ff, 6.0), weights.matrix(shape.n_embd, rank, 2.0))
        for layer in range(shape.n_layer)
    }


def write_additions(out: Path, shape: TinyShape, words: Vocabulary) -> None:
    """Write the LoRA adapters and the control vector for tiny-llama."""
    about = {"task_name": "test", "prompt_prefix": "Say: "}
    write_lora(out / "tiny-lora.gguf", "llama", low_rank(11, shape), alpha=4.0, about=about)
    write_lora(out / "tiny-lora-b.gguf", "llama", low_rank(12, shape), alpha=4.0)
    write_lora(out / "tiny-alora.gguf", "llama", low_rank(13, shape), alpha=4.0, invocation=words.encode(" fox"))
    write_control_vector(out / "tiny-control.gguf", {"direction.1": Weights(14).near(0, shape.n_embd) * 30})


def write_readers(out: Path, shape: TinyShape, words: Vocabulary) -> None:
    """Write tiny-qwen2vl and the projectors."""
    biases = Weights(31)
    tensors = dict(decoder(30, shape, words))
    for layer in range(shape.n_layer):
        for name, n in (("q", shape.n_embd), ("k", shape.n_embd // 2), ("v", shape.n_embd // 2)):
            tensors[f"blk.{layer}.attn_{name}.bias"] = biases.near(0, n)
    write_qwen2vl(out / "tiny-qwen2vl.gguf", "Tiny Qwen2 VL", shape, words, tensors)
    write_gemma3_vision(out / "mmproj-gemma3.gguf", Weights(32), shape.n_embd)
    write_qwen2_vision(out / "mmproj-qwen2vl.gguf", Weights(33), shape.n_embd)
    write_ultravox_audio(out / "mmproj-audio.gguf", Weights(34), shape.n_embd)


def write_heads(out: Path, words: Vocabulary) -> None:
    """Write the models with MTP heads: the last of their three layers is the head."""
    shape = TinyShape(n_layer=3, n_embd=64, n_head=2, n_head_kv=1, n_ff=96, n_ctx=2048)
    for seed, (name, write) in enumerate({"glm": write_glm4, "qwen": write_qwen35}.items(), 30):
        weights = Weights(seed)
        ends = end_matrices(weights, words, shape.n_embd)
        write(out / f"tiny-{name}-mtp.gguf", shape, words, ends, weights)
    for name, layers in {"mtp-tiny-glm": "2", "tiny-glm-headless": "[01]"}.items():
        weights = Weights(30)
        ends = end_matrices(weights, words, shape.n_embd)
        write_glm4(out / f"{name}.gguf", shape, words, ends, weights, layers=layers)


def wordpieces(words: Vocabulary) -> list[str]:
    """Return the BERT vocabulary: all pieces in lower case, each with and without a leading ▁."""
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    for piece in words.rank:
        lower = piece.lower()
        if lower.strip("▁\n\t"):
            pieces[lower] = pieces["▁" + lower.lstrip("▁")] = None
    return list(pieces)


def main(out: Path) -> None:
    words = vocabulary()
    small = TinyShape(n_layer=2, n_embd=64, n_head=4, n_head_kv=2, n_ff=128, n_ctx=2048)
    long = TinyShape(n_layer=2, n_embd=64, n_head=4, n_head_kv=2, n_ff=128, n_ctx=131072)
    short = TinyShape(n_layer=2, n_embd=64, n_head=4, n_head_kv=2, n_ff=128, n_ctx=256)
    windowed = TinyShape(n_layer=6, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_ctx=1024)
    bert = TinyShape(n_layer=2, n_embd=64, n_head=4, n_head_kv=4, n_ff=128, n_ctx=512)
    (out / "sharded").mkdir(parents=True, exist_ok=True)

    first = decoder(1, small, words)
    write_llama(out / "tiny-llama.gguf", "Tiny Llama", small, words, first)
    write_llama(out / "tiny-llama-b.gguf", "Tiny Llama B", small, words, decoder(2, small, words))
    write_llama(out / "tiny-llama-short.gguf", "Tiny Llama Short", short, words, decoder(3, short, words))
    write_llama(out / "tiny-llama-long.gguf", "Tiny Llama Long", long, words, first)
    write_llama(out / "sharded" / "tiny-llama.gguf", "Tiny Llama", small, words, first, max_tensors_per_file=9)
    swa = decoder(4, windowed, words, gemma=True)
    write_gemma3(out / "tiny-gemma3.gguf", "Tiny Gemma3", windowed, words, swa, window=32)
    states = recurrent(20, small, words, n_state=16, n_conv=4)
    write_mamba(out / "tiny-mamba.gguf", "Tiny Mamba", small, words, states, n_state=16, n_conv=4)
    pieces = wordpieces(words)
    encoding = encoder(5, bert, len(pieces))
    write_bert(out / "tiny-bert.gguf", "Tiny Bert", bert, pieces, encoding)
    ranking = {**encoding, **ranking_head(6, bert.n_embd)}
    rank = gguf.PoolingType.RANK
    write_bert(out / "tiny-rerank.gguf", "Tiny Rerank", bert, pieces, ranking, pooling=rank)
    write_bert(
        out / "tiny-rerank-template.gguf", "Tiny Rerank", bert, pieces, ranking,
        pooling=rank, rerank_template="[CLS]{document} answers {query}[SEP]",
    )  # fmt: skip
    fim = vocabulary("<|repo_name|>", "<|file_sep|>")
    write_llama(out / "tiny-llama-fim.gguf", "Tiny Llama FIM", small, fim, decoder(7, small, fim))
    write_additions(out, small, words)
    write_readers(out, small, words)
    write_heads(out, words)

    whole = (out / "tiny-llama.gguf").read_bytes()
    (out / "truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (out / "not-a-model.gguf").write_text("This is a text file, whatever its name says.\n" * 20)
    (out / "empty.gguf").write_bytes(b"")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
