"""Which grammars have too many ways to go on at one place."""

from __future__ import annotations

import pytest
from llama_corral.worker.gbnf.branching import check_branching
from llama_corral.worker.gbnf.checks import check_size
from llama_corral.worker.gbnf.prefixes import join_prefixes
from llama_corral.worker.gbnf.syntax import Gbnf, GrammarError, parse
from llama_corral.worker.grammar.converter import schema_grammar


def prepared(text: str) -> Gbnf:
    grammar = join_prefixes(parse(text, lambda _: None))
    check_size(grammar)
    return grammar


TOOL = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"word{n}" for n in range(5000)]},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(300)}},
        {"anyOf": [{**TOOL, "properties": {"name": {"const": f"tool{n}"}}} for n in range(128)]},
        True,
    ],
    ids=["enum", "optional properties", "tools", "any value"],
)
def test_honest_schemas_are_accepted(schema: object) -> None:
    check_branching(prepared(schema_grammar(schema)))


FLAT = "root ::= " + " | ".join(f"c{n}" for n in range(7000)) + "\n" + "".join(f"c{n} ::= [a-z]\n" for n in range(7000))
NESTED = (
    "root ::= "
    + " ".join(f"g{n}?" for n in range(20))
    + "\n"
    + "".join(f"g{n} ::= " + " | ".join(f"[a-{chr(98 + m % 20)}] [{m}]" for m in range(400)) + "\n" for n in range(20))
)


@pytest.mark.parametrize("grammar", [FLAT, NESTED], ids=["flat", "after optional parts"])
def test_too_many_ways_are_refused(grammar: str) -> None:
    with pytest.raises(GrammarError, match="more than 6000 alternatives are possible at one place"):
        check_branching(prepared(grammar))


def test_common_beginnings_are_one_way() -> None:
    grammar = join_prefixes(parse("root ::= " + " | ".join(f'"w{n}" [x]' for n in range(100)), lambda _: None))
    assert all(len(rule.alternatives or ()) <= 11 for rule in grammar.rules)
