"""Check grammars made from JSON schemas with llama.cpp's matcher: which texts are accepted, which schemas refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_corral.worker.engine.llama.model import Model
from llama_corral.worker.engine.llama.options import EngineOptions
from llama_corral.worker.engine.messages import Grammar
from llama_corral.worker.engine.sampling.grammar import GrammarConstraint
from llama_corral.worker.grammar.converter import Converter, schema_grammar
from llama_corral.worker.grammar.numbers import integer_range, number_range
from llama_corral.worker.grammar.schema import CONSTRAINING, SchemaError
from llama_corral.worker.grammar.work import TooMuchWork

Accepts = Callable[[Any, str], bool]


@pytest.fixture(scope="module")
def accepts(models: Path) -> Iterator[Accepts]:
    """Return a function that is True if the grammar of a schema accepts exactly the given text."""
    model = Model(EngineOptions(model=models / "tiny-llama.gguf"), lambda _: None)

    def check(schema: Any, text: str) -> bool:
        constraint = GrammarConstraint(Grammar(schema_grammar(schema)), model.vocab)
        try:
            for byte in text.encode():
                token = model.vocab.byte_tokens[byte]
                if not constraint.allows(token):
                    return False
                constraint.accept(token)
            return constraint.allows(model.vocab.eos)
        finally:
            constraint.close()

    yield check
    model.close()


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "pet": {"$ref": "#/$defs/pet"}},
    "required": ["name"],
    "$defs": {"pet": {"enum": ["cat", None, 7]}},
}
TREE = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
SHAPES = {"anyOf": [{"required": ["r"]}, {"required": ["w"]}], "type": "object",
          "properties": {"r": {"type": "integer"}, "w": {"type": "integer"}}}  # fmt: skip

CASES: list[tuple[Any, list[str], list[str]]] = [
    (True, ["1", '"a"', '{"a": [null]}', "-1.5e3"], ["a", "[1,", '"\n"']),
    ({"type": "object"}, ["{}", '{"a": 1}', "{ }"], ["[]", "1", '{"a"}']),
    ({"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
    ({"const": {"a": [1, "é"]}}, ['{"a":[1,"é"]}'], ['{"a": [1,"é"]}']),
    ({"enum": ["a", 1, None], "type": ["string", "null"]}, ['"a"', "null"], ["1"]),
    (PERSON, ['{"name": "x"}', '{"name": "x", "pet": null}', '{"name": "x", "age": 3, "pet": "cat"}'],
     ["{}", '{"age": 3}', '{"name": "x", "pet": "dog"}', '{"pet": "cat", "name": "x"}', '{"name": "x", "z": 1}']),
    (TREE, ["{}", '{"left": {"right": {}}}'], ['{"left": 1}']),
    ({"properties": {"a": {}}, "required": ["a", "b"]}, ['{"a": 1, "b": 2}'], ['{"a": 1}']),
    ({"properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     ['{"ab": null}', '{"ab": null, "b": 1}', '{"abc": 2}', '{"b\\n": 1}'], ['{"ab": 1}', '{"b": null}', '{"\\q": 1}']),
    ({"items": [{"type": "integer"}, {"type": "null"}]}, ["[1, null]"], ["[1]", "[1, null, 2]"]),
    ({"prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "maxItems": 2}, ["[1]", "[1, null]"],
     ["[]", "[1, null, null]", "[1, 2]"]),
    ({"prefixItems": [{"type": "integer"}], "minItems": 2}, ['[1, "x"]'], ["[1]"]),
    ({"items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}, ["[true]", "[true, false, true]"],
     ["[]", "[1]", "[true, true, true, true]"]),
    ({"type": "array", "items": False}, ["[]"], ["[1]"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"abc"', '"\\n\\n"', '"éé"'], ['"a"', '"abcd"']),
    ({"pattern": "^a+(b|cd)?$"}, ['"a"', '"aab"', '"acd"'], ['"b"', '"abb"']),
    ({"pattern": "b{2}"}, ['"abba"', '"bb"'], ['"bab"']),
    ({"pattern": r"^\d\w\s[^a-z]$"}, ['"1_ A"', r'"1b\t\""'], ['"aa A"', '"1_ a"', '"1_ ""']),
    ({"pattern": '^"\\\\$'}, [r'"\"\\"'], ['""\\"']),
    ({"pattern": "^a|b$"}, ['"ax"', '"xb"'], ['"xa"']),
    ({"pattern": r"^(?:[\u00e0-\u00ff]|\x41){1,2}?$"}, ['"éA"'], ['"B"', '"AAA"']),
    ({"pattern": "^.$"}, ['"a"', r'"\""', '"é"'], ['"""', '"\\n"', '"ab"']),
    ({"type": "string", "format": "date"}, ['"2026-11-20"'], ['"2026-13-20"', '"x"']),
    ({"format": "date-time"}, ['"2026-11-20T10:00:00Z"'], ['"2026-11-20"']),
    ({"format": "time"}, ['"23:59:59.123+01:00"'], ['"24:00:00Z"']),
    ({"format": "uuid4"}, ['"01234567-89ab-cdef-0123-456789abcdef"'], ['"0123"']),
    ({"format": "ipv4"}, ['"127.0.0.1"', '"255.9.10.0"'], ['"256.0.0.1"', '"1.2.3"']),
    ({"type": "string", "format": "email"}, ['"a.b@c-d.org"'], ['"a@b"', '"a b@c.de"']),
    ({"type": "string", "format": "uri"}, ['"https://a.b/c?d=e#f"'], ['"a b"']),
    ({"type": "string", "format": "hostname"}, ['"a-b.example"'], ['"-a"']),
    ({"type": "integer", "format": "int32"}, ["-5"], ["1.5"]),
    ({"type": "string", "format": "nanoid"}, ['"a b"'], ["1"]),
    ({"type": "string", "format": "uri", "pattern": "^a:b+$"}, ['"a:bb"'], ['"a:c"']),
    ({"type": "string", "format": "email", "pattern": r"^(?!\.)[^@]+@.+$"}, ['"a@b.de"'], ['".a@b.de"', '"a"']),
    ({"pattern": r"^[a-z\]]+$", "maxLength": 2}, ['"a"', '"a]"'], ['""', '"abc"']),
    ({"pattern": r"^\d*$", "minLength": 2, "maxLength": 3}, ['"12"', '"123"'], ['"1"', '"1234"']),
    ({"pattern": "^a(b|c)+$", "maxLength": 2}, ['"ab"'], ['"a"', '"abcb"']),
    ({"type": "string", "format": "email", "minLength": 5, "maxLength": 50}, ['"a@b.de"'], ['"a b"']),
    ({"type": "string", "format": "date", "maxLength": 10}, ['"2026-11-20"'], ['"2026"']),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.25", "1", "1.0"], ["-0.1", "1.01", "2"]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 10.5}, ["0.001", "10.5", "9.99"], ["0", "0.0", "10.51"]),
    ({"minimum": -2, "exclusiveMaximum": 3}, ["-2", "2.999"], ["3", "-2.1", '"a"']),
    ({"type": "number", "minimum": 3, "exclusiveMinimum": True}, ["3.1"], ["3"]),
    ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, ["2", "3"], ["1", "4"]),
    ({"type": "integer", "multipleOf": 1}, ["2"], ["2.5"]),
    ({"type": "integer", "multipleOf": 15}, ["0", "-30", "1005"], ["5", "-10", "1010", "015"]),
    ({"multipleOf": 0.25, "minimum": -0.5, "exclusiveMaximum": 10}, ["-0.5", "0", "1.25", "9.75", "3.50"],
     ["-0.75", "10", "1.3", '"a"']),
    ({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}]}, ["12", "24"], ["4", "6", "8"]),
    ({"pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "minLength": 3, "maxLength": 5}, ['"abc"', '"a-b-c"'],
     ['"ab"', '"abcd-"', '"abc-de"']),
    ({"pattern": "b{2}", "minLength": 3, "maxLength": 4}, ['"bba"', r'"\"bb"', '"abba"'], ['"bb"', '"abb', '"abbab"']),
    ({"pattern": "^(ab)+$", "minLength": 5}, ['"ababab"', '"abababab"'], ['"abab"', '"ababa"']),
    ({"format": "email", "maxLength": 8}, ['"a@b.de"', '"abc@d.ef"'], ['"abcd@e.fg"', '"a@b"']),
    ({"format": "date-time", "maxLength": 20}, ['"2026-11-20T10:00:00Z"'], ['"2026-11-20T10:00:00+00:00"']),
    ({"format": "uri", "maxLength": 2083, "minLength": 1}, ['"a:b"'], ['"a b"']),
    ({"format": "duration"}, ['"P3DT12H30M5S"', '"PT5S"', '"P1W"', '"P1Y2M3D"'], ['"P"', '"PT"', '"P1DT"', '"PT1H5S"']),
    ({"format": "json-pointer"}, ['""', '"/a~1b/c"'], ['"a"', '"/~2"']),
    ({"format": "relative-json-pointer"}, ['"1/a"', '"0#"'], ['"/a"']),
    ({"format": "iri"}, ['"http://é.de/ü"'], ['"http://é d"']),
    ({"enum": [1, 2, 3, 4.5], "minimum": 2, "multipleOf": 1}, ["2", "3"], ["1", "4.5"]),
    ({"enum": ["a", "abc", "b1", 7], "minLength": 2, "pattern": "^a", "type": "string"}, ['"abc"'],
     ['"a"', '"b1"', "7"]),
    ({"enum": [True, 1, {"a": 1}, {"a": 1, "b": 2}], "required": ["a"], "maxProperties": 1}, ['{"a":1}', "true", "1"],
     ['{"a":1,"b":2}']),
    ({"enum": [1, 2, 3], "not": {"const": 2}}, ["1", "3"], ["2"]),
    ({"const": "é", "maxLength": 1}, ['"é"'], ['"e"']),
    ({"enum": [10**40, 3 * 10**40, 0.3, 7, 1e300], "multipleOf": 0.3}, [f"{3 * 10**40}", "0.3"], ["7", f"{10**40}"]),
    ({"enum": [3, 7 * 10**39, 10**400], "maximum": 1e40, "multipleOf": 7}, [f"{7 * 10**39}"], ["3"]),
    ({"allOf": [{"enum": [1, 0]}, {"enum": [True, 0]}]}, ["0"], ["1", "true"]),
    ({"allOf": [{"const": [1]}, {"const": [1.0]}]}, ["[1]"], ["[true]"]),
    ({"anyOf": [{"const": 1}, {"const": 2}], "const": 2}, ["2"], ["1"]),
    ({"propertyNames": {"enum": ["a"]}, "type": "object", "unevaluatedProperties": {"type": "integer"}},
     ["{}", '{"a": 1}'], ['{"a": null}', '{"b": 1}']),
    ({"anyOf": [{"enum": [1, 2]}, {"const": 9}], "maximum": 1}, ["1"], ["2", "9"]),
    ({"propertyNames": {"type": "string", "enum": ["a", "b"]}, "additionalProperties": {"type": "null"},
      "required": ["a"]}, ['{"a": null}', '{"a": null, "b": null}'], ["{}", '{"a": null, "c": null}', '{"a": 1}']),
    ({"type": "object", "unevaluatedProperties": False}, ["{}"], ['{"a": 1}']),
    ({"prefixItems": [{"type": "null"}], "unevaluatedItems": False}, ["[null]"], ["[null, 1]"]),
    ({"oneOf": [{"type": "integer"}, {"const": "x"}]}, ["1", '"x"'], ["null"]),
    (SHAPES, ['{"r": 1}', '{"w": 2}', '{"r": 1, "w": 2}'], ["{}", '{"x": 1}']),
    ({"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"type": "null"}}}],
      "$defs": {"a": {"type": "object", "properties": {"a": {"type": "integer"}}}}},
     ['{"a": 1, "b": null}'], ['{"b": null}']),
    ({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}, ["2", "3"], ["1", "4"]),
    ({"allOf": [{"minimum": 1}, {"maximum": 3, "type": "integer"}]}, ["1", "3"], ["0", "4", "2.5"]),
    ({"allOf": [{"anyOf": [{"const": 1}, {"type": "string"}]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}]},
     ["1"], ['"a"', "null"]),
    ({"$ref": "#/$defs/n", "minimum": 5, "$defs": {"n": {"type": "integer", "maximum": 7}}}, ["5", "7"], ["4", "8"]),
    ({"type": "array", "items": [{"$ref": "#/$defs/a.b"}, {"$ref": "#/$defs/a_b"}],
      "$defs": {"a.b": {"enum": [1, 2]}, "a_b": {"enum": ["x", "y"]}}}, ['[1, "x"]'], ["[1, 2]", '["x", "y"]']),
    ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, ["1"], ["2"]),
    ({"type": "object", "properties": {"string": {"type": "string"}, "root": {}, "a b/c": {}}},
     ['{"string": "x", "root": 1, "a b/c": 2}'], ['{"string": 1}']),
    ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    ({"properties": {'a"\\': {"type": "null"}}}, [r'{"a\"\\": null}'], ['{"a": null}']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "allowed", "forbidden"), CASES, ids=range(len(CASES)))
