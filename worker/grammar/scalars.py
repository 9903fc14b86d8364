"""Build the rules of strings and numbers from their length, pattern, format and range keywords. Pure."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from .automaton import bounded_pattern
from .multiples import Bound, TooManyRules, multiple_rules
from .numbers import integer_range, number_range
from .pattern import UnsupportedPattern, expression, lengths, read_pattern
from .rules import CHAR, MAX_REPETITIONS, GrammarRules, repeated
from .schema import Contradiction, Schema, count, fail, number

_FORMATS = {"date": "date-string", "time": "time-string", "date-time": "date-time-string"}
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LOCAL_PART = r"[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*"
_N = "[0-9]{1,6}"  # more digits are out of range in many programs
_TIMES = (f"{_N}H({_N}M({_N}S)?)?", f"{_N}M({_N}S)?", f"{_N}S")
_DATES = (f"{_N}D", f"{_N}M({_N}D)?", f"{_N}Y({_N}M({_N}D)?)?")
_POINTER = "(/([^/~]|~[01])*)*"
_URI_TEXT = "[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]"
_IRI_TEXT = r"[^\x00-\x20\x7f\"<>\\^`{|}]"
_FORMAT_PATTERNS = {
    "duration": f"^P(({'|'.join(_DATES)})(T({'|'.join(_TIMES)}))?|T({'|'.join(_TIMES)})|{_N}W)$",
    "ipv4": rf"^{_OCTET}(\.{_OCTET}){{3}}$",
    "ipv6": "^([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL})*$",
    "email": rf"^{_LOCAL_PART}@{_LABEL}(\.{_LABEL})+$",
    "uri": f"^[A-Za-z][A-Za-z0-9+.-]*:{_URI_TEXT}+$",
    "uri-reference": f"^{_URI_TEXT}*$",
    "iri": f"^[A-Za-z][A-Za-z0-9+.-]*:{_IRI_TEXT}+$",
    "iri-reference": f"^{_IRI_TEXT}*$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(0|[1-9][0-9]{{0,8}})(#|{_POINTER})$",
}
_DAY = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{3})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_HEX = "[0-9a-fA-F]"
_ANY_LABEL = "[A-Za-z0-9]+(-+[A-Za-z0-9]+)*"  # with the limit of 63 characters it would need too many rules
_COUNTED_PATTERNS = {
    **_FORMAT_PATTERNS,
    "date": f"^{_DAY}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DAY}T{_TIME}$",
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
    "hostname": rf"^{_ANY_LABEL}(\.{_ANY_LABEL})*$",
    "email": rf"^{_LOCAL_PART}@{_ANY_LABEL}(\.{_ANY_LABEL})+$",
}
"""The patterns of formats for strings whose length is limited as well."""
_REPEATED_CHARACTER = re.compile(r"\^(?P<one>\[(?:\\.|[^\]\\])+\]|\\[dDsSwW]|\.)(?P<how>[*+])\$")
_REFUSED_FORMATS = frozenset({"idn-email", "idn-hostname", "regex", "uri-template"})
"""Formats of the standard without a rule. Formats outside the standard (`int32`, `path`, `nanoid`) are ignored."""


def string_rule(rules: GrammarRules, schema: Schema, rule: str, path: str) -> str:
    low, high = count(schema, "minLength", path) or 0, count(schema, "maxLength", path)
    pattern, form = schema.get("pattern"), schema.get("format")
    for keyword, value in (("pattern", pattern), ("format", form)):
        if value is not None and not isinstance(value, str):
            raise fail(path, f"{keyword} must be a string")
    form = _known(form)
    if pattern and form:  # schema generators write both with the same meaning
        pattern, form = (None, form) if not _can_write(pattern) and form not in _REFUSED_FORMATS else (pattern, None)
    if high is not None and high < low:
        raise Contradiction(f"JSON schema error at {path}: maxLength is below minLength")
    if low > MAX_REPETITIONS:
        raise fail(path, f"minLength above {MAX_REPETITIONS} is not supported")
    high = None if high is not None and high > MAX_REPETITIONS else high
    if form in _REFUSED_FORMATS:
        raise fail(path, f'format "{form}" is not supported')
    if form:
        return _format(rules, form, low, high, rule, path)
    if pattern:
        return _pattern(rules, pattern, low, high, rule, path)
    if not low and high is None:
        return rules.primitive("string", rule)
    characters = repeated(rules.primitive(CHAR), low, high)
    return rules.add(rule, rf'"\"" {characters} "\""')


def _known(form: str | None) -> str | None:
    """Return the format's name, or None if it is not in the standard."""
    if form is not None and re.fullmatch("uuid[1-5]?", form):
        return "uuid"
    return form if form in _COUNTED_PATTERNS or form in _REFUSED_FORMATS else None


def _can_write(pattern: str) -> bool:
    try:
        return bool(expression(read_pattern(pattern)))
    except UnsupportedPattern:
        return False


