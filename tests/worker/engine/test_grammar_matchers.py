"""Both matchers of grammars, llguidance's and llama.cpp's, allow the same tokens; the former limits each step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.chat.constraints.argument_rules import until
from llama_corral.worker.chat.constraints.response_format import ResponseFormat, completion_fields
from llama_corral.worker.chat.constraints.tool_grammar import GrammarContext, tool_fields
from llama_corral.worker.chat.formats.formats import DictCalls, JsonCalls, Parameters, Span, TaggedCalls
from llama_corral.worker.chat.tools import FunctionTool
from llama_corral.worker.engine.llama.llama import C
from llama_corral.worker.engine.llama.model import Model
from llama_corral.worker.engine.llama.options import EngineOptions
from llama_corral.worker.engine.llama.vocab import Vocab
from llama_corral.worker.engine.messages import Grammar, GrammarMatcher
from llama_corral.worker.engine.sampling import guidance
from llama_corral.worker.engine.sampling.candidates import CANDIDATE
from llama_corral.worker.engine.sampling.grammar import GrammarConstraint
from llama_corral.worker.engine.sampling.guidance import GuidanceMatcher
from llama_corral.worker.engine.sampling.llama_matcher import LlamaMatcher
from llama_corral.worker.grammar.converter import schema_grammar
from llama_corral.worker.grammar.rules import GrammarRules
from llama_corral.worker.grammar.work import Budget


@pytest.fixture(scope="module")
def vocab(models: Path) -> Iterator[Vocab]:
    model = Model(EngineOptions(model=models / "tiny-llama.gguf"), lambda _: None)
    yield model.vocab
    model.close()


def masks(text: str, vocab: Vocab, seed: int, length: int) -> None:
    """Choose random allowed tokens, and check that both matchers allow the same ones at each step."""
    random = Random(seed)
    ours, theirs = GuidanceMatcher(text, vocab), LlamaMatcher(text, vocab)
    whole = np.array([_is_text(vocab, token) for token in range(vocab.n_vocab)])
    try:
        for _ in range(length):
            mask = ours.mask()
            assert np.flatnonzero(mask & whole).tolist() == np.flatnonzero(_mask(theirs, vocab) & whole).tolist()
            choices = np.flatnonzero(mask & whole).tolist()
            some = random.sample(range(vocab.n_vocab), 10)
            assert [ours.allows(token) for token in some] == mask[some].tolist()
            if not choices or vocab.is_eog(token := random.choice(choices)):
                break
            ours.accept(token)
            theirs.accept(token)
    finally:
        theirs.close()


def _mask(matcher: LlamaMatcher, vocab: Vocab) -> np.ndarray[Any, np.dtype[np.bool_]]:
    data = np.zeros(vocab.n_vocab, CANDIDATE)
    data["id"] = np.arange(vocab.n_vocab)
    pointer = ctypes.cast(data.ctypes.data, C.llama_token_data_p)
    matcher.apply(ctypes.byref(C.llama_token_data_array(pointer, vocab.n_vocab, -1, False)))
    return data["logit"] == 0.0


def _is_text(vocab: Vocab, token: int) -> bool:
    """Parts of characters and control tokens are left out: llama.cpp allows some that do not fit the grammar."""
    try:
        return vocab.is_eog(token) or (token not in vocab.hidden_tokens and bool(vocab.piece(token).decode()))
    except UnicodeDecodeError:
        return False


SCHEMAS = st.recursive(
    st.sampled_from([
        {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"enum": ["a", "ab", "abc", 2, None]}, True,
        {"const": "the"}, {"type": "string", "maxLength": 3}, {"type": "string", "minLength": 2}, {"pattern": "^a+b?$"},
        {"type": "integer", "minimum": -3, "maximum": 120}, {"format": "date"}, {"format": "email"},
    ]),
    lambda inner: st.one_of(
        st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(1, 3)),
        st.builds(lambda *ways: {"anyOf": list(ways)}, inner, inner),
        st.builds(
            lambda of, more: {"type": "object", "properties": of, "required": sorted(of)[:1], **more},
            st.dictionaries(st.sampled_from(["a", "ab", "the", "string"]), inner, max_size=3),
            st.sampled_from([{}, {"additionalProperties": {"type": "null"}}]),
        ),
    ),
    max_leaves=6,
)  # fmt: skip


@given(SCHEMAS, st.integers(0, 2**32))
def test_both_matchers_allow_the_same_tokens_of_a_schema(vocab: Vocab, schema: Any, seed: int) -> None:
    masks(schema_grammar(schema), vocab, seed, 12)


# without named tokens: after a character, llama.cpp's matcher allows some tokens that do not fit
ITEMS = st.sampled_from(
    ['"a"', '"the "', '"ab"', "[a-c]", "[^a]", ".", "[ab]", '"é"', "[à-ü]", "x", "y", "z", r'"\n"', r"[\x61-d]", '""']
)
TIMES = st.sampled_from(["", "", "", "", "*", "+", "?", "{2}", "{0,3}", "{1,}", "{2}{0,2}"])
SEQUENCES = st.lists(st.builds(str.__add__, ITEMS, TIMES), max_size=3).map(" ".join)
GROUPS = st.builds(
    lambda ways, times: "(" + " | ".join(ways) + ")" + times, st.lists(SEQUENCES, min_size=1, max_size=3), TIMES
)
WAYS = st.lists(
    st.one_of(SEQUENCES, st.builds("{} {} {}".format, SEQUENCES, GROUPS, SEQUENCES)), min_size=1, max_size=3
)
NAMES = ("root", "x", "y", "z")
GRAMMARS = st.builds(
    lambda *rules: "".join(f"{name} ::= {' | '.join(ways)}\n" for name, ways in zip(NAMES, rules, strict=True)),
    WAYS, WAYS, WAYS, WAYS,
)  # fmt: skip


# always the same examples: llama.cpp's matcher takes minutes for a few of all random grammars
@settings(derandomize=True, max_examples=100)
@given(GRAMMARS, st.integers(0, 2**32))
def test_both_matchers_allow_the_same_tokens_of_a_grammar(vocab: Vocab, grammar: str, seed: int) -> None:
    try:
        LlamaMatcher(grammar, vocab).close()
    except InvalidRequest:
        return
    try:
        masks(grammar, vocab, seed, 6)
    except InvalidRequest as refusal:
        if "too ambiguous or too large" not in refusal.message:
            raise


def states(grammar: str, text: str, vocab: Vocab, matcher: GrammarMatcher = "llguidance") -> int:
    """Return how many characters of a text a grammar allows."""
    constraint = GrammarConstraint(Grammar(grammar, matcher=matcher), vocab)
    try:
        for n, byte in enumerate(text.encode()):
            if not constraint.allows(token := vocab.byte_tokens[byte]):
                return n
            constraint.accept(token)
        return len(text.encode())
    finally:
        constraint.close()


CHAIN = "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(20_000)) + 'a20000 ::= "x"\n'
DIAMONDS = "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1} | a{i + 1}\n" for i in range(40)) + 'a40 ::= "x"\n'
OPTIONAL_DIAMONDS = (
    "root ::= a0\n" + "".join(f"a{i} ::= b a{i + 1} a{i + 1}\n" for i in range(40)) + 'b ::= | "y"\na40 ::= | b\n'
)


MANY_LETTERS = (
    "root ::= (" + " | ".join(f"c{i}" for i in range(300)) + ")+\n"
    + "".join(f"c{i} ::= [a-z] | [x-z]\n" for i in range(300))
)  # fmt: skip


@pytest.mark.parametrize("matcher", ["llguidance", "llama.cpp"])
@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (DIAMONDS, "too many ways to begin a rule"),
        (CHAIN, "chain"),
        ("root ::= " + " ".join(["a"] * 300_000), "too large"),
        ("root ::= " + " | ".join(f'"{n}"' for n in range(200_000)), "too large"),
        ('root ::= "a"{3,2}', "the maximum of a repetition is less than its minimum"),
        ("root ::= " + "(" * 100_000, "nested too deeply"),
        ("root ::= " + '("x" ' * 3000 + ")?" * 3000, "nested too deeply"),
        ('root ::= "x"' + "?" * 100_000, "too large|chain"),
        ('root ::= "x" (a | )*\na ::= "b"', "left recursion"),
        ('root ::= "x" a\na ::= | b{0,2000}\nb ::= | c{0,2000}\nc ::= | "y"', "chain|too many ways"),
        ('root ::= a\na ::= b "x"\nb ::= | a', "left recursion"),
        ("root ::= " + "([a-z]{1,2000} " * 600 + ")" * 600, "too large"),
    ],
)  # fmt: skip
def test_a_grammar_that_would_never_end_or_exhaust_the_stack_is_refused(
    vocab: Vocab, grammar: str, named: str, matcher: GrammarMatcher
) -> None:
    with pytest.raises(InvalidRequest, match=f"failed to parse grammar: .*({named})"):
        GrammarConstraint(Grammar(grammar, matcher=matcher), vocab)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= ("a"? "b"? "c"?){0,200}', "abcbcacbabcabc"),
        (OPTIONAL_DIAMONDS, "yyyyyyyyyyy"),
        ("root ::= s\ns ::= [a-z] s? s? s? s?", "therewasonce"),
        ("root ::= " + '("x" ' * 500 + ")?" * 500, "xxxxxxxx"),
        (MANY_LETTERS, "therewasonce"),
    ],
)  # fmt: skip
def test_an_ambiguous_grammar_is_matched_within_a_limit(vocab: Vocab, grammar: str, text: str) -> None:
    """Each step ends: the tokens are allowed, or the error says that the grammar is too ambiguous."""
    matcher = GuidanceMatcher(grammar, vocab)
    n_allowed, refusal = 0, ""
    for byte in text.encode():
        try:
            is_allowed = matcher.mask()[vocab.byte_tokens[byte]]
            matcher.accept(vocab.byte_tokens[byte])
        except InvalidRequest as refused:
            refusal = str(refused)
            break
        assert is_allowed
        n_allowed += 1
    assert n_allowed == len(text) or "too ambiguous or too large" in refusal


def test_thousands_of_alternatives_with_common_beginnings_are_one_way_at_a_time(vocab: Vocab) -> None:
    grammar = schema_grammar({"enum": [f"word{n}" for n in range(8000)]})
    assert states(grammar, '"word7123"', vocab) == 10
    assert states(grammar, '"word8000"', vocab) == 8


def test_the_number_of_letters_in_a_grammar_is_not_that_of_its_symbols(vocab: Vocab) -> None:
    """llguidance numbers symbols with 16 bits."""
    random = Random(4)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=20)) for _ in range(4000)]
    assert states(schema_grammar({"enum": words}), f'"{words[-1]}"', vocab) == 22
    assert states(f'root ::= "{"abc" * 60_000}"', "abcabx", vocab) == 5


OBJECTS = [{"type": "object", "properties": {f"p{n}": {"type": "string"}}} for n in range(1600)]


@pytest.mark.parametrize(
    "grammar",
    [
        schema_grammar({"anyOf": OBJECTS}),
        schema_grammar({"type": "object", "properties": {"a": {"anyOf": OBJECTS}}, "required": ["a"]}).replace(
            "space", "nothing"
        )
        + '\nnothing ::= ""\n',
    ],
    ids=["at the beginning", "after text that every answer begins with"],
)
def test_a_grammar_that_no_answer_could_use_is_refused_before_the_answer(vocab: Vocab, grammar: str) -> None:
    with pytest.raises(InvalidRequest, match=r"failed to parse grammar: .*more than 3000 states of the parser"):
        GuidanceMatcher(grammar, vocab)


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= <[300]>",
        "root ::= <[300]> | [a-c]",
        "root ::= (<[300]> <[301]>)*",
        "root ::= !<[300]>",
        "root ::= x?\nx ::= <[300]> x?",
    ],
)
def test_both_matchers_allow_the_same_named_tokens(vocab: Vocab, grammar: str) -> None:
    for seed in range(5):
        masks(grammar + "\n", vocab, seed, 6)


@pytest.mark.parametrize("n", [1, 100])
def test_an_object_of_several_kinds_is_accepted(vocab: Vocab, n: int) -> None:
    assert states(schema_grammar({"anyOf": OBJECTS[:n]}), '{"p0": "x"}', vocab) == 11


def test_a_control_token_fits_where_the_grammar_spells_it_but_not_in_a_string(vocab: Vocab) -> None:
    bos = vocab.bos
    spelled = vocab.piece(bos).decode()
    assert GuidanceMatcher(f'root ::= "{spelled}x"', vocab).allows(bos)
    assert states(f'root ::= "{spelled}x"', f"{spelled}x", vocab) == len(spelled) + 1, "its characters fit too"
    assert GuidanceMatcher(f"root ::= <[{bos}]>", vocab).allows(bos)
    assert not GuidanceMatcher("root ::= .+", vocab).allows(bos)
    assert not GuidanceMatcher("root ::= !<[300]>", vocab).allows(vocab.eos)
    begun = GuidanceMatcher(schema_grammar({"type": "string"}), vocab)
    begun.accept(vocab.byte_tokens[ord('"')])
    assert not begun.allows(bos)
    assert not begun.mask()[bos]


def fits(grammar: str, parts: list[int | str], vocab: Vocab) -> bool:
    """Return whether a grammar allows a whole answer: tokens, and texts in tokens of one byte."""
    matcher = GuidanceMatcher(grammar, vocab)
    for part in parts:
        for token in [part] if isinstance(part, int) else [vocab.byte_tokens[byte] for byte in part.encode()]:
            if not matcher.allows(token) or not matcher.mask()[token]:
                return False
            matcher.accept(token)
    return matcher.allows(vocab.eos)


ROOMS = [f"room {n}" for n in range(12)]


def switch(room: dict[str, Any]) -> FunctionTool:
    return FunctionTool("switch", "", {"type": "object", "properties": {"room": room}, "required": ["room"]}, {})


@pytest.mark.parametrize("ends", ["{mark}", "{mark}end{mark}", "\n{mark}"])
def test_a_text_ends_with_a_mark_of_control_tokens(vocab: Vocab, ends: str) -> None:
    """The mark is one token, which no character class contains."""
    token = vocab.bos
    mark = ends.format(mark=vocab.piece(token).decode())
    parts = {"{mark}": [token], "{mark}end{mark}": [token, "end", token], "\n{mark}": ["\n", token]}
    tokens: list[int | str] = parts[ends]
    thought = GrammarContext("", reasoning=Span("", mark))
    required = tool_fields(
        JsonCalls(Span("[", "]")), [switch({"type": "string"})], thought, Budget(), required=True, parallel=False
    )["grammar"]
    call = '[{"name": "switch", "arguments": {"room": "x"}}]'
    json_only = completion_fields(ResponseFormat({"type": "boolean"}), thought, None, Budget())["grammar"]
    quoted = tool_fields(
        DictCalls(Span("[", "]"), "", mark),
        [switch({"type": "string"})],
        GrammarContext(""),
        Budget(),
        required=True,
        parallel=False,
    )["grammar"]
    for text in ("", "so", "<s", "<", "\n\n"):
        assert fits(required, [text, *tokens, call], vocab)
        assert fits(required, [text, mark, call], vocab), "its characters end the text, too"
        assert fits(json_only, [text, *tokens, "true"], vocab)
        assert fits(quoted, ["[switch{room:", *tokens, text, *tokens, "}]"], vocab)
        assert not fits(json_only, [text, "true"], vocab)
        assert not fits(json_only, [text, *tokens, text + "x", *tokens, "true"], vocab)


@pytest.mark.parametrize("mark", ["</think>", "<|channel|>final<|message|>", "<s>"])
def test_a_text_up_to_a_mark_takes_few_states_of_the_parser(
    vocab: Vocab, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a mask of a large vocabulary is within the limit, which is lower here for a small vocabulary."""
    monkeypatch.setattr(guidance, "MAX_ITEMS", 300)
    rules = GrammarRules()
    rules.add("root", until(rules, mark, f"thought{guidance.MAX_ITEMS}"))
    matcher = GuidanceMatcher(rules.text(), vocab)
    for token in vocab.tokenize("Once upon a time there was a thought with < in it"):
        assert matcher.mask()[token]
        matcher.accept(token)


