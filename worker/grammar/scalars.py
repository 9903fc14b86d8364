"""Build the rules of strings and numbers from their length, pattern, format and range keywords. Pure."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from .numbers import integer_range, number_range
from .pattern import UnsupportedPattern, pattern_expression
from .rules import CHAR, MAX_REPETITIONS, GrammarRules, repeated
from .schema import Contradiction, Schema, count, fail

_FORMATS = {"date": "date-string", "time": "time-string", "date-time": "date-time-string"}
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_FORMAT_PATTERNS = {
    "ipv4": rf"^{_OCTET}(\.{_OCTET}){{3}}$",
    "ipv6": "^([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL})*$",
    "email": rf"^[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@{_LABEL}(\.{_LABEL})+$",
    "uri": r"^[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+$",
}
_REPEATED_CHARACTER = re.compile(r"\^(?P<one>\[(?:\\.|[^\]\\])+\]|\\[dDsSwW]|\.)(?P<how>[*+])\$")
_REFUSED_FORMATS = frozenset(
    {
        "duration",
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
    }
)
"""Formats of the standard without a rule. Formats outside the standard (`int32`, `path`, `nanoid`) are ignored."""


def string_rule(rules: GrammarRules, schema: Schema, rule: str, path: str) -> str:
    low, high = count(schema, "minLength", path) or 0, count(schema, "maxLength", path)
    pattern, form = schema.get("pattern"), schema.get("format")
    for keyword, value in (("pattern", pattern), ("format", form)):
        if value is not None and not isinstance(value, str):
            raise fail(path, f"{keyword} must be a string")
    form = form if _binds(form) else None
    if pattern and form:  # schema generators write both with the same meaning
        pattern, form = (None, form) if not _can_write(pattern) and form not in _REFUSED_FORMATS else (pattern, None)
    if high is not None and high < low:
        raise Contradiction(f"JSON schema error at {path}: maxLength is below minLength")
    if pattern or form in _FORMAT_PATTERNS:
        return _pattern(rules, _with_length(pattern or _FORMAT_PATTERNS[str(form)], low, high), rule, path)
    if form:
        return _format(rules, form, rule, path)
    if not low and high is None:
        return rules.primitive("string", rule)
    if low > MAX_REPETITIONS:
        raise fail(path, f"minLength above {MAX_REPETITIONS} is not supported")
    characters = repeated(rules.primitive(CHAR), low, high)
    return rules.add(rule, rf'"\"" {characters} "\""')


def _binds(form: str | None) -> bool:
    return form in _FORMATS or form in _FORMAT_PATTERNS or form in _REFUSED_FORMATS or _is_uuid(form)


def _is_uuid(form: str | None) -> bool:
    return form is not None and re.fullmatch("uuid[1-5]?", form) is not None


def _can_write(pattern: str) -> bool:
    try:
        return bool(pattern_expression(pattern, "char*"))
    except UnsupportedPattern:
        return False


def _with_length(pattern: str, low: int, high: int | None) -> str:
    """Put the length bounds into a pattern of one repeated character; a grammar cannot count what others match."""
    found = _REPEATED_CHARACTER.fullmatch(pattern)
    least = max(low, 1 if found and found["how"] == "+" else 0)
    most = least if high is None else high
    if not found or not least <= most <= MAX_REPETITIONS:
        return pattern
    return f"^{found['one']}{{{least},{'' if high is None else high}}}$"


def _pattern(rules: GrammarRules, pattern: str, rule: str, path: str) -> str:
    try:
        expression = pattern_expression(pattern, "char*")
    except UnsupportedPattern as why:
        raise fail(path, f"pattern {pattern:.80} is not supported: {why}") from None
    if "char*" in expression:
        rules.primitive(CHAR)
    return rules.add(rule, rf'"\"" ({expression}) "\""')


def _format(rules: GrammarRules, form: str, rule: str, path: str) -> str:
    if _is_uuid(form):
        return rules.primitive("uuid", rule)
    if form not in _FORMATS:
        raise fail(path, f'format "{form}" is not supported')
    return rules.add(rule, rules.primitive(_FORMATS[form]))


def number_rule(rules: GrammarRules, schema: Schema, kind: str, rule: str, path: str) -> str:
    if schema.get("multipleOf", 1) != 1:
        raise fail(path, f'keyword "multipleOf" is not supported with {schema["multipleOf"]}')
    kind = "integer" if "multipleOf" in schema else kind
    low, low_excluded = _bound(schema, "minimum", "exclusiveMinimum", max, path)
    high, high_excluded = _bound(schema, "maximum", "exclusiveMaximum", min, path)
    if low is None and high is None:
        return rules.primitive(kind, rule)
    if kind == "integer":
        least = None if low is None else math.floor(low) + 1 if low_excluded else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if high_excluded else math.floor(high)
        _check_order(least, most, path)
        return rules.add(rule, f"({integer_range(least, most)})")
    _check_order(low, high, path)
    if low is not None and low == high and (low_excluded or high_excluded):
        raise Contradiction(f"JSON schema error at {path}: no number is above the minimum and below the maximum")
    return rules.add(rule, f"({number_range(low, high, low_excluded, high_excluded)})")


def _bound(schema: Schema, inclusive: str, exclusive: str, tighter: Any, path: str) -> tuple[Decimal | None, bool]:
    """Return the effective bound, and True if it is exclusive. In the oldest drafts `exclusiveMinimum` is a boolean."""
    plain, excluded = _decimal(schema, inclusive, path), schema.get(exclusive)
    if isinstance(excluded, bool):
        return plain, excluded and plain is not None
    strict = _decimal(schema, exclusive, path)
    if plain is None or strict is None:
        return (plain, False) if strict is None else (strict, True)
    return (strict, True) if tighter(plain, strict) == strict else (plain, False)


def _decimal(schema: Schema, name: str, path: str) -> Decimal | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        raise fail(path, f"{name} must be a number")
    return Decimal(str(value))


def _check_order(low: Any, high: Any, path: str) -> None:
    if low is not None and high is not None and low > high:
        raise Contradiction(f"JSON schema error at {path}: the minimum is above the maximum")
