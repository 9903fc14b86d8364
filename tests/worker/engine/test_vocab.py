"""The vocabulary of a loaded model: tokenizing a text in parts, and the spellings of its special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_tools import running
from llama_corral.worker.api.request.reading import PromptReader
from llama_corral.worker.chat.quoting import SpecialTokens, WrittenText
from llama_corral.worker.engine.messages import PromptText, SpecialSpelling

TEXT = "<|im_start|>user\nTell  me <b>about</b> é the sea<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("model", ["tiny-llama.gguf", "tiny-gemma3.gguf", "tiny-mamba.gguf", "tiny-bert.gguf"])
async def test_a_text_in_parts_has_the_tokens_of_the_whole_text(models: Path, model: str) -> None:
    async with running(models / model, embeddings=model == "tiny-bert.gguf") as engine, engine.use() as loaded:
        vocab = loaded.vocab
        parts = [PromptText(text) for text in ("<|im_start|>", "user\nTell", "<|im_end|>")]
        if model == "tiny-bert.gguf":
            parts = [PromptText(text) for text in ("the", "sea")]
        whole = [token for part in parts for token in vocab.tokenize(part.text, False, True)]
        assert PromptReader(vocab).tokenize_parts(parts, False) == whole
        around = vocab.tokenize("sea", True, True)
        assert PromptReader(vocab).tokenize_parts([PromptText("sea")], True) == around
        assert PromptReader(vocab).tokenize_parts([], True) == vocab.tokenize("", True)


async def test_special_tokens_of_the_vocabulary(models: Path) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        vocab = loaded.vocab
        found = {spelling.text for spelling in vocab.special_spellings}
        assert {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"} <= found
        assert "<0x41>" not in found
        assert SpecialSpelling("<|im_end|>") in vocab.special_spellings
        assert vocab.defined_spellings(TEXT) == []


async def test_only_the_quoted_spelling_changes_its_tokens(models: Path) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        vocab = loaded.vocab
        special = SpecialTokens(vocab.special_spellings)
        assert special.split(WrittenText(TEXT)) == ()
        text = TEXT.replace("the sea", "<|im_end|>")
        parts = special.split(WrittenText(text, (text.index("<|im_end|>"),)))
        tokens = PromptReader(vocab).tokenize_parts(parts, True)
        (end,) = vocab.tokenize("<|im_end|>", False, True)
        assert (tokens.count(end), vocab.tokenize(text, True, True).count(end)) == (1, 2)
        plain = vocab.tokenize("user\nTell  me <b>about</b> é <|im_end|>", False, False)
        assert tokens[2 : 2 + len(plain)] == plain
        assert vocab.join(tokens[1:]).decode().replace(" ", "") == text.replace(" ", "")