def _pattern(rules: GrammarRules, pattern: str, low: int, high: int | None, rule: str, path: str) -> str:
    try:
        if not _implied(pattern, low, high):
            counted = _with_length(pattern, low, high)
            if not counted:
                return _counted(rules, pattern, low, high, rule, path)
            pattern = counted
        written = expression(read_pattern(pattern))
    except UnsupportedPattern as why:
        raise fail(path, f"pattern {pattern:.80} is not supported: {why}") from None
    if f"{CHAR}*" in written:
        rules.primitive(CHAR)
    return rules.add(rule, rf'"\"" ({written}) "\""')


def _format(rules: GrammarRules, form: str, low: int, high: int | None, rule: str, path: str) -> str:
    counted = _COUNTED_PATTERNS[form]
    if not _implied(counted, low, high):
        try:
            return _counted(rules, counted, low, high, rule, path)
        except UnsupportedPattern as why:
            raise fail(path, f'format "{form}" is not supported here: {why}') from None
    if form == "uuid":
        return rules.primitive("uuid", rule)
    if form in _FORMATS:
        return rules.add(rule, rules.primitive(_FORMATS[form]))
    return _pattern(rules, _FORMAT_PATTERNS[form], 0, None, rule, path)


def _implied(pattern: str, low: int, high: int | None) -> bool:
    """Return True if every text that matches has an allowed length."""
    shortest, longest = lengths(read_pattern(pattern))
    return low <= shortest and (high is None or (longest is not None and longest <= high))


def _with_length(pattern: str, low: int, high: int | None) -> str:
    """Put the length bounds into a pattern of one repeated character. Return "" if the pattern has another form."""
    found = _REPEATED_CHARACTER.fullmatch(pattern)
    least = max(low, 1 if found and found["how"] == "+" else 0)
    if not found or (high is not None and high < least):
        return ""
    return f"^{found['one']}{{{least},{'' if high is None else high}}}$"


def _counted(rules: GrammarRules, pattern: str, low: int, high: int | None, rule: str, path: str) -> str:
    """Add rules that count the characters. Raises UnsupportedPattern."""
    first = bounded_pattern(rules, pattern, low, high)
    if not first:
        raise Contradiction(f"JSON schema error at {path}: no text of the required length matches {pattern:.80}")
    return rules.add(rule, rf'"\"" {first} "\""')


def number_rule(rules: GrammarRules, schema: Schema, kind: str, rule: str, path: str) -> str:
    step = _step(schema, path)
    low, high = (
        _bound(schema, "minimum", "exclusiveMinimum", max, path),
        _bound(schema, "maximum", "exclusiveMaximum", min, path),
    )
    if step is not None and step != 1:
        return _multiples(rules, step, low, high, kind, rule, path)
    if low is None and high is None:
        return rules.primitive("integer" if step else kind, rule)
    if kind == "integer" or step:
        least = None if low is None else math.floor(low.value) + 1 if low.is_excluded else math.ceil(low.value)
        most = None if high is None else math.ceil(high.value) - 1 if high.is_excluded else math.floor(high.value)
        _check_order(least, most, path)
        return rules.add(rule, f"({integer_range(least, most)})")
    least_value, most_value = low and low.value, high and high.value
    _check_order(least_value, most_value, path)
    low_excluded, high_excluded = bool(low and low.is_excluded), bool(high and high.is_excluded)
    if low is not None and least_value == most_value and (low_excluded or high_excluded):
        raise Contradiction(f"JSON schema error at {path}: no number is above the minimum and below the maximum")
    return rules.add(rule, f"({number_range(least_value, most_value, low_excluded, high_excluded)})")


def _step(schema: Schema, path: str) -> Decimal | None:
    step = number(schema, "multipleOf", path)
    if step is not None and step <= 0:
        raise fail(path, "multipleOf must be above 0")
    return step


def _multiples(
    rules: GrammarRules, step: Decimal, low: Bound | None, high: Bound | None, kind: str, rule: str, path: str
) -> str:
    _check_order(low and low.value, high and high.value, path)
    try:
        ways = multiple_rules(rules, step, low, high, whole=kind == "integer")
    except TooManyRules:
        raise fail(path, f'keyword "multipleOf" is not supported with {step}') from None
    if not ways:
        raise Contradiction(f"JSON schema error at {path}: no multiple of {step} is between the bounds")
    return rules.add(rule, f"({ways})")


def _bound(schema: Schema, inclusive: str, exclusive: str, tighter: Any, path: str) -> Bound | None:
    """Return the effective bound. In the oldest drafts `exclusiveMinimum` is a boolean."""
    plain, excluded = number(schema, inclusive, path), schema.get(exclusive)
    if isinstance(excluded, bool):
        return None if plain is None else Bound(plain, excluded)
    strict = number(schema, exclusive, path)
    if plain is None or strict is None:
        value = strict if plain is None else plain
        return None if value is None else Bound(value, strict is not None)
    return Bound(strict, True) if tighter(plain, strict) == strict else Bound(plain, False)


def _check_order(low: Any, high: Any, path: str) -> None:
    if low is not None and high is not None and low > high:
        raise Contradiction(f"JSON schema error at {path}: the minimum is above the maximum")