def test_a_mark_that_overlaps_itself_ends_at_the_first_place(vocab: Vocab) -> None:
    rules = GrammarRules()
    rules.add("root", f'{until(rules, "aa", "text")} "."')
    assert [fits(rules.text(), [text], vocab) for text in ("aa.", "baa.", "abaa.", "aaa.", "aba.")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("n", [2, 12, 300])
def test_common_prefixes_do_not_divide_a_control_token(vocab: Vocab, n: int) -> None:
    mark = vocab.piece(vocab.bos).decode()
    grammar = "root ::= " + " | ".join(f'"{i}<{mark}x{i % 7}{mark}"' for i in range(n)) + f' | "{mark}" | "<"'
    last = n - 1
    assert fits(grammar, [f"{last}<", vocab.bos, f"x{last % 7}", vocab.bos], vocab)
    assert fits(grammar, [f"{last}<{mark}x{last % 7}", vocab.bos], vocab)
    assert fits(grammar, [vocab.bos], vocab)
    assert not fits(grammar, [f"{last}", vocab.bos], vocab)


def test_one_of_many_listed_arguments_ends_with_a_control_token(vocab: Vocab) -> None:
    mark = vocab.piece(vocab.bos).decode()
    form = TaggedCalls(Span("[", "]"), name=Span("", ";"), parameters=Parameters(Span("<", ">"), Span("", mark)))
    listed = tool_fields(form, [switch({"enum": ROOMS})], GrammarContext(""), Budget(), required=True, parallel=False)[
        "grammar"
    ]
    assert fits(listed, ["[switch;<room>room 7", vocab.bos, "]"], vocab)
    assert fits(listed, [f"[switch;<room>room 11{mark}]"], vocab)
    assert not fits(listed, ["[switch;<room>room 12", vocab.bos, "]"], vocab)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 8))