def test_a_grammar_accepts_only_texts_of_the_schema(
    accepts: Accepts, schema: Any, allowed: list[str], forbidden: list[str]
) -> None:
    assert [text for text in allowed if not accepts(schema, text)] == []
    assert [text for text in forbidden if accepts(schema, text)] == []


NO_EFFECT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"patternProperties": {}}),
    ({}, {"patternProperties": {"^a": True}}),
    ({}, {"dependentRequired": {}}),
    ({"required": ["b"]}, {"dependentRequired": {"a": ["b"], "c": []}}),
    ({}, {"dependentSchemas": {"a": {}}, "dependencies": {"a": [], "b": True}}),
    ({}, {"propertyNames": {"type": "string"}}),
    ({"required": ["a", "b"]}, {"minProperties": 2}),
    ({"properties": {"a": {}}, "additionalProperties": False}, {"maxProperties": 1}),
    ({}, {"unevaluatedProperties": True}),
    ({}, {"contains": {"type": "null"}, "minContains": 0}),
    ({}, {"minContains": 2, "maxContains": 1}),
    ({"maxItems": 1}, {"uniqueItems": True}),
    ({"type": "array"}, {"uniqueItems": False, "unevaluatedItems": True}),
    ({"type": "null"}, {"not": False}),
    ({"type": "integer"}, {"then": {"const": 1}, "else": {"const": 2}}),
    ({"type": "integer"}, {"if": {"const": 1}}),
    ({"type": "integer"}, {"if": {"const": 1}, "then": True, "else": {}}),
    ({"type": "string"}, {"not": None, "uniqueItems": None, "propertyNames": None}),
    ({"anyOf": [{"type": "null"}, {"type": "string"}]}, {"then": False}),
    ({"properties": {"a": {"$ref": "#"}}}, {"patternProperties": {}, "contains": True, "minContains": 0}),
]


