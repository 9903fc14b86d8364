"""What a model can do, from its file and its options: one answer for everything that router and worker list or show.

Ollama's names. Reads no file but that of `--chat-template-file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama_corral.common.base.user_files import read_text_of
from llama_corral.common.hub.model_card import ModelCard

if TYPE_CHECKING:
    from .options.settings import Settings


def abilities(card: ModelCard, settings: Settings, modalities: Sequence[str]) -> list[str]:
    """Return the abilities of a model with these options. `modalities`: its inputs other than text.

    Raises ConfigError if the file of the chat template cannot be read.
    """
    return card.capabilities(
        embeds=embeds_texts(settings),
        ranks=ranks(settings),
        modalities=modalities,
        template=(template_source(settings, card.template) or "") if settings.chat.jinja else "",
    )


def embeds_texts(settings: Settings) -> bool:
    """Return True if a chat model also returns one vector for each text: without a pooling there is one per token."""
    return settings.endpoints.embeddings and settings.endpoints.pooling not in (None, "none")


def ranks(settings: Settings) -> bool:
    """Return True if the model is used only to rank texts."""
    endpoints = settings.endpoints
    return endpoints.reranking or (endpoints.embeddings and endpoints.pooling == "rank")


def template_source(settings: Settings, of_model: str | None, *, may_wait: bool = False) -> str | None:
    """Return the template of `--chat-template-file`, `--chat-template` (text or a known name) or else the model.

    `may_wait`: the file may be a pipe, whose end is waited for. Raises ConfigError if the file cannot be read.
    """
    if not settings.chat.chat_template_file:
        return settings.chat.chat_template or of_model
    return read_text_of("--chat-template-file", settings.chat.chat_template_file, may_wait=may_wait)
