"""The number of values in a JSON text is counted without parsing it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_corral.common.base.errors import BodyTooLarge
from llama_corral.common.web import json_values
from llama_corral.common.web.json_values import (
    MAX_MEMBERS,
    MAX_OBJECTS_AND_TEXTS,
    MAX_VALUES,
    check_members,
    check_values,
)


@pytest.mark.parametrize("value", [b"[]", b"{}", b'{"a":[1]}', b'"",[]', b'""', b'{"a":1}'])
def test_a_body_with_too_many_containers_is_refused(value: bytes) -> None:
    body = b'{"stop": [' + b",".join([value] * (MAX_OBJECTS_AND_TEXTS + 1)) + b"]}"
    with pytest.raises(
        BodyTooLarge, match=rf"must have at most {MAX_OBJECTS_AND_TEXTS} arrays, objects and texts, but has at least"
    ):
        check_values(body)


def test_a_body_with_too_many_fields_is_refused() -> None:
    with pytest.raises(BodyTooLarge, match="arrays, objects and texts"):
        check_values(json.dumps({str(i): i for i in range(MAX_OBJECTS_AND_TEXTS)}).encode())


def test_a_body_with_too_many_numbers_is_refused() -> None:
    with pytest.raises(BodyTooLarge, match=rf"must have at most {MAX_VALUES} values, but has at least"):
        check_values(b"[" + b"1," * (MAX_VALUES + 1) + b"1]")


@pytest.mark.parametrize("text", ["[{,", '\\"[', "\\\\", '"', "\\", "[\\u0022,\n\t"])
def test_text_in_strings_does_not_count(text: str) -> None:
    check_values(json.dumps({"prompt": text * MAX_VALUES, "n": [1, 2]}).encode())


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{},":\\ aé\n', max_size=12),
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.text(alphabet='",[\\a', max_size=4), inside, max_size=4)
    ),
    max_leaves=30,
)


def test_one_owner_limits_the_members_of_all_objects_that_are_kept_as_texts() -> None:
    check_members(b'"":0,' * MAX_MEMBERS)
    with pytest.raises(BodyTooLarge, match=f"more than {MAX_MEMBERS} members: {MAX_MEMBERS + 1} colons"):
        check_members(b'"":0,' * (MAX_MEMBERS + 1))


def n_commas_and_items(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | dict):
        return 0, int(isinstance(value, str))
    inside = [n_commas_and_items(item) for item in ([*value.values()] if isinstance(value, dict) else value)]
    if isinstance(value, dict):
        inside.append((0, len(value)))
    return sum(n for n, _ in inside) + max(0, len(value) - 1), sum(n for _, n in inside) + 1


@given(JSON, st.integers(1, 9))
@example(["\\", ["a"]], 2)
def test_the_count_is_that_of_the_parsed_value(value: Any, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_PIECE", piece)
        for ascii_only in (True, False):
            body = json.dumps(value, ensure_ascii=ascii_only).encode()
            assert json_values._counted_outside_texts(body) == n_commas_and_items(value)