@pytest.mark.parametrize(("schema", "without_effect"), NO_EFFECT, ids=range(len(NO_EFFECT)))
def test_a_keyword_without_effect_is_as_if_it_were_not_there(
    schema: dict[str, Any], without_effect: dict[str, Any]
) -> None:
    assert schema_grammar({**schema, **without_effect}) == schema_grammar(schema)
    inside = {"allOf": [{"properties": {"x": {**schema, **without_effect}}}]}
    assert schema_grammar(inside) == schema_grammar({"allOf": [{"properties": {"x": schema}}]})


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (5, "schema must be an object"),
        (False, "false allows no value"),
        ({"type": "hiccup"}, "unrecognized type hiccup"),
        ({"type": 123}, "type must be a string"),
        ({"type": []}, "type must not be empty"),
        ({"not": {}}, '"not"'),
        ({"if": {}, "then": {"const": 1}}, '"if"'),
        ({"patternProperties": {"^a": {"type": "null"}}}, '"patternProperties"'),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, '"patternProperties"'),
        ({"propertyNames": {"pattern": "^a"}}, '"propertyNames"'),
        ({"required": ["a"], "minProperties": 2}, '"minProperties"'),
        ({"dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
        ({"contains": {"type": "null"}, "minContains": 0, "maxContains": 1}, '"contains"'),
        ({"type": "array", "maxItems": 2, "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "object", "maxProperties": 2}, '"maxProperties"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"contains": {}}, '"contains"'),
        ({"type": "integer", "multipleOf": 99_991}, '"multipleOf" is not supported with 99991'),
        ({"multipleOf": 0}, "multipleOf must be above 0"),
        ({"multipleOf": 10, "minimum": 1, "maximum": 9}, "no multiple of 10"),
        ({"pattern": "^[a-z]{5}$", "maxLength": 4}, "no text of the required length"),
        ({"format": "date", "minLength": 11}, "no text of the required length"),
        ({"pattern": "(a|b)*a(a|b){18}c", "maxLength": 1000}, "too large together with minLength or maxLength"),
        ({"pattern": "^(a{0,1000}){0,20}$", "maxLength": 1000}, "it is too large"),
        ({"type": "string", "format": "regex"}, 'format "regex"'),
        ({"enum": ["a"], "minLength": 2}, "no value of enum"),
        ({"enum": ["a"], "pattern": "(?=a)"}, "lookaround"),
        ({"enum": [{}], "unevaluatedProperties": False}, '"unevaluatedProperties" together with enum'),
        ({"pattern": "(?=a)b"}, "lookaround"),
        ({"pattern": r"(a)\1"}, "the escape \\1"),
        ({"pattern": "(a"}, "unbalanced parentheses"),
        ({"pattern": "a)"}, "unbalanced parentheses"),
        ({"pattern": "*a"}, "nothing to repeat"),
        ({"pattern": "[a"}, "unterminated character class"),
        ({"pattern": "a{9999}"}, "the repetition"),
        ({"pattern": "(^a)"}, "anchor"),
        ({"pattern": "(" * 101 + ")" * 101}, "nesting"),
        ({"$ref": "#/nowhere"}, "cannot resolve $ref #/nowhere"),
        ({"$ref": "https://example.org/a"}, "only references into the same document"),
        ({"$ref": "#/$defs/a", "type": "null", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
        ({"anyOf": []}, "must not be empty"),
        ({"anyOf": 1}, "must be an array of schemas"),
        ({"enum": []}, "enum must be a non-empty array"),
        ({"enum": [1], "type": "string"}, "no value of enum"),
        ({"properties": []}, "properties must be an object"),
        ({"required": 1}, "required must be an array"),
        ({"const": {}, "not": {"required": [[]]}}, "required must be an array of strings"),
        ({"const": {"a": 1}, "dependentRequired": {"a": 5}}, "dependentRequired must be an array of strings"),
        ({"allOf": [{"properties": {}, "required": [{}]}, {"type": "object"}]}, "required must be an array of strings"),
        ({"properties": {"a": {}}, "required": ["b"], "additionalProperties": False}, '"b" is not allowed'),
        ({"minLength": -1}, "minLength must be a non-negative integer"),
        ({"minLength": 2001}, "minLength above 2000"),
        ({"minItems": 2, "maxItems": 1}, "maxItems is below minItems"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "the minimum is above the maximum"),
        ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, "no number is above"),
        ({"type": "number", "minimum": "3"}, "minimum must be a number"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "no value can satisfy all of these schemas"),
        ({"allOf": [{"const": 1}, {"const": True}]}, "two constants"),
        ({"properties": {"a": {"allOf": [{"const": [0]}, {"const": [False]}]}}}, "two constants"),
        ({"type": "number", "minimum": float("nan")}, "minimum must be a number"),
        ({"enum": [float("inf")], "multipleOf": 3}, "a number is not finite"),
        ({"properties": {"a": {"properties": {"b": {"not": {}}}}}}, "#/properties/a/properties/b"),
    ],
)
def test_an_unsupported_keyword_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(SchemaError, match="JSON schema error at #") as refused:
        schema_grammar(schema)
    assert named in str(refused.value)


def doubling(keyword: str, n: int = 40) -> dict[str, Any]:
    """Return definitions of which each refers twice to the next, through a keyword for several schemas."""
    last: Any = {"type": "integer", "minimum": 2}
    steps = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(n)}
    return {"$defs": {**steps, f"d{n}": last}, "$ref": "#/$defs/d0"}


EITHER = {"type": ["object", "array"]}
EXCESSIVE: dict[str, Any] = {
    "checks": {**doubling("anyOf"), "enum": [1]},
    "all": {"$defs": doubling("allOf")["$defs"], "const": 3, "not": {"$ref": "#/$defs/d0"}},
    "one": {**doubling("oneOf"), "enum": [1, 2, 3]},
    "types": {
        "$defs": {f"d{i}": {"type": ["object", "array"], "properties": {"a": EITHER | {"$ref": f"#/$defs/d{i + 1}"}},
                            "items": EITHER | {"$ref": f"#/$defs/d{i + 1}"}} for i in range(16)} | {"d16": {}},
        "$ref": "#/$defs/d0",
    },
    "alternatives": {
        "properties": {f"p{i}": {"type": "string"} for i in range(600)},
        "anyOf": [{"required": [f"p{i}"]} for i in range(600)],
    },
    "values": {"allOf": [{"enum": list(range(5000))}, {"enum": list(range(5000, 0, -1))}]},
    "items": {"const": [*range(5000)], "uniqueItems": True},
    "patterns": {
        "properties": {f"p{i}": {"pattern": f"^(a{{0,20}}b?){{0,{i + 9}}}$", "maxLength": 40} for i in range(60)}
    },
}  # fmt: skip


@pytest.mark.parametrize("schema", EXCESSIVE.values(), ids=EXCESSIVE)
@pytest.mark.parametrize("lenient", [False, True])
def test_a_small_schema_with_a_huge_grammar_is_refused(schema: Any, lenient: bool) -> None:
    converter = Converter(schema, lenient=lenient)
    with pytest.raises(TooMuchWork, match="too complex"):
        converter.visit(schema, "", "#")


def test_the_work_of_a_grammar_grows_with_its_schema() -> None:
    """Large schemas that are not nested excessively are converted, also with names that differ only in their signs."""
    names = [f"{chr(0x4E00 + i)}{chr(0x4E00 + i)}" for i in range(3000)]
    spent = []
    for n in (1500, 3000):
        converter = Converter({"type": "object"})
        converter.visit({"type": "object", "properties": {name: {"enum": ["a", 1]} for name in names[:n]}}, "", "#")
        spent.append(converter.rules.budget.spent)
    assert spent[1] == pytest.approx(2 * spent[0], rel=0.1)
    texts = {"type": "string", "enum": [f"a{i}" for i in range(5000)], "pattern": "^a[0-9]+$"}
    assert "a4999" in schema_grammar(texts)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"items": deep}
    with pytest.raises(SchemaError, match="nested too deeply"):
        schema_grammar(deep)


def test_the_grammar_text_equals_llama_servers() -> None:
    """A simple schema, compared exactly: the same seed must give the same tokens."""
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}, "b": {"enum": [1, 2]}},
              "required": ["a"]}  # fmt: skip
    assert schema_grammar(schema).splitlines() == [
        "a ::= ([1-2] [0-9]{1,15} | [3-9] [0-9]{0,15})",
        r'a-kv ::= "\"a\"" space ":" space a',
        'b ::= ("1" | "2")',
        r'b-kv ::= "\"b\"" space ":" space b',
        'root ::= "{" space a-kv ( "," space ( b-kv ) )? space "}"',
        r'space ::= | " " | "\n"{1,2} [ \t]{0,20}',
    ]


