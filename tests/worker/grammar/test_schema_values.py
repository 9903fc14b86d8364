"""Wrong values of schema keywords are refused by name, alone and merged with others."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from llama_corral.worker.grammar.converter import schema_grammar
from llama_corral.worker.grammar.schema import CONSTRAINING, SchemaError

WRONG: list[Any] = [
    *("x", 5, -1, 1.5, [], {}, True, False, 10**400, -(10**400), 1e308, ["x"], [5], [[]], [None]),
    *({"a": 5}, {"a": []}, {"a": {"required": {}}}, [{"minLength": "x"}], [{"enum": 5}], "#", "#/x", "#/allOf/1"),
]


@pytest.mark.parametrize("keyword", sorted(CONSTRAINING))
def test_a_wrong_value_is_a_schema_error_and_no_other(keyword: str) -> None:
    for value in WRONG:
        for other in ({}, {"type": "string"}, *({keyword: wrong} for wrong in WRONG)):
            for schema in ({"allOf": [{keyword: value}, other]}, {**other, keyword: value}):
                with suppress(SchemaError):
                    schema_grammar(schema)


@pytest.mark.parametrize(
    ("keyword", "value", "right"),
    [
        *(("minLength", "x", 1), ("enum", 5, ["a"]), ("properties", [], {"a": True}), ("required", {}, ["a"])),
        *(("maximum", [], 5), ("minItems", True, 1), ("items", 5, {"type": "string"}), ("allOf", {}, [{}])),
    ],
)
def test_the_error_names_the_keyword(keyword: str, value: object, right: object) -> None:
    for parts in ([{keyword: right}, {keyword: value}], [{keyword: value}, {keyword: right}]):
        with pytest.raises(SchemaError, match=rf"{keyword}|must be an object"):
            schema_grammar({"allOf": parts})
