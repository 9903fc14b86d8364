"""The parser of GBNF accepts and refuses the same texts as llama.cpp's, in time proportional to their length."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.llama.llama import C
from llama_corral.worker.engine.llama.model import Model
from llama_corral.worker.engine.llama.options import EngineOptions
from llama_corral.worker.engine.llama.vocab import Vocab
from llama_corral.worker.gbnf.checks import check_left_recursion, check_size
from llama_corral.worker.gbnf.syntax import Chars, Gbnf, GrammarError, Repeat, parse


@pytest.fixture(scope="module")
def vocab(models: Path) -> Iterator[Vocab]:
    model = Model(EngineOptions(model=models / "tiny-llama.gguf"), lambda _: None)
    yield model.vocab
    model.close()


def read(text: str) -> Gbnf:
    return parse(text, {"<s>": 1}.get)


PARTS = st.sampled_from([
    "root", "x", "y-1", " ::= ", "::=", '"a"', '"', "[a-z]", "[^]", "[]", "[", "]", "(", ")", "|", "*", "+", "?", "{2}",
    "{0,}", "{1,3}", "{", "}", "{ 2 , 4 }", ".", "\n", "\r\n", " ", "\t", "# c\n", "<[5]>", "<s>", "<x", "!<[7]>", "!",
    r'"\x41\n"', r'"\q"',
    r"[\]\-]", '""', "_", "\nroot ::= ", "\nx ::= ", "\ny-1 ::= ", "é", '"é"', "{2001}", "{0,2001}", "{0}",
])  # fmt: skip


@given(
    st.lists(PARTS, min_size=1, max_size=14), st.sampled_from(["", "root ::= ", 'x ::= "b"\ny-1 ::= | x\nroot ::= '])
)
def test_the_same_texts_are_grammars_as_in_llama_cpp(vocab: Vocab, parts: list[str], begin: str) -> None:
    text = begin + "".join(parts)
    try:
        grammar = parse(
            text, lambda name: next(iter(vocab.tokenize(name, False, True)), None) if name == "<s>" else None
        )
        check_size(grammar)
        check_left_recursion(grammar)
        is_grammar = True
    except GrammarError:
        is_grammar = False
    theirs = C.llama_sampler_init_grammar(vocab.pointer, text.encode(), b"root")
    if theirs:
        C.llama_sampler_free(theirs)
    assert is_grammar == bool(theirs)


def test_groups_become_rules_and_repetitions_are_kept() -> None:
    grammar = read('root ::= ("a" | x){2,} [^b-d"]? # comment\nx ::= |\n "c"\n')
    root, group, x = grammar.rules
    assert root.alternatives == [(Repeat((1,), 2, None), Repeat((Chars(((34, 34), (98, 100)), True),), 0, 1))]
    assert group.alternatives == [("a",), (2,)]
    assert (x.name, x.alternatives) == ("x", [(), ("c",)])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('root ::= "a" )', "line 1, column 14: there is no ("),
        ('root ::= "a"\nx ::= b ::= c', "line 2, column 9: expected a newline"),
        ('root ::= "a" | *', "line 1, column 16: there is nothing to repeat"),
        ('root ::= "a\\q"', "line 1, column 10: this is not part of a grammar"),
        ("root ::= x", "there is no rule x"),
        ("x ::= [a]", "there is no rule root"),
        ("root ::= <unknown>", "line 1, column 10: <unknown> is no token of this model"),
    ],
)
def test_an_error_says_where_it_is(text: str, where: str) -> None:
    with pytest.raises(GrammarError) as refused:
        read(text)
    assert where in str(refused.value)


def test_the_work_grows_with_the_length_of_the_text_only() -> None:
    """Counted in calls of Python functions, which do not depend on the machine."""

    def calls(n: int) -> int:
        text = (
            "root ::= "
            + " | ".join(f'("a" [b-c]* x{i})' for i in range(n))
            + "\n"
            + "".join(f"x{i} ::= .\n" for i in range(n))
        )
        count = 0

        def note(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            grammar = read(text)
            check_size(grammar)
            check_left_recursion(grammar)
        finally:
            sys.setprofile(None)
        return count

    assert calls(2000) < 11 * calls(200)