BOUND = st.none() | st.integers(-2000, 2000)
FINE_BOUND = st.none() | st.decimals(-300, 300, places=2)


def _matches(expression: str, text: str) -> bool:
    """Convert the expression to a regular expression and match it."""
    import re

    pattern = expression.replace('"."', "[.]").replace('"', "").replace(" ", "")
    return re.fullmatch(f"(?:{pattern})", text) is not None


@given(BOUND, BOUND, st.integers(-2500, 2500))
def test_integers_between_bounds(low: int | None, high: int | None, value: int) -> None:
    if low is None and high is None:
        return
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    inside = (low is None or low <= value) and (high is None or value <= high)
    assert _matches(integer_range(low, high), str(value)) == inside
    assert value < 0 or not _matches(integer_range(low, high), f"0{value}")


@settings(max_examples=300)
@given(FINE_BOUND, FINE_BOUND, st.booleans(), st.booleans(), st.decimals(-400, 400, places=3) | st.none())
def test_numbers_between_bounds(
    low: Decimal | None, high: Decimal | None, above: bool, below: bool, value: Decimal | None
) -> None:
    if low is None and high is None:
        return
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
        if low == high and (above or below):
            return
    tried = [number for number in (low, high, value) if number is not None]
    for number in tried:
        inside = (low is None or low < number or (low == number and not above)) and (
            high is None or number < high or (high == number and not below)
        )
        for text in {format(number, "f"), format(number, "f") + "0", format(number.normalize(), "f")}:
            assert _matches(number_range(low, high, above, below), text) == inside, text


