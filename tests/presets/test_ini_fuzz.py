"""Files that hypothesis makes for the reader of presets files, with `target` towards files of which more is read."""

from __future__ import annotations

import random

from fuzzing.files import INI, LINES, any_file
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

LINE = st.sampled_from(LINES) | st.text('[]=;#"\\ \tab*:,.0-\x00\x0b\x85\u2028', max_size=20)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_any_file_is_read_or_refused(seed: int) -> None:
    target(float(INI.check(any_file(random.Random(seed), INI, ()))), label="options that were read")


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINE, max_size=30), st.sampled_from(("\n", "\r\n", "\r")))
def test_any_lines_are_read_or_refused(lines: list[str], end: str) -> None:
    data = end.join(lines).encode("utf-8", "surrogateescape")
    target(float(INI.check(data)), label="options that were read")


def test_time_grows_with_the_length_of_the_file() -> None:
    """Each of these files has many lines that need the slow way: repeated sections, faults, unknown keys."""
    for line in ("[a]\n", "[*\n", "[a]\nx = 1\n", '[a]\nmodel = "\\"\n', "a = b ; c ; c\n"):
        INI.check(line.encode() * 2000)
