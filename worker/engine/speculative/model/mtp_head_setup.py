"""Creates the context of an MTP head, after checking that it can be used. Called by `speculation_setup`."""

from __future__ import annotations

from collections.abc import Callable

from llama_corral.common.hub.gguf_header import has_mtp_head
from msgspec.structs import replace

from ...llama.context import Context, HeadContext
from ...llama.errors import LoadError
from ...llama.llama import C
from ...llama.model import Model
from ...llama.options import EngineOptions, SpeculationOptions
from .mtp_head import DraftHead

ARCHITECTURES = frozenset(
    {
        "bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe", "hy_v3", "mimo2",
        "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next", "step35",
    }
)  # fmt: skip
"""Architectures whose head llama.cpp can compute. For other heads it ends the process instead of returning an error."""


def draft_head(
    o: SpeculationOptions, main: Model, main_context: Context, on_progress: Callable[[float], None]
) -> DraftHead:
    assert o.head is not None
    options = replace(o.head, n_ctx=main_context.n_ctx)
    if options.model == main.options.model:
        on_progress(0.0)
        head = _with_model(None, main, main_context, options, o)
        on_progress(1.0)
        return head
    model = Model(options, on_progress)
    try:
        return _with_model(model, main, main_context, options, o)
    except BaseException:
        model.close()
        raise


def _with_model(
    own: Model | None, main: Model, main_context: Context, options: EngineOptions, o: SpeculationOptions
) -> DraftHead:
    model = own or main
    if problem := _problem(model, main, main_context):
        raise LoadError(f"'{options.model}' cannot draft with an MTP head: {problem}")
    context = HeadContext(model, main_context, options)
    main_context.enable_hidden_states()
    return DraftHead(context, main_context, o.n_max, o.n_min, o.p_min, own)


def _problem(model: Model, main: Model, main_context: Context) -> str | None:
    architecture, wanted = (each.metadata().get("general.architecture", "") for each in (model, main))
    n_heads = C.llama_model_n_layer_nextn(model.pointer)
    if architecture == "gemma4-assistant":
        return "it uses the main model's memory, which is not supported"
    if n_heads == 0 or not _is_there(model):
        return "it has none"
    if architecture not in ARCHITECTURES:
        return f"llama.cpp cannot compute the head of the architecture {architecture}"
    if n_heads > 1:
        return f"it has a chain of {n_heads} heads, which is not supported"
    sizes = (model.n_embd_out, model.vocab.n_vocab)
    if architecture != wanted or sizes != (main.n_embd_out, main.vocab.n_vocab):
        return f"it was made for another model than '{main.options.model}'"
    if main_context.pooling_name != "none":
        return "the main model's outputs are pooled"
    return None


def _is_there(model: Model) -> bool:
    """Return True if the file contains the head's tensors; the shards of a split file are not searched.

    The metadata may mention a head that the file does not contain; loading it, llama.cpp ends the process.
    """
    is_split = model.metadata().get("split.count", "0") not in ("0", "1")
    return is_split or has_mtp_head(model.options.model)