STEPS = st.sampled_from(["2", "3", "7", "15", "60", "100", "0.01", "0.05", "0.25", "1.5"])


@settings(max_examples=60, deadline=None)
@given(STEPS, BOUND, FINE_BOUND, st.booleans(), st.booleans(), st.integers(-300, 300), st.sampled_from([1, 1, 2, 100]))
def test_multiples_between_bounds(
    accepts: Accepts, step: str, low: int | None, high: Decimal | None, strict: bool, whole: bool, n: int, part: int
) -> None:
    schema: dict[str, Any] = {"type": "integer" if whole else "number", "multipleOf": json.loads(step)}
    if low is not None:
        schema["exclusiveMinimum" if strict else "minimum"] = low
    if high is not None:
        schema["maximum"] = float(high)
    value = n * Decimal(step) / part
    inside = value % Decimal(step) == 0 and (not whole or value % 1 == 0) and (high is None or value <= high)
    inside = inside and (low is None or low < value or (low == value and not strict))
    try:
        assert accepts(schema, format(value.normalize(), "f") if value else "0") == inside
    except SchemaError:
        assert not inside


PATTERNS = ["^(ab|c)*$", "^a(b|cd)?[a-c]+$", "b{2,3}", "^[ab]*a[bc]$|^c+$", r"^\w(-\w)*$"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(0, 5), st.none() | st.integers(0, 8), st.text("abc-", max_size=9))
def test_a_pattern_and_a_length(accepts: Accepts, pattern: str, low: int, high: int | None, text: str) -> None:
    import re

    schema = {"pattern": pattern, "minLength": low, **({} if high is None else {"maxLength": high})}
    inside = bool(re.search(pattern, text)) and low <= len(text) and (high is None or len(text) <= high)
    try:
        assert accepts(schema, json.dumps(text)) == inside
    except SchemaError:
        assert not inside


