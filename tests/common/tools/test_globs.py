"""Glob patterns: which paths they match, and that no pattern is slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.tools.globs import Glob


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**", "a/b/c.py", True),
        ("*.py", "a/b/c.py", True),
        ("*.py", "c.pyc", False),
        ("?.py", "a/b/c.py", True),
        ("b", "a/b/c.py", False),
        ("b/*.py", "a/b/c.py", True),
        ("a/*.py", "a/b/c.py", False),
        ("a/**/*.py", "a/b/c.py", True),
        ("a/**/*.py", "a/c.py", True),
        ("src/x.c", "src/x.c", True),
        ("/b/*.py", "a/b/c.py", False),
        ("/a/*/c.py", "a/b/c.py", True),
        ("**/c.py", "c.py", True),
        ("**/c.py", "xc.py", False),
        ("a**c", "abc", True),
        ("[abc].py", "b.py", True),
        ("[!abc].py", "b.py", False),
        ("[a-c]?[!x-z]", "b-w", True),
        ("[]x]", "]", True),
        ("[-x]", "-", True),
        ("[x", "[x", True),
        ("[!]", "[!]", True),
        ("", "", True),
        ("a[/]b", "a/b", False),
        ("straße*", "x/straße 1", True),
    ],
)
def test_meaning(pattern: str, path: str, expected: bool) -> None:
    assert Glob(pattern)(path) is expected


def plain_match(pattern: str, text: str) -> bool:
    """Match `*`, `**` and `?` by backtracking, as a reference."""
    if not pattern:
        return not text
    if pattern.startswith("**"):
        return any(plain_match(pattern[2:], text[n:]) for n in range(len(text) + 1))
    if pattern[0] == "*":
        name = text.split("/")[0]
        return any(plain_match(pattern[1:], text[n:]) for n in range(len(name) + 1))
    taken = text[:1] not in ("", "/") if pattern[0] == "?" else text[:1] == pattern[0]
    return taken and plain_match(pattern[1:], text[1:])


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_it_agrees_with_a_backtracking_matcher(pattern: str, name: str) -> None:
    assert Glob(pattern)(name) == plain_match(pattern, name)


@given(st.text("a*/[]!-?", max_size=12), st.text("a/", max_size=12))
def test_no_pattern_fails(pattern: str, path: str) -> None:
    assert Glob(pattern)(path) in (True, False)


def test_a_hostile_pattern_is_fast() -> None:
    began = time.process_time()
    assert not Glob("**a" * 60 + "b")("a" * 400)
    assert time.process_time() - began < 5
