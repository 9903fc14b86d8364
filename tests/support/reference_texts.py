"""Greedy texts that llama-server wrote for a real model, and how to compare other texts with them.

    python tests/support/reference_texts.py path/to/llama-server path/to/model.gguf

writes tests/end_to_end/reference/<model>.json again. The server computes on the CPU, with one slot and one thread. It
must be of the llama.cpp commit that llama-cpp-python contains.

The same model does not give the same logits everywhere: the order of additions depends on the processor's kernels and
on the batch, so the likelihoods of two tokens that are almost the same can change places. The record is of one
processor, an x86-64 with AVX-512. It therefore has, for each text, the near ties: the tokens that were nearly as likely
as the chosen one. A text matches the record if it is equal to it, or if it leaves it at a near tie, with that token.
All that follows is then another text, with which nothing can be compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
from msgspec import Struct
from programs import free_port

RECORDS = Path(__file__).resolve().parents[1] / "end_to_end" / "reference"
N_PREDICT = 20
N_PROBS = 20
"""Number of the likeliest tokens of each step that the server tells. Fewer are nearly as likely as the chosen one."""
NEAR_TIE = 0.3
"""Largest difference of two tokens' logits of which another kernel or batch may change the sign.

Between a prompt computed whole and the same one from the cache, more than 0.15 was seen.
"""

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village,",
    "def fibonacci(n):\n",
    "1, 1, 2, 3, 5, 8,",
    "To make bread you need",
    "日本の首都は",
    "Die Hauptstadt von Deutschland ist",
    "La capitale de l'Italie est",
    "import json\n\nwith open(",
    "The three primary colours are",
    "Water boils at",
    '{"name": "Ada", "born":',
    "Dear Sir or Madam,\n\n",
    "Q: What is 2 + 2?\nA:",
    "- apples\n- pears\n-",
    "SELECT name FROM",
    "Привет, как дела?",
    "🙂 🙂 🙂",
    "<html>\n<head>\n",
    "  Leading and trailing blanks  ",
    "What is the capital of France? Answer in one sentence.",
    "Name three animals that live in the sea.",
    "Write a haiku about the rain.",
    "Translate to German: good morning",
    "What is 17 times 3?",
    "Explain in one sentence why the sky is blue.",
    "List the days of the week, separated by commas.",
    "Who wrote Hamlet?",
    "Write a Python function that reverses a string.",
    "Summarize: The cat sat on the mat. It was warm there.",
    "Is a tomato a fruit?",
    "Say only the word: yes",
    "Correct the spelling: I has a appel.",
    "What comes after Tuesday?",
    "Give me a JSON object with the keys a and b.",
    "How do I boil an egg?",
    "Quel âge a la Terre ?",
    "用中文说你好。",
    "Repeat after me: naïve café – “quoted” … €5",
    "Count from one to ten in words. " * 12,
)


class Tie(Struct, frozen=True, array_like=True):
    """A token that was nearly as likely as the chosen one: `other` could follow the first `at` bytes of the text.

    `other` has one character for each byte (Latin-1), because a token may be part of a character. The end of the text
    is an empty token.
    """

    at: int
    other: str

    def leads_to(self, written: bytes, expected: bytes) -> bool:
        """Is `written` equal to `expected` before the tie, with the other token there?"""
        beginning = expected[: self.at] + self.other.encode("latin-1")
        if not self.other:
            return written == beginning
        # the text shows no part of a character, so the token may have more bytes than the text shows
        return written.startswith(beginning) or written == beginning.decode("utf-8", "ignore").encode()


class Record(Struct, frozen=True):
    """What the reference wrote after one prompt or conversation. `reason` is that of a chat: stop or length."""

    text: str
    reason: str
    ties: list[Tie]

    def matches(self, text: str) -> bool:
        """Is `text` the recorded one, or another one from a near tie on?"""
        expected, written = (whole_characters(text).encode() for text in (self.text, text))
        return written == expected or any(tie.leads_to(written, expected) for tie in self.ties)


class Records(Struct, frozen=True):
    """The records of one model: for each of PROMPTS, as /completion continues it and as a chat answers it.

    The cache changes the batches, hence the logits: in each pair, the first record is of a prompt that was computed
    whole, and the second one of a prompt of which all but the last token was in the cache.
    """

    completions: list[tuple[Record, Record]]
    chats: list[tuple[Record, Record]]


def whole_characters(text: str) -> str:
    """Return the text without the replacement character that /completion shows for part of a character at the end."""
    return text.rstrip("\ufffd")


def load(model: str) -> Records:
    """Return the records of `model`, the name of a file without its ending. Raises FileNotFoundError."""
    return msgspec.json.decode((RECORDS / f"{model}.json").read_bytes(), type=Records)


def conversation(index: int) -> list[dict[str, str]]:
    """Return a chat that ends with the prompt `index`. Every fourth one has a system message and earlier turns."""
    last = {"role": "user", "content": PROMPTS[index]}
    if index % 4:
        return [last]
    return [
        {"role": "system", "content": "You are a helpful assistant. You answer briefly."},
        {"role": "user", "content": "Hello, who are you?"},
        {"role": "assistant", "content": "I am an assistant. How can I help you?"},
        last,
    ]


# -- recording -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    server, model = argv
    port = str(free_port())
    options = {"--port": port, "--parallel": "1", "--threads": "1", "--ctx-size": "4096", "--gpu-layers": "0"}
    command = [server, "--model", model, *(word for pair in options.items() for word in pair)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                _wait(client)
                records = Records(*_record(client))
        finally:
            process.terminate()
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{Path(model).stem}.json").write_text(_lines(records), "utf-8")


def _lines(records: Records) -> str:
    """Return the records as JSON, with each pair on one line."""
    lists = msgspec.to_builtins(records)
    texts = {name: ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs) for name, pairs in lists.items()}
    return "{\n" + ",\n".join(f'"{name}": [\n{text}\n]' for name, text in texts.items()) + "\n}\n"


def _wait(client: httpx.Client) -> None:
    while True:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def _record(client: httpx.Client) -> Iterator[list[tuple[Record, Record]]]:
    """Yield the completions, then the chats; no chats of a model without a chat template."""
    yield [(_completion(client, prompt, False), _completion(client, prompt, True)) for prompt in PROMPTS]
    if client.get("/props").raise_for_status().json().get("chat_template"):
        chats = [conversation(index) for index in range(len(PROMPTS))]
        yield [(_chat(client, messages, False), _chat(client, messages, True)) for messages in chats]
    else:
        yield []


def _post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    return client.post(path, json=body).raise_for_status().json()


def _completion(client: httpx.Client, prompt: str, cached: bool) -> Record:
    fields = {"n_predict": N_PREDICT, "temperature": 0, "cache_prompt": cached, "n_probs": N_PROBS}
    answer = _post(client, "/completion", {"prompt": prompt, **fields})
    reason = "length" if answer["stop_type"] == "limit" else "stop"
    return Record(answer["content"], reason, near_ties(answer["completion_probabilities"]))


def _chat(client: httpx.Client, messages: list[dict[str, str]], cached: bool) -> Record:
    fields = {"max_tokens": N_PREDICT, "temperature": 0, "cache_prompt": cached}
    body = {"messages": messages, "logprobs": True, "top_logprobs": N_PROBS, **fields}
    (choice,) = _post(client, "/v1/chat/completions", body)["choices"]
    return Record(choice["message"]["content"], choice["finish_reason"], near_ties(choice["logprobs"]["content"]))


def near_ties(steps: list[dict[str, Any]]) -> list[Tie]:
    """Return the near ties.

    The server tells no step whose token ends within a character. The bytes of the next step are then the whole
    character's.
    """
    ties, at = [], 0
    for step in steps:
        chosen, *others = step["top_logprobs"]
        at += len(step["bytes"])
        near = [other for other in others if chosen["logprob"] - other["logprob"] < NEAR_TIE]
        assert len(near) < len(others), "there may be more near ties"
        before = at - len(chosen["bytes"])
        ties += [Tie(before, bytes(other["bytes"]).decode("latin-1")) for other in near]
    return ties


if __name__ == "__main__":
    main(sys.argv[1:])