SCHEMAS = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "null"}, {"type": "boolean"}, {"enum": ["a", 2]},
                     {"type": "number", "minimum": -1}]),
    lambda inner: st.one_of(
        st.builds(lambda item: {"type": "array", "items": item}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda of: {"type": "object", "properties": of, "required": sorted(of)[:1]},
                  st.dictionaries(st.sampled_from(["a", "b", "string"]), inner, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_a_random_instance_of_a_schema_is_accepted(accepts: Accepts, schema: Any, random: Any) -> None:
    value = _instance(schema, random)
    assert accepts(schema, json.dumps(value))


def _instance(schema: Any, random: Any) -> Any:
    if "anyOf" in schema:
        return _instance(random.choice(schema["anyOf"]), random)
    if "enum" in schema:
        return random.choice(schema["enum"])
    match schema["type"]:
        case "object":
            names = [n for n in schema["properties"] if n in schema["required"]]
            names += [n for n in schema["properties"] if n not in names and random.random() < 0.5]
            return {name: _instance(schema["properties"][name], random) for name in names}
        case "array":
            return [_instance(schema["items"], random) for _ in range(random.randint(0, 3))]
        case "string":
            return random.choice(["", "text", 'quo"te\\', "é\n"])
        case "integer":
            return random.randint(-(10**6), 10**6)
        case "number":
            return random.choice([0, -1, 0.5, 17.25])
        case "boolean":
            return random.random() < 0.5
    return None


KEYWORDS = sorted(CONSTRAINING | {"$defs", "title"})
TEXTS = st.sampled_from(["", "a", "^a+$", "#", "date", "email", "string", "object", "array", "#/$defs/a"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), ANY_JSON, max_size=5), st.booleans())
def test_any_json_is_converted_or_refused(schema: Any, lenient: bool) -> None:
    try:
        converter = Converter(schema, lenient=lenient)
        assert converter.visit(schema, "", "#")
    except SchemaError:
        pass


# -- schemas of tools ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ({"type": "string", "pattern": "(?=x)"}, "string"),
        ({"type": "string", "format": "int32"}, "string"),
        ({"type": "string", "enum": ["a", "b"], "minLength": 1}, '("\\"a\\"" | "\\"b\\"")'),
        ({"type": "integer", "multipleOf": 99_991, "not": {"const": 3}}, "integer"),
        ({"type": "integer", "minimum": 3, "maximum": 5, "not": {"const": 4}}, "([3-5])"),
        ({"type": "string", "maxLength": 5, "format": "regex"}, '"\\"" char{0,5} "\\""'),
        ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}, '"[" space (boolean'),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "uniqueItems": True}, '"[" space boolean'),
        ({"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": False}, "object"),
        ({"type": "dict"}, "value"),
        ({"$ref": "http://example.com/schema"}, "value"),
        ({"if": {"type": "string"}}, "value"),
        ("text", "value"),
    ],
)
def test_an_unsupported_keyword_is_relaxed_in_lenient_mode(schema: Any, rule: str) -> None:
    whole = {"type": "object", "properties": {"a": schema}, "required": ["a"], "propertyNames": {"pattern": "^a"}}
    converter = Converter(whole, lenient=True)
    converter.visit(whole, "", "#")
    rules = dict(line.split(" ::= ") for line in converter.rules.text().splitlines())
    found = rules["a-kv"].rpartition(" space ")[2]
    assert rules.get(found, found).startswith(rule) or found == rule
    with pytest.raises(SchemaError):
        schema_grammar(whole)


def test_a_schema_nested_too_deeply_is_relaxed_in_lenient_mode() -> None:
    schema: Any = {"type": "boolean"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    assert Converter(schema, lenient=True).visit(schema, "a", "#")
