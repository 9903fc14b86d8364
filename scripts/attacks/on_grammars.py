"""Attacks on constrained decoding: grammars and schemas that are cheap to send and dear to match."""

from __future__ import annotations

from typing import Any

from .attack import SERVED, Attack, Sent, chat, completion

EITHER = frozenset({200, 400})
"""A grammar that the matcher can bound may be served, another one is refused."""


def doubling(levels: int) -> str:
    """Return a grammar of few bytes with 2**levels ways to derive its only text."""
    rules = [f"a{n} ::= a{n + 1} | a{n + 1}" for n in range(levels)]
    return "\n".join(["root ::= a0", *rules, f'a{levels} ::= "x"'])


def doubling_schema(levels: int) -> dict[str, Any]:
    defs = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**defs, f"a{levels}": {"const": "x"}}, "$ref": "#/$defs/a0"}


def chain(rules: int) -> str:
    lines = [f"a{n} ::= a{n + 1}" for n in range(rules)]
    return "\n".join(["root ::= a0", *lines, f'a{rules} ::= "x"'])


def nested(depth: int) -> str:
    return "root ::= " + "(" * depth + '"x"' + ")" * depth


def nested_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def with_grammar(make: Any, **more: Any) -> Sent:
    return completion(grammar=make, **more)


def with_schema(make: Any) -> Sent:
    return completion(json_schema=make)


HONEST = completion(grammar="root ::= [a-z ]{0,200}")
HONEST_SCHEMA = completion(json_schema={"type": "object", "properties": {"name": {"type": "string"}}})


def attack(name: str, what: str, sent: Sent, *, quick: bool = False) -> Attack:
    honest = HONEST_SCHEMA if "schema" in name else HONEST
    return Attack(name, what, sent, EITHER, honest=honest, quick=quick)


ATTACKS = (
    attack("grammar-doubling", "a0 ::= a1 | a1 …: 2^40 derivations in 700 bytes", with_grammar(lambda: doubling(40))),
    attack("schema-doubling", "the same as $refs of a JSON schema", with_schema(lambda: doubling_schema(40))),
    attack("grammar-chain", "a chain of 100,000 rules", with_grammar(lambda: chain(100_000))),
    attack("grammar-parentheses", "100,000 nested parentheses", with_grammar(lambda: nested(100_000))),
    attack(
        "grammar-optional",
        '("a"? "b"? "c"?){0,200}',
        with_grammar('root ::= ("a"? "b"? "c"?){0,200}'),
    ),
    attack(
        "grammar-ambiguous",
        "s ::= [a-z] s? s? s? s?",
        with_grammar("root ::= s\ns ::= [a-z] s? s? s? s?", n_predict=64),
    ),
    attack(
        "grammar-left-recursion", "root ::= root root | x, hidden", with_grammar('root ::= e root "x" | "x"\ne ::= ""')
    ),
    attack(
        "grammar-alternatives",
        "200,000 alternatives",
        with_grammar(lambda: "root ::= " + " | ".join(f'"w{n}"' for n in range(200_000))),
    ),
    attack("grammar-repetitions", "nested repetitions", with_grammar('root ::= ((("a"{1,99}){1,99}){1,99}){1,99}')),
    attack("grammar-ranges", "a class of 100,000 ranges", with_grammar(lambda: "root ::= [" + "a-z" * 100_000 + "]*")),
    attack(
        "schema-enum", "an enum of 100,000 texts", with_schema(lambda: {"enum": [f"text {n}" for n in range(100_000)]})
    ),
    attack("schema-nested", "200 nested arrays", with_schema(lambda: nested_schema(200)), quick=True),
    attack(
        "schema-properties",
        "20,000 optional properties",
        with_schema(lambda: {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20_000)}}),
    ),
    attack(
        "schema-all-of",
        "an allOf of anyOfs: 4^20 combinations",
        with_schema(
            lambda: {"allOf": [{"anyOf": [{"properties": {f"a{n}{m}": {}}} for m in range(4)]} for n in range(20)]}
        ),
    ),
    attack(
        "schema-max-length", "strings of up to 2^31 letters", with_schema({"type": "string", "maxLength": 2**31 - 2})
    ),
    attack(
        "schema-min-items",
        "at least 100,000 items",
        with_schema({"type": "array", "minItems": 100_000, "items": {"type": "string"}}),
    ),
    attack(
        "schema-range",
        "integers between bounds of 300 digits",
        with_schema({"type": "integer", "minimum": -(10**300), "maximum": 10**300}),
    ),
    attack(
        "schema-pattern",
        "a pattern with nested repetitions",
        with_schema({"type": "string", "pattern": "^((a{1,200}){1,200}){1,200}$"}),
    ),
    Attack(
        "schema-all-tokens",
        "an honest schema while every token is a candidate (top_k = 0)",
        completion(json_schema={"type": "object", "properties": {"a": {"type": "string"}}}, top_k=0, n_predict=64),
        SERVED,
        honest=completion(top_k=0, n_predict=64),
        quick=True,
    ),
    attack(
        "tools-many",
        "5,000 tools",
        chat(
            tools=lambda: [
                {
                    "type": "function",
                    "function": {"name": f"t{n}", "parameters": {"type": "object", "properties": {"a": {}}}},
                }
                for n in range(5_000)
            ],
            tool_choice="required",
        ),
    ),
    attack(
        "tools-parameters",
        "a tool whose parameters are the doubling schema",
        chat(
            tools=lambda: [{"type": "function", "function": {"name": "t", "parameters": doubling_schema(40)}}],
            tool_choice="required",
        ),
    ),
)
