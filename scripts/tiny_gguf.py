"""Writes small GGUF files of five architectures from plain arrays; used by `make_test_models.py` and `train_demo.py`.

Arrays have the layout that gguf expects (rows are outputs) and are already permuted for llama.cpp's RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from spm import Vocabulary

Tensors = Mapping[str, NDArray[np.float32]]

ADDED_TABLES = ("position_embd.weight", "token_types.weight")  # llama.cpp adds their rows directly: never quantized
FIM_TOKENS = {
    "pre": "<|fim_prefix|>",
    "suf": "<|fim_suffix|>",
    "mid": "<|fim_middle|>",
    "rep": "<|repo_name|>",
    "sep": "<|file_sep|>",
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ctx: int

    @property
    def n_head_dim(self) -> int:
        return self.n_embd // self.n_head


def begin(writer: gguf.GGUFWriter, name: str, shape: TinyShape, about: Mapping[str, str]) -> None:
    writer.add_name(name)
    for key, value in about.items():
        writer.add_string(f"general.{key}", value)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)


def finish(writer: gguf.GGUFWriter, tensors: Tensors, quantize: bool) -> None:
    """Add the tensors, write the file and close it.

    With `quantize`, matrices whose row length is a multiple of 32 are stored as Q8_0, all others as float32.
    """
    mostly = gguf.LlamaFileType.MOSTLY_Q8_0 if quantize else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(mostly)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tensors.items():
        plain = np.ascontiguousarray(tensor, dtype=np.float32)
        if quantize and plain.ndim == 2 and plain.shape[1] % 32 == 0 and name not in ADDED_TABLES:
            packed = gguf.quants.quantize(plain, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, plain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def spm_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, template: str, end_of_turn: str | None) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_vocab_size(len(vocabulary))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if end_of_turn:
        writer.add_eot_token_id(vocabulary.id[end_of_turn])
    for key, token in FIM_TOKENS.items():
        if token in vocabulary.id:
            writer.add_uint32(f"tokenizer.ggml.fim_{key}_token_id", vocabulary.id[token])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)


def write_llama(
    path: Path,
    name: str,
    shape: TinyShape,
    vocabulary: Vocabulary,
    tensors: Tensors,
    *,
    template: str = CHATML,
    end_of_turn: str | None = "<|im_end|>",
    about: Mapping[str, str] | None = None,
    quantize: bool = False,
    max_tensors_per_file: int = 0,
) -> None:
    """Write a llama model; with `max_tensors_per_file` > 0 as several files `<stem>-00001-of-0000n.gguf` …"""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=max_tensors_per_file)
    begin(writer, name, shape, about or {})
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_head_dim)
    writer.add_rope_freq_base(10000.0)
    spm_vocabulary(writer, vocabulary, template, end_of_turn)
    finish(writer, tensors, quantize)


def write_qwen2vl(path: Path, name: str, shape: TinyShape, vocabulary: Vocabulary, tensors: Tensors) -> None:
    """Write a model with M-RoPE, whose positions have time, height and width."""
    writer = gguf.GGUFWriter(path, "qwen2vl")
    begin(writer, name, shape, {})
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_sections([shape.n_head_dim // 8, shape.n_head_dim // 8, shape.n_head_dim // 4, 0])
    spm_vocabulary(writer, vocabulary, CHATML, "<|im_end|>")
    finish(writer, tensors, quantize=False)


def write_gemma3(
    path: Path, name: str, shape: TinyShape, vocabulary: Vocabulary, tensors: Tensors, *, window: int
) -> None:
    """Write a model in which five of six layers attend only to the last `window` positions."""
    writer = gguf.GGUFWriter(path, "gemma3")
    begin(writer, name, shape, {})
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.n_head_dim)
    writer.add_value_length(shape.n_head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(window)
    spm_vocabulary(writer, vocabulary, CHATML, "<|im_end|>")
    finish(writer, tensors, quantize=False)


def write_mamba(
    path: Path, name: str, shape: TinyShape, vocabulary: Vocabulary, tensors: Tensors, *, n_state: int, n_conv: int
) -> None:
    """Write a recurrent model: it has one state per sequence and no earlier ones. `shape.n_ff` is its inner size."""
    writer = gguf.GGUFWriter(path, "mamba")
    begin(writer, name, shape, {})
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(n_conv)
    writer.add_ssm_inner_size(shape.n_ff)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(shape.n_embd // 16)
    spm_vocabulary(writer, vocabulary, CHATML, "<|im_end|>")
    finish(writer, tensors, quantize=False)


def write_bert(
    path: Path,
    name: str,
    shape: TinyShape,
    tokens: list[str],
    tensors: Tensors,
    *,
    pooling: gguf.PoolingType = gguf.PoolingType.MEAN,
    about: Mapping[str, str] | None = None,
    rerank_template: str | None = None,
    quantize: bool = False,
) -> None:
    """Write a BERT model. `tokens` begins with [PAD] [UNK] [CLS] [SEP] [MASK]; pieces that begin a word have a ▁."""
    writer = gguf.GGUFWriter(path, "bert")
    begin(writer, name, shape, about or {})
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("[") and len(token) > 1 else 1 for token in tokens])
    writer.add_token_type_count(2)
    writer.add_vocab_size(len(tokens))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    if rerank_template is not None:
        writer.add_string("tokenizer.chat_template.rerank", rerank_template)
    finish(writer, tensors, quantize)
