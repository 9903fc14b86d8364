"""Edits of files: each must match exactly once, typographic characters are tolerated, other text is unchanged."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_corral.common.tools.edits import Edit, apply_edits
from llama_corral.common.tools.errors import ToolFailed


def edited(text: str, *pairs: tuple[str, str]) -> str:
    return apply_edits(text, [Edit(old, new) for old, new in pairs], "f.txt")


@pytest.mark.parametrize(
    ("text", "pairs", "expected"),
    [
        ("one\ntwo\nthree\n", [("two", "2")], "one\n2\nthree\n"),
        ("one\ntwo\nthree", [("three", "3"), ("one\n", "")], "two\n3"),
        ("a\r\nb\r\n", [("a\r\n", "x\r\n")], "x\r\nb\r\n"),
        ("ab", [("a", "b"), ("b", "a")], "ba"),
        ("x  \ny\t\nz  \n", [("x\ny", "n")], "n\nz  \n"),
        ("it’s “here” \nkeep – this  \n", [('it\'s "here"', "gone")], "gone\nkeep – this  \n"),
        ("a\u00a0b", [("a b", "c")], "c"),
        ("one \ntwo \nthree \nfour \n", [("two\nthree", "2\n3")], "one \n2\n3\nfour \n"),
        ("a \nb \nc \n", [("a\n", "A\n"), ("b\n", "B\n")], "A\nB\nc \n"),
        ("line\x0bwith\u2028odd\x85ends \nx\n", [("ends\n", "end\n")], "line\x0bwith\u2028odd\x85end\nx\n"),
    ],
)
def test_edits(text: str, pairs: list[tuple[str, str]], expected: str) -> None:
    assert edited(text, *pairs) == expected


@pytest.mark.parametrize(
    ("text", "pairs", "said"),
    [
        ("dup\ndup\n", [("dup", "x")], "unique"),
        ("dup \ndup\n", [("dup \n", "x\n")], "unique"),
        ("abc", [("x", "y")], "edits[0].old_text is not in f.txt"),
        ("abc", [("a", "x"), ("z", "y")], "edits[1]"),
        ("abc", [("ab", "x"), ("bc", "y")], "overlap"),
        ("abc", [("a", "a")], "nothing would change"),
        ("abc", [("   ", "a")], "is not in"),
    ],
)
def test_refusals(text: str, pairs: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ToolFailed) as caught:
        edited(text, *pairs)
    assert said in str(caught.value)


TEXTS = st.text("ab ’'\t\r\n", max_size=30)


@example(text="a \n\n ", old="a\n", new="")
@given(TEXTS, st.text("ab '\n", min_size=1, max_size=6), st.text("xy\n", max_size=4))
def test_untouched_lines_do_not_change(text: str, old: str, new: str) -> None:
    try:
        after = edited(text, (old, new))
    except ToolFailed:
        return
    before_lines, after_lines = text.split("\n"), after.split("\n")
    same_start = 0
    while before_lines[same_start : same_start + 1] == after_lines[same_start : same_start + 1] != []:
        same_start += 1
    touched = len(old.split("\n"))
    untouched = before_lines[same_start + touched :]
    assert not untouched or after_lines[-len(untouched) :] == untouched
