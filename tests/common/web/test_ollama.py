"""Ollama's dialect: durations, dates, names of models, and descriptions of models that are not loaded."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ContextExceeded, InvalidRequest, ModelNotFound, NoCapacity
from llama_corral.common.hub.model_card import ModelCard, read_card
from llama_corral.common.web.ollama import FOREVER_S, expiry_text, ollama_error, ollama_status, read_keep_alive
from llama_corral.common.web.ollama_models import listed_name, possible_names, show, size_text, tag_entry


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), (".5s", 0.5), ("100ms", 0.1), ("24h0m0s", 86400), ("0", 0),
        (0, 0), (300, 300), (2.5, 2.5), ("300", 300), (-1, -1), ("-1", -1), ("-5m", -1), ("-1s", -1), (1e300, -1),
    ],
)  # fmt: skip
def test_keep_alive(given: object, seconds: float) -> None:
    assert read_keep_alive(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "5x", "m", "5 m", "1e5", "٣", "five", True, None, [], {}, float("nan"), 10**310])
def test_invalid_durations_are_refused(given: object) -> None:
    with pytest.raises(InvalidRequest, match="keep_alive: expected seconds"):
        read_keep_alive(given)


@given(st.text() | st.floats() | st.integers())
def test_any_keep_alive_is_read_or_refused(given: object) -> None:
    try:
        seconds = read_keep_alive(given)
    except InvalidRequest:
        return
    assert seconds == -1 or 0 <= seconds < FOREVER_S
    datetime.fromisoformat(expiry_text(1.7e9, seconds))


def test_errors_are_texts_with_statuses_of_ollama() -> None:
    assert (ollama_status(ModelNotFound("x")), ollama_error(ModelNotFound("x"))) == (
        404,
        {"error": "model 'x' not found"},
    )
    assert ollama_status(ContextExceeded(9, 4)) == 400
    assert (ollama_status(NoCapacity("full")), NoCapacity("full").retry_after) == (503, None)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("demo-chat", "demo-chat"), ("demo-chat:latest", "demo-chat"), ("hf.co/me/repo:q4_k_m", "me/repo:Q4_K_M"),
        ("me/repo", "me/repo:Q4_K_M"), ("me/repo:latest", "me/repo:Q8_0"), ("huggingface.co/me/repo", "me/repo:Q8_0"),
    ],
)  # fmt: skip
def test_possible_names_of_a_model(asked: str, meant: str) -> None:
    names = list(possible_names(asked))
    assert names[0] == asked
    assert meant in names


def test_names_are_listed_with_a_tag() -> None:
    assert [listed_name(name) for name in ("demo-chat", "me/repo:Q8_0")] == ["demo-chat:latest", "me/repo:Q8_0"]


@pytest.mark.parametrize(
    ("count", "text"), [(8_030_000_000, "8.0B"), (134_520_000, "134.52M"), (349_000, "349K"), (12, "12"), (0, "")]
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


# -- cards -----------------------------------------------------------------------------------------------------------


def test_card_of_a_file(models: Path) -> None:
    card = read_card(models / "tiny-llama-fim.gguf")
    entry = tag_entry("fim", card)
    assert entry["size"] == (models / "tiny-llama-fim.gguf").stat().st_size
    assert len(entry["digest"]) == 64
    assert entry["details"]["family"] == "llama"
    assert entry["details"]["parameter_size"].endswith("K")
    assert card.capabilities() == ["completion", "insert"]
    assert card.capabilities(template="{% for tool in tools %}<think>", modalities=["image"])[1:] == [
        "tools", "insert", "vision", "thinking",
    ]  # fmt: skip
    assert read_card(models / "tiny-bert.gguf").capabilities() == ["embedding"]
    assert card.capabilities(embeds=True) == ["completion", "insert", "embedding"]
    assert card.capabilities(ranks=True) == []


def test_card_of_several_files_and_of_the_hub(models: Path, tmp_path: Path) -> None:
    parts = sorted((models / "sharded").iterdir())
    assert read_card(parts[0]).size == sum(part.stat().st_size for part in parts)
    whole = read_card(models / "tiny-llama.gguf")
    assert read_card(parts[0]).n_params == whole.n_params
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes((models / "tiny-llama.gguf").read_bytes())
    (tmp_path / "model.gguf").symlink_to(blob)
    assert read_card(tmp_path / "model.gguf").digest == blob.name


@pytest.mark.parametrize("name", ["truncated.gguf", "not-a-model.gguf", "empty.gguf", "missing.gguf"])
def test_an_unreadable_file_has_an_empty_card(models: Path, name: str) -> None:
    card = read_card(models / name)
    assert (card.size, card.digest) == (0, "")
    assert tag_entry("x", card)["details"]["families"] == []
    assert read_card(None) == ModelCard()


def test_show(models: Path) -> None:
    card = read_card(models / "tiny-llama.gguf")
    options = {"temperature": "0.5", "ctx_size": "512", "threads": "3"}
    shown = show("tiny", card, capabilities=["completion"], parameters=options, template="{{ x }}", verbose=False)
    assert shown["parameters"].split() == ["num_ctx", "512", "temperature", "0.5"]
    assert 'TEMPLATE """{{ x }}"""' in shown["modelfile"]
    assert "PARAMETER temperature 0.5" in shown["modelfile"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["general.parameter_count"] == card.n_params
