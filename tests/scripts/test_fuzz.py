"""The fuzzer: what it knows of the requests, that a seed gives the same requests, and what it takes for a fault."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from attacks.stage import Answer, Stage
from fuzzing.campaign import Campaign
from fuzzing.files import FORMATS, FileFault, guarded, random_gguf, random_presets, run
from fuzzing.requests import Wish, any_request, smaller
from fuzzing.schema import ROUTES, fields
from fuzzing.values import Pairs, Raw, Values, written
from llama_corral.router.app import BY_BODY


def many(seed: int, number: int = 300) -> list[Wish]:
    chance = random.Random(seed)
    values = Values(chance, fields())
    return [any_request(chance, values) for _ in range(number)]


def test_the_fields_are_found_in_the_sources() -> None:
    known = fields()
    assert known["temperature"] == known["top_p"] == "number"
    assert (known["n_predict"], known["cache_prompt"], known["response_fields"]) == ("integer", "boolean", "strings")
    assert {"messages", "logit_bias", "tools", "keep_alive", "conversation_ids", "max_tokens"} <= set(known)
    assert len(known) > 150


def test_every_kind_of_route_is_fuzzed() -> None:
    fuzzed = {route.path for route in ROUTES}
    spellings = {path.removeprefix("/v1") for path in fuzzed}
    same = {"/completions", "/reranking", "/embedding", "/responses", "/audio/transcriptions", "/slots/{id_slot}"}
    assert {path.removeprefix("/v1") for path in BY_BODY} - spellings - same == set()


def test_a_seed_gives_the_same_requests() -> None:
    assert [wish.data() for wish in many(7) if not wish.packs] == [wish.data() for wish in many(7) if not wish.packs]
    assert many(7) != many(8)


def test_requests_are_hostile_and_many_are_valid_json() -> None:
    bodies = [wish.data() for wish in many(3, 1500) if wish.method == "POST" and not wish.packs]
    assert any(b"9" * 300 in body for body in bodies)
    assert any(b"\\ud800" in body for body in bodies)
    assert any(body.count(b"[") > 500 for body in bodies)
    valid = 0
    for body in bodies:
        try:
            json.loads(body)
            valid += 1
        except (ValueError, RecursionError):
            pass
    assert valid > len(bodies) * 0.7


def test_values_that_json_libraries_do_not_write() -> None:
    assert written(Pairs((("a", 1), ("a", Raw(b"1e999"))))) == b'{"a":1,"a":1e999}'
    assert json.loads(written({"a": ["é", None, 0.5]})) == {"a": ["é", None, 0.5]}


def test_a_request_is_made_smaller_by_one_part_at_a_time() -> None:
    wish = Wish("POST", "/completion", {"model": "chat", "a": [1, 2]})
    made = [cast(dict[str, Any], less.body) for less in smaller(wish)]
    assert made == [{"model": "chat"}, {"model": "chat", "a": [2]}, {"model": "chat", "a": [1]}]
    assert wish.body == {"model": "chat", "a": [1, 2]}


TRACE = """2026-11-29 15:32:48.214 error: [9/chat] unexpected error
2026-11-29 15:32:48.214 [9/chat] Traceback (most recent call last):
2026-11-29 15:32:48.214 [9/chat]   File "/x/llama_corral/worker/api/a.py", line 7, in b
2026-11-29 15:32:48.214 [9/chat] ValueError: no 5
"""
EVENT = 'data: {"error":{"code":500,"message":"broken"}}\n\n'


@pytest.mark.parametrize(
    ("answer", "words", "kind"),
    [
        (Answer(200, "{}"), "", ""),
        (Answer(400, '{"error":{"message":"why"}}'), "", ""),
        (Answer(404, '{"error":"why, as Ollama has it"}'), "", ""),
        (Answer(501, '{"error":{"message":"not supported"}}'), "", ""),
        (Answer(400, "{}"), "", "status 400 without a message: {}"),
        (Answer(500, '{"error":{"message":"broken 7"}}'), "", "status 500: broken …"),
        (Answer(200, f"data: {{}}\n\n{EVENT}"), "", "stream ends with an error: broken"),
        (Answer(0, "ConnectionResetError: "), "", "no answer: ConnectionResetError: "),
        (Answer(-1), "", "no answer in time"),
        (Answer(200, "{}"), TRACE, 'traceback: ValueError: no … in worker/api/a.py", line 7, in b'),
        (Answer(200, "{}"), "name=chat exited with code -11: SIGSEGV", "a worker ended: exited with code -…: SIGSEGV"),
        (Answer(200, "{}"), "name=chat exited with code 0", ""),
    ],
)
def test_what_is_a_fault(answer: Answer, words: str, kind: str) -> None:
    stage = cast(Stage, SimpleNamespace(process=SimpleNamespace(poll=lambda: None)))
    assert Campaign(stage, 1).judge(answer, words) == kind


# -- files ------------------------------------------------------------------------------------------------------------


def test_random_files_reach_the_readers() -> None:
    chance = random.Random(1)
    assert sum(bool(FORMATS["gguf"].check(random_gguf(chance))) for _ in range(300)) > 15
    assert sum(bool(FORMATS["ini"].check(random_presets(chance))) for _ in range(100)) > 50


@pytest.mark.parametrize("name", FORMATS)
def test_a_second_of_random_files_finds_no_fault(name: str) -> None:
    said: list[str] = []
    assert run(FORMATS[name], 1.0, 5, said.append) == 0, said


def test_a_reader_that_fails_or_refuses_without_a_reason_is_found() -> None:
    def failing(path: Path) -> int:
        raise IndexError("out of range")

    def silent(path: Path) -> int:
        raise ValueError

    with pytest.raises(FileFault, match="IndexError: out of range"):
        guarded(failing, (ValueError,))(b"")
    with pytest.raises(FileFault, match="without a reason"):
        guarded(silent, (ValueError,))(b"")
