"""Answers that follow a grammar, on real tiny models: in the engine, over HTTP and through the router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from engine_tools import ask, running
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_corral.common.base.errors import ApiError, ConfigError
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.request.defaults import completion_defaults
from llama_corral.worker.chat.constraints.response_format import JsonText, json_in
from llama_corral.worker.engine.llama.model import Model
from llama_corral.worker.engine.llama.options import EngineOptions
from llama_corral.worker.engine.llama.vocab import Vocab
from llama_corral.worker.engine.messages import Grammar, Sampling, Trigger
from llama_corral.worker.engine.sampling import grammar
from llama_corral.worker.engine.sampling.grammar import GrammarConstraint
from llama_corral.worker.engine.sampling.grammar_candidates import GrammarPrefilter, prunable
from llama_corral.worker.engine.sampling.patterns import compiled
from llama_corral.worker.grammar.converter import schema_grammar
from programs import Program, Programs, post

HOT = {"temperature": 1.5, "seed": 5}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def vocab(models: Path) -> Iterator[Vocab]:
    model = Model(EngineOptions(model=models / "tiny-llama.gguf"), lambda _: None)
    yield model.vocab
    model.close()


# -- prefilter -------------------------------------------------------------------------------------------------------

GRAMMARS = [
    schema_grammar({"type": "object"}),
    schema_grammar(PERSON),
    'root ::= "the " ("cat" | "dog" | [a-zé]+) "!"',
    'root ::= [^a-z"]* "€" .+',
]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GRAMMARS), st.integers(0, 12), st.integers(0, 2**32))
def test_the_prefilter_finds_the_same_tokens_as_a_full_check(
    vocab: Vocab, grammar: str, length: int, seed: int
) -> None:
    random = Random(seed)
    constraint = GrammarConstraint(Grammar(grammar, matcher="llama.cpp"), vocab)
    assert prunable(grammar)
    logits = np.array([random.gauss(0, 3) for _ in range(vocab.n_vocab)], np.float32)
    everything, some = GrammarPrefilter(constraint, vocab, 0), GrammarPrefilter(constraint, vocab, 3, many=5)
    try:
        for _ in range(length):
            allowed = [token for token in range(vocab.n_vocab) if constraint.allows(token)]
            assert everything.allowed(logits).tolist() == allowed
            found = some.allowed(logits).tolist()
            assert set(found) <= set(allowed)
            most_likely = sorted(allowed, key=lambda token: -logits[token])[:3]
            assert set(most_likely) <= set(found)
            token = random.choice(allowed)
            if vocab.is_eog(token):
                break
            constraint.accept(token)
    finally:
        constraint.close()


@pytest.mark.parametrize(
    ("grammar", "is_prunable"),
    [
        ('root ::= "a<b" [<!]', True),
        ("root ::= <[5]> [a]", False),
        ("root ::= !<[5]>", False),
        ("root ::= [^é]", False),
        (r"root ::= [^\u00e9]", False),
        ("root ::= [é] # !", True),
    ],
)
def test_prunable_grammars(grammar: str, is_prunable: bool) -> None:
    assert prunable(grammar) == is_prunable


# -- engine ----------------------------------------------------------------------------------------------------------


async def test_penalties_do_not_count_refused_tokens(models: Path) -> None:
    """The output follows the grammar and is reproducible, also when the first choice was refused."""
    sampling = Sampling(grammar=Grammar('root ::= [a-c]{12}'), repeat_penalty=1.5, repeat_last_n=8, seed=2, n_probs=2,
                        post_sampling_probs=True)  # fmt: skip

    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        first, again = [await ask(loaded, sampling=sampling, n_predict=20).one() for _ in range(2)]
        assert first.tokens == again.tokens
        assert len(first.text) == 12
        assert set(first.text) <= set("abc")
        assert first.stop_type == "eos"


@pytest.mark.parametrize("kind", ["token", "word", "pattern", "pattern_full"])
async def test_a_lazy_grammar_applies_from_its_trigger_on(models: Path, kind: Any) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        free = await ask(loaded, n_predict=24).one()
        at = 8
        token = free.tokens[at]
        said = b"".join(loaded.vocab.piece(t) for t in free.tokens[:at]).decode()
        word = loaded.vocab.piece(token).decode()
        value = {"token": word, "word": word, "pattern": f".({word})", "pattern_full": f"^[\\s\\S]*?({word})$"}[kind]
        begin = (said + word).find(word) if kind != "pattern" else (said + word).find(word, 1)
        grammar = Grammar(f'root ::= "{word}" "xyz"', True, (Trigger(kind, value, token),))
        result = await ask(loaded, sampling=Sampling(temperature=0.0, grammar=grammar), n_predict=40).one()
        assert (said + word)[:begin] + word + "xyz" == result.text
        assert result.stop_type == "eos"


async def test_a_lazy_grammar_that_is_never_triggered_changes_nothing(models: Path) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        free = await ask(loaded).one()
        sampling = Sampling(temperature=0.0, grammar=Grammar('root ::= "q"', True, (Trigger("word", "QQQQ"),)))
        assert (await ask(loaded, sampling=sampling).one()).tokens == free.tokens


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("root ::= (("),
        Grammar('root ::= root "a"'),
        Grammar('roof ::= "a"'),
        Grammar('root ::= "a\0"'),
        Grammar("%llguidance {}"),
        Grammar("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000),
        Grammar('root ::= "a"', True, (Trigger("pattern", "(a"),)),
        Grammar('root ::= "a"', True, (Trigger("pattern", "(?=a)b"),)),
        Grammar('root ::= "a"', True, (Trigger("pattern_full", "(a)\\1"),)),
        Grammar('root ::= "' + "a" * 3000 + '"{2000}'),
        Grammar("root ::= " + "[a-z]{1,2000} " * 3000),
        Grammar('root ::= "assistant"', prefill="something else"),
    ],
)
async def test_an_invalid_grammar_fails_only_its_request(models: Path, grammar: Grammar) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        with pytest.raises(ApiError, match="Failed to initialize samplers") as refused:
            await ask(loaded, sampling=Sampling(grammar=grammar)).one()
        assert refused.value.status == 400
        assert (await ask(loaded).one()).n_decoded == 16


async def test_a_grammar_that_takes_too_long_fails_only_its_request(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        sampling = Sampling(temperature=0.0, grammar=Grammar('root ::= "abc"'))
        assert (await ask(loaded, sampling=sampling).one()).text == "abc"
        monkeypatch.setattr(grammar, "SLOW_SECONDS", -1.0)
        monkeypatch.setattr(grammar, "MAX_SLOW_SECONDS", 0.0)
        with pytest.raises(ApiError, match="evaluating the grammar takes too long"):
            await ask(loaded, sampling=sampling).one()
        assert (await ask(loaded).one()).n_decoded == 16


def test_no_regular_expression_of_a_client_blocks_the_engine() -> None:
    text = b"a" * 100_000
    for hostile in ("(a+)+$b", "(a|a)*b", "(a*)*(a*)*(a*)*b", "(.*)*(.*)*x"):
        assert compiled(hostile).search(text) is None
    found = compiled(r"x(\s*)(<tool>)").search(b"..x <tool>", 1)
    assert found is not None
    assert (found.start(), found.lastindex, found.start(2), found.end(2)) == (2, 2, 4, 10)
    assert compiled("ab|c").fullmatch(b"zzab", 2)


async def test_a_trigger_that_its_grammar_forbids_fails_only_its_request(models: Path) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        grammar = Grammar('root ::= "\\x01"', True, (Trigger("pattern", "[a-z]"),))
        with pytest.raises(ApiError, match="triggers it") as failed:
            await ask(loaded, sampling=Sampling(temperature=0.0, grammar=grammar)).one()
        assert failed.value.status == 400
        assert (await ask(loaded).one()).n_decoded == 16


# -- text around a chat's JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ('  {"a": " `` "} \n', '{"a": " `` "}'),
        ('```json\n{"a": "\\" "}\n```', '{"a": "\\" "}'),
        ("\n ```json  7 ```", "7"),
        ('"a', '"a'),
        ("[1,  ", "[1,"),
        ("true", "true"),
    ],
)
def test_json_is_extracted_whole_or_letter_by_letter(text: str, inner: str) -> None:
    assert json_in(text) == inner
    stream = JsonText()
    assert "".join(stream.add(letter) for letter in text) == inner


# -- over HTTP -------------------------------------------------------------------------------------------------------


def completion(program: Program, **body: Any) -> Any:
    return post(program, "/completion", {"prompt": "Once", "n_predict": 120, **HOT, **body})


def chat(program: Program, status: int = 200, **body: Any) -> Any:
    messages = [{"role": "user", "content": "Hello"}]
    return post(program, "/v1/chat/completions", {"messages": messages, "max_tokens": 200, **HOT, **body}, status)


def check_person(text: str) -> None:
    person = json.loads(text)
    assert list(person) == ["name", "age"]
    assert len(person["name"]) <= 8
    assert 10 <= person["age"] <= 99


def test_a_completion_follows_its_schema(worker: Program) -> None:
    result = completion(worker, json_schema=PERSON)
    check_person(result["content"])
    assert result["stop_type"] == "eos"
    assert result["generation_settings"]["grammar"].startswith("age ::=")


def test_an_empty_schema_means_any_object(worker: Program) -> None:
    grammar = completion(worker, json_schema={}, n_predict=1)["generation_settings"]["grammar"]
    assert grammar == schema_grammar({"type": "object"})


def test_a_grammar_has_precedence_over_a_schema(worker: Program) -> None:
    assert completion(worker, grammar='root ::= "ab"', json_schema=PERSON)["content"] == "ab"


@pytest.mark.parametrize("n", [1, 2])
def test_response_formats_of_a_chat(worker: Program, n: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    for choice in chat(worker, response_format=form, n=n)["choices"]:
        check_person(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(("schema", "kind"), [({"type": "boolean"}, bool), ({"type": "string", "maxLength": 9}, str)])
def test_a_chat_whose_json_is_no_object(worker: Program, schema: dict[str, Any], kind: type) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert isinstance(json.loads(chat(worker, response_format=form)["choices"][0]["message"]["content"]), kind)


def test_a_streamed_chat_is_the_json_and_nothing_else(worker: Program) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, **HOT, "stream": True,
            "response_format": {"type": "json_object", "schema": PERSON}}  # fmt: skip
    text = ""
    with worker.client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    check_person(text)
    assert text.startswith("{")
    assert text.endswith("}")


def test_a_chat_with_a_json_schema_or_grammar_field(worker: Program) -> None:
    check_person(chat(worker, json_schema=PERSON)["choices"][0]["message"]["content"])
    shown = chat(worker, grammar='root ::= " ab "', verbose=True)
    assert shown["choices"][0]["message"]["content"] == " ab "
    assert shown["__verbose"]["generation_settings"]["grammar"] == 'root ::= " ab "'


def test_a_continued_message_is_part_of_the_json(worker: Program) -> None:
    begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": '{"name": "Bo'}]
    body = {"messages": begun, "max_tokens": 200, **HOT, "json_schema": PERSON}
    text = post(worker, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    check_person(text)
    assert text.startswith('{"name": "Bo')


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"response_format": {"type": "sound"}}, 'must be one of "text" or "json_object", but got: sound'),
        ({"response_format": {"type": "json_object", "schema": 123}}, "'schema'"),
        ({"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}}, "unrecognized type hiccup"),
        ({"json_schema": {"not": {}}}, 'keyword "not" is not supported'),
        ({"json_schema": {}, "grammar": "x"}, "Cannot use both json_schema and grammar"),
        ({"grammar": "root ::= this is (not valid GBNF"}, "Failed to initialize samplers: failed to parse grammar"),
        ({"grammar": 'root ::= "a"', "stream": True, "grammar_lazy": True}, "no triggers set for lazy grammar"),
    ],
)
def test_invalid_constraints_of_a_chat_are_refused(worker: Program, body: dict[str, Any], named: str) -> None:
    assert named in chat(worker, 400, **body)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"json_schema": {"type": "hiccup"}}, "Field 'json_schema'"),
        ({"json_schema": 5}, "schema must be an object"),
        ({"preserved_tokens": [1]}, "'preserved_tokens'"),
        ({"grammar_triggers": 1}, "'grammar_triggers'"),
        ({"grammar_triggers": [1]}, "'grammar_triggers'"),
        ({"grammar_triggers": [{"type": 7}]}, "'type'"),
        ({"grammar_triggers": [{"type": 0, "value": "x", "token": 10**6}]}, "'token'"),
        ({"grammar_triggers": [{"type": 1, "value": "</s>"}]}, "should be marked as preserved token: </s>"),
    ],
)
def test_wrong_fields_are_named(worker: Program, body: dict[str, Any], named: str) -> None:
    error = post(worker, "/completion", {"prompt": "a", "grammar": "", **body}, 400) if "json_schema" not in body else (
        post(worker, "/completion", {"prompt": "a", **body}, 400))  # fmt: skip
    assert named in error["error"]["message"]


def test_generation_settings_show_the_triggers(worker: Program) -> None:
    shown = completion(
        worker, n_predict=1, grammar='root ::= "</s>"', grammar_lazy=True, preserved_tokens=["</s>"],
        grammar_triggers=[{"type": 1, "value": "</s>"}, {"type": 2, "value": "a+b"}],
    )["generation_settings"]  # fmt: skip
    assert shown["grammar_lazy"] is True
    assert shown["grammar_triggers"] == [{"type": 0, "value": "</s>", "token": 2}, {"type": 2, "value": "a+b"}]
    assert shown["preserved_tokens"] == [2]


def test_options_apply_to_requests_without_a_constraint(programs: Programs, tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    with_schema = programs.worker("--json-schema-file", str(file), "--threads", "1", "--ctx-size", "1024")
    check_person(completion(with_schema)["content"])
    assert completion(with_schema, grammar='root ::= "ab"')["content"] == "ab"
    check_person(chat(with_schema)["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"grammar_file": "/nowhere/x.gbnf"}, "--grammar-file /nowhere/x.gbnf"),
        ({"json_schema": '{"type": "hiccup"}'}, "--json-schema: JSON schema error"),
    ],
)
def test_invalid_grammar_options_are_named(options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        completion_defaults(Settings.of(model="x.gguf", **options), {})


def test_through_the_router(programs: Programs) -> None:
    gateway = programs.gateway(presets="[tiny]\nmodel = {models}/tiny-llama.gguf\nctx-size = 1024\nthreads = 1\n")
    form = {"type": "json_schema", "json_schema": {"schema": PERSON}}
    check_person(chat(gateway, model="tiny", response_format=form)["choices"][0]["message"]["content"])
    assert "hiccup" in chat(gateway, 400, model="tiny", json_schema={"type": "hiccup"})["error"]["message"]