def test_the_likeliest_tokens_are_those_of_the_mask(vocab: Vocab, seed: int, top_k: int, length: int) -> None:
    random = np.random.default_rng(seed)
    matcher = GuidanceMatcher(schema_grammar({"properties": {"a": {"type": "string"}}, "required": ["a"]}), vocab)
    for byte in '{"a": "xy'[: length + 1].encode():
        matcher.accept(vocab.byte_tokens[byte])
    logits = random.normal(0, 3, vocab.n_vocab).astype(np.float32)
    allowed = np.flatnonzero(matcher.mask())
    found = matcher.likeliest(logits, top_k)
    if len(allowed) < top_k:
        assert found is None
    if found is not None:
        best = allowed[np.argsort(-logits[allowed])][:top_k]
        assert set(best.tolist()) <= set(found.tolist()) <= set(allowed.tolist())


@pytest.mark.parametrize("top_k", [0, 40])
def test_a_schema_with_many_optional_properties_is_matched(vocab: Vocab, top_k: int) -> None:
    grammar = schema_grammar({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(300)}})
    matcher = GuidanceMatcher(grammar, vocab)
    for byte in b'{"p7": "x", "p299": "':
        assert matcher.allows(vocab.byte_tokens[byte])
        matcher.accept(vocab.byte_tokens[byte])
    assert matcher.likeliest(np.zeros(vocab.n_vocab, np.float32), 40) is not None if top_k else matcher.mask().any()


def test_a_grammar_is_compiled_once_for_all_choices(vocab: Vocab, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = 'root ::= "once" "only"'
    first = GuidanceMatcher(grammar, vocab)
    first.accept(vocab.byte_tokens[ord("o")])
    monkeypatch.setattr("llama_corral.worker.engine.sampling.guidance.parsed", None)
    assert GuidanceMatcher(grammar, vocab).allows(vocab.byte_tokens[ord("o")]), "it begins at the beginning"
    assert first.allows(vocab.byte_tokens[ord("n")])
