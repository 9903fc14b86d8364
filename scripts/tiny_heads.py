"""Writes small models with an MTP head, an additional last layer that predicts the token after the next.

Used by `make_test_models.py`. The heads are not trained. A prediction depends more on the last token, which the head
knows, than on the text before it; so the head is often right, and also often wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
from numpy.typing import NDArray
from spm import Vocabulary
from tiny_gguf import CHATML, Tensors, TinyShape, begin, finish, spm_vocabulary

Array = NDArray[np.float32]
N_EXPERTS = 2
N_CONV = 4
N_STATE = 32
N_STATE_HEADS = 2
_ABOUT = 0.3
"""Weight of the text before a token."""


class Weights(Protocol):
    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Array: ...
    def near(self, value: float, n: int) -> Array: ...


def _head(weights: Weights, block: str, n_embd: int) -> Tensors:
    token = np.eye(n_embd, dtype=np.float32)
    return {
        f"{block}.nextn.eh_proj.weight": np.concatenate([token, weights.matrix(n_embd, n_embd, _ABOUT)], axis=1),
        f"{block}.nextn.enorm.weight": weights.near(1, n_embd),
        f"{block}.nextn.hnorm.weight": weights.near(1, n_embd),
    }


def _attention(weights: Weights, block: str, shape: TinyShape, *, gated: bool) -> Tensors:
    n, n_kv, n_q = shape.n_embd, shape.n_head_kv * shape.n_head_dim, shape.n_embd * (2 if gated else 1)
    return {
        f"{block}.attn_q.weight": weights.matrix(n_q, n),
        f"{block}.attn_k.weight": weights.matrix(n_kv, n),
        f"{block}.attn_v.weight": weights.matrix(n_kv, n),
        f"{block}.attn_output.weight": weights.matrix(n, n, _ABOUT),
        f"{block}.attn_q_norm.weight": weights.near(1, shape.n_head_dim),
        f"{block}.attn_k_norm.weight": weights.near(1, shape.n_head_dim),
    }


def _norms(weights: Weights, block: str, n_embd: int) -> Tensors:
    names = ("attn_norm", "post_attention_norm")
    return {f"{block}.{name}.weight": weights.near(1, n_embd) for name in names}


def _feed_forward(weights: Weights, block: str, shape: TinyShape, kind: str = "") -> Tensors:
    return {
        f"{block}.ffn_gate{kind}.weight": weights.matrix(shape.n_ff, shape.n_embd),
        f"{block}.ffn_up{kind}.weight": weights.matrix(shape.n_ff, shape.n_embd),
        f"{block}.ffn_down{kind}.weight": weights.matrix(shape.n_embd, shape.n_ff, _ABOUT),
    }


def _experts(weights: Weights, block: str, shape: TinyShape) -> Tensors:
    def each(rows: int, columns: int, scale: float = 1.0) -> Array:
        return np.stack([weights.matrix(rows, columns, scale) for _ in range(N_EXPERTS)])

    return {
        f"{block}.ffn_gate_inp.weight": weights.matrix(N_EXPERTS, shape.n_embd),
        f"{block}.exp_probs_b.bias": weights.near(0, N_EXPERTS),
        f"{block}.ffn_gate_exps.weight": each(shape.n_ff, shape.n_embd),
        f"{block}.ffn_up_exps.weight": each(shape.n_ff, shape.n_embd),
        f"{block}.ffn_down_exps.weight": each(shape.n_embd, shape.n_ff, _ABOUT),
        **_feed_forward(weights, block, shape, "_shexp"),
    }


def _linear_attention(weights: Weights, block: str, shape: TinyShape) -> Tensors:
    n, n_inner = shape.n_embd, N_STATE * N_STATE_HEADS
    return {
        f"{block}.attn_qkv.weight": weights.matrix(3 * n_inner, n),
        f"{block}.attn_gate.weight": weights.matrix(n_inner, n),
        f"{block}.ssm_conv1d.weight": weights.matrix(3 * n_inner, N_CONV),
        f"{block}.ssm_dt.bias": weights.near(0, N_STATE_HEADS),
        f"{block}.ssm_a": -np.abs(weights.near(1, N_STATE_HEADS)),
        f"{block}.ssm_beta.weight": weights.matrix(N_STATE_HEADS, n),
        f"{block}.ssm_alpha.weight": weights.matrix(N_STATE_HEADS, n),
        f"{block}.ssm_norm.weight": weights.near(1, N_STATE),
        f"{block}.ssm_out.weight": weights.matrix(n, n_inner, _ABOUT),
    }


def write_glm4(
    path: Path, shape: TinyShape, words: Vocabulary, ends: Tensors, weights: Weights, *, layers: str = "."
) -> None:
    """Write a GLM-4 MoE model, or some of its layers: those that match the pattern `layers`.

    `ends` are the embedding and output tensors. The last layer is the head, and the only one with experts.
    """
    tensors = dict(ends)
    for layer in range(shape.n_layer):
        block, is_head = f"blk.{layer}", layer == shape.n_layer - 1
        tensors |= _norms(weights, block, shape.n_embd) | _attention(weights, block, shape, gated=False)
        tensors |= _experts(weights, block, shape) if is_head else _feed_forward(weights, block, shape)
        tensors |= _head(weights, block, shape.n_embd) if is_head else {}
    writer = gguf.GGUFWriter(path, "glm4moe")
    begin(writer, "Tiny GLM with MTP", shape, {})
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_head_dim // 2)
    writer.add_leading_dense_block_count(shape.n_layer - 1)
    writer.add_expert_count(N_EXPERTS)
    writer.add_expert_used_count(1)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(shape.n_ff)
    writer.add_nextn_predict_layers(1)
    spm_vocabulary(writer, words, CHATML, "<|im_end|>")
    tensors = {name: tensor for name, tensor in tensors.items() if re.match(rf"blk\.{layers}\.|[^b]", name)}
    finish(writer, tensors, quantize=False)


def write_qwen35(path: Path, shape: TinyShape, words: Vocabulary, ends: Tensors, weights: Weights) -> None:
    """Write a hybrid Qwen 3.5 model: every second layer is recurrent instead of attention. The last one is the head."""
    tensors = dict(ends)
    for layer in range(shape.n_layer):
        block, is_head = f"blk.{layer}", layer == shape.n_layer - 1
        tensors |= _norms(weights, block, shape.n_embd) | _feed_forward(weights, block, shape)
        if is_head or layer % 2:
            tensors |= _attention(weights, block, shape, gated=True)
        else:
            tensors |= _linear_attention(weights, block, shape)
        tensors |= _head(weights, block, shape.n_embd) if is_head else {}
    writer = gguf.GGUFWriter(path, "qwen35")
    begin(writer, "Tiny Qwen with MTP", shape, {})
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-6)
    quarter = shape.n_head_dim // 4
    writer.add_rope_dimension_count(shape.n_head_dim)
    writer.add_rope_dimension_sections([quarter // 2, quarter // 2, quarter, 0])
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_STATE * N_STATE_HEADS)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(N_STATE_HEADS)
    writer.add_ssm_group_count(N_STATE_HEADS)
    writer.add_full_attention_interval(2)
    writer.add_nextn_predict_layers(1)
    spm_vocabulary(writer, words, CHATML, "<|im_end|>")
    finish(writer, tensors, quantize=False)
