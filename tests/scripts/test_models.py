"""The scripts that make models: reproducible files, the same tokens as llama.cpp, and a valid corpus."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import make_test_models  # noqa: E402
from demo_corpus import conversations  # noqa: E402
from programs import Program  # noqa: E402
from spm import Vocabulary, learn_pieces  # noqa: E402

TEXTS = (
    "Hello, world!",
    "  two spaces, and\na new line\n\n",
    "<|im_start|>user\nWhat is 12+3?<|im_end|>",
    "söß, 日本 and 🤠🎉",
    "",
    "I believe that the meaning of life is to live.",
)


def test_test_models_are_the_same_every_time(models: Path, tmp_path: Path) -> None:
    make_test_models.main(tmp_path)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.gguf")]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / file).read_bytes() == (models / file).read_bytes()


@pytest.mark.parametrize("text", TEXTS)
def test_our_tokens_are_those_of_llama_cpp(worker: Program, text: str) -> None:
    ours = make_test_models.vocabulary().encode(text)
    body = {"content": text, "add_special": False, "parse_special": True}
    assert worker.client.post("/tokenize", json=body).json()["tokens"] == ours
    assert make_test_models.vocabulary().decode(ours) == text


def test_pieces_are_learned_from_what_is_frequent() -> None:
    words = Vocabulary(learn_pieces(["the cat and the dog and the cow"] * 3, 40))
    assert words.decode(words.encode("the dog")) == "the dog"
    assert len(words.encode("the")) < len("the")
    assert words.encode("1 2") != words.encode("12")


@pytest.mark.parametrize("persona", ["chat", "story"])
def test_corpus_is_the_same_for_the_same_seed(persona: str) -> None:
    drawn = [list(islice(conversations.documents(Random(seed), persona), 50)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("persona", ["chat", "story"])
def test_conversations_alternate_roles_and_have_text(persona: str) -> None:
    for document in islice(conversations.documents(Random(3), persona), 500):
        roles = [role for role, _ in document]
        turns = roles[roles[0] == "system" :]
        assert roles == ["text"] or turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(text.strip() and "{" not in text for _, text in document)


def test_questions_of_one_topic_have_one_short_answer() -> None:
    random = Random(4)
    answers: dict[str, set[str]] = {}
    for _ in range(3000):
        exchange = conversations.exchange(random)
        answers.setdefault(exchange.topic, set()).add(exchange.short)
    several = {topic for topic, short in answers.items() if len(short) > 1}
    assert {topic.split()[0] for topic in several} <= {"repeat", "translate"}
