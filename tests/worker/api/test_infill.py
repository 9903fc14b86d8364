"""Infill: the order of the prompt's parts, their truncation, and models without infill tokens."""

from __future__ import annotations

from typing import Any

import pytest
from llama_corral.worker.api.infill import ContextFile, InfillBudget, InfillParts, infill_prompt
from programs import Program, Programs, post

ASK = {"input_prefix": "def main():\n", "input_suffix": "}\n", "prompt": "return", "n_predict": 4, "temperature": 0}


class Letters:
    """A vocabulary with one token per letter, and special tokens with higher ids."""

    bos, fim_pre, fim_suf, fim_mid, fim_rep, fim_sep = range(1000, 1006)
    add_bos = True
    n_vocab = 2000

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        assert not add_special
        return list(map(ord, text))


NAMES = dict(enumerate(["<bos>", "<pre>", "<suf>", "<mid>", "<rep>", "<sep>"], 1000))
ROOM = InfillBudget(400, 400)
PARTS = InfillParts("PREFIX", "SUFFIX", "go", (ContextFile("a.py", "one"), ContextFile("b.py", "two")))


def prompt(parts: InfillParts = PARTS, room: InfillBudget = ROOM, *, spm: bool = False, **changes: Any) -> str:
    vocab = type("Vocab", (Letters,), changes)()
    tokens = infill_prompt(parts, vocab, room, spm=spm)
    return "".join(NAMES.get(token) or chr(token) for token in tokens)


def test_prefix_suffix_middle() -> None:
    alone = InfillParts("PREFIX", "SUFFIX", "go", ())
    assert prompt(alone, fim_rep=-1, fim_sep=-1) == "<bos><pre>PREFIXgo<suf>SUFFIX<mid>"
    assert prompt(alone, fim_rep=-1, fim_sep=-1, spm=True) == "<bos><suf>SUFFIX<pre>PREFIXgo<mid>"
    assert prompt(alone, fim_rep=-1, fim_sep=-1, add_bos=False) == "<pre>PREFIXgo<suf>SUFFIX<mid>"


def test_files_precede_the_prefix() -> None:
    middle = "<bos><pre>PREFIXgo<suf>SUFFIX<mid>"
    assert prompt() == f"<rep>myproject\n<sep>a.py\none<sep>b.py\ntwo<sep>filename\n{middle}"
    snippet = "\n\n--- snippet ---\n\n"
    assert prompt(fim_rep=-1, fim_sep=-1) == f"{snippet}one{snippet}two{middle}"


def test_parts_that_do_not_fit_are_truncated() -> None:
    parts = InfillParts("abcdefghij", "ABCDEFGHIJ", "go", ())
    assert prompt(parts, InfillBudget(10, 0)) == "<bos><pre>efghijgo<suf><mid>", (
        "a suffix gets a quarter less prompt less 2"
    )
    assert prompt(parts, InfillBudget(24, 4)) == "ame\n<bos><pre>abcdefghijgo<suf>AB<mid>"


def test_texts_and_tokens_may_be_mixed() -> None:
    assert prompt(InfillParts(["x", 65], [66], "", ()), fim_rep=-1, fim_sep=-1) == "<bos><pre>xA<suf>B<mid>"


def ask(program: Program, body: Any, status: int = 200) -> Any:
    return post(program, "/infill", body, status)


def test_the_answer_has_the_format_of_a_completion(worker: Program) -> None:
    shown = ask(worker, ASK)
    assert shown["prompt"] == "<s><|fim_prefix|>def main():\nreturn<|fim_suffix|>}\n<|fim_middle|>"
    assert shown["tokens_predicted"] == 4
    same = worker.client.post("/completion", json={**ASK, "prompt": shown["prompt"].removeprefix("<s>")}).json()
    assert (same["tokens_evaluated"], same["content"]) == (shown["tokens_evaluated"], shown["content"])
    lines = worker.client.post("/infill", json={**ASK, "stream": True}).text.splitlines()
    assert sum(line.startswith("data: ") for line in lines) >= 2


def test_a_repository_with_several_files(programs: Programs) -> None:
    program = programs.worker("--ctx-size", "512", "--parallel", "1", "-b", "128", model="tiny-llama-fim.gguf")
    extra = [{"filename": "sea.py", "text": "# the sea"}, {"text": "stars"}]
    shown = ask(program, {**ASK, "input_extra": extra})["prompt"]
    assert shown.startswith("<|repo_name|>myproject\n<|file_sep|>sea.py\n# the sea<|file_sep|>tmp\nstars<|file_sep|>")
    many = ask(program, {**ASK, "input_extra": [{"text": "the sea, the moon and the stars; " * 99}]})
    n_files = 512 - 128 + 2
    assert many["tokens_evaluated"] == n_files + ask(program, ASK)["tokens_evaluated"] - _n_context(program)
    with_spm = programs.worker("--spm-infill", "--ctx-size", "512", model="tiny-llama.gguf")
    assert ask(with_spm, ASK)["prompt"].startswith("<s><|fim_suffix|>}\n<|fim_prefix|>def")


def _n_context(program: Program) -> int:
    text = "<|repo_name|>myproject\n<|file_sep|>filename\n"
    return len(program.client.post("/tokenize", json={"content": text}).json()["tokens"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_prefix": None}, '"input_prefix" is required'),
        ({"input_suffix": None}, '"input_suffix" is required'),
        ({"prompt": 5}, '"prompt" must be a string'),
        ({"input_extra": {}}, '"input_extra" must be an array of {"filename": string, "text": string}'),
        ({"input_extra": [{}]}, 'extra_context chunk must contain a "text" field with a string value'),
        ({"input_extra": [5]}, 'extra_context chunk must contain a "text" field with a string value'),
        ({"input_extra": [{"text": "x", "filename": 1}]}, 'extra_context chunk\'s "filename" field must be a string'),
        ({"input_prefix": 5}, "text must be a string or an array of strings and tokens, but is number"),
        ({"n_predict": "x"}, "n_predict"),
    ],
)
def test_wrong_requests(worker: Program, change: dict[str, Any], message: str) -> None:
    assert message in ask(worker, {**ASK, **change}, status=400)["error"]["message"]


def test_a_model_without_infill_tokens_is_refused(embedder: Program) -> None:
    assert ask(embedder, ASK, status=501)["error"]["message"] == (
        "Infill is not supported by this model: prefix token is missing. suffix token is missing. "
        "middle token is missing. "
    )
