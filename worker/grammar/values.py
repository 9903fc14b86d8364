"""Check a JSON value against a schema: which values of an `enum` its other keywords allow. Pure.

The value is known, so keywords that no grammar can express are applied too, except `unevaluatedProperties` and such. A
`format` is no constraint for a value that the schema's author has written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from typing import Any

from .automaton import Automaton
from .pattern import UnsupportedPattern, read_pattern
from .schema import (
    Contradiction,
    Schema,
    alternatives,
    checked,
    count,
    fail,
    is_of_type,
    number,
    resolved,
    same,
    types_of,
)
from .work import COMPARISON, VISIT, Budget

_MAX_DEPTH = 100
_BOUNDS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "multipleOf": lambda value, limit: limit > 0 and Fraction(value) % Fraction(limit) == 0,
}
_ELSEWHERE = ("$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")


class ValueCheck:
    def __init__(self, root: Any, budget: Budget) -> None:
        self._root = root
        self._budget = budget
        self._patterns: dict[str, Automaton] = {}
        self._depth = 0

    def allows(self, schema: object, value: object, path: str) -> bool:
        """Return True if the schema allows the value. Raises SchemaError for a schema that is wrong or unsupported."""
        self._depth += 1
        self._budget.spend(VISIT)
        try:
            if self._depth > _MAX_DEPTH:
                raise fail(path, "schema is nested too deeply")
            plain = checked(schema, path)
        except Contradiction:
            return False
        else:
            return self._allows(plain, value, path)
        finally:
            self._depth -= 1

    def _allows(self, schema: Schema, value: object, path: str) -> bool:
        for name in _ELSEWHERE:
            if name in schema:
                raise fail(path, f'keyword "{name}" together with enum or const is not supported')
        kinds = types_of(schema, path)
        if kinds and not any(is_of_type(value, kind) for kind in kinds):
            return False
        if "enum" in schema and not self._is_among(value, _list(schema, "enum", path)):
            return False
        if "const" in schema and not same(value, schema["const"]):
            return False
        if not self._combined(schema, value, path):
            return False
        match value:
            case bool() | None:
                return True
            case int() | float():
                return self._number(schema, value, path)
            case str():
                return self._string(schema, value, path)
            case list():
                return self._array(schema, value, path)
        return not isinstance(value, dict) or self._object(schema, value, path)

    def _is_among(self, value: object, others: Sequence[Any]) -> bool:
        self._budget.spend(COMPARISON * len(others))
        return any(same(value, other) for other in others)

    def _combined(self, schema: Schema, value: object, path: str) -> bool:
        def matching(name: str) -> list[bool]:
            return [self.allows(way, value, f"{path}/{name}") for way in alternatives(schema, name, path)]

        if "$ref" in schema and not self.allows(resolved(self._root, schema["$ref"], path), value, path):
            return False
        if "allOf" in schema and not all(matching("allOf")):
            return False
        if "anyOf" in schema and not any(matching("anyOf")):
            return False
        if "oneOf" in schema and sum(matching("oneOf")) != 1:
            return False
        if "not" in schema and self.allows(schema["not"], value, f"{path}/not"):
            return False
        if "if" in schema:
            branch = "then" if self.allows(schema["if"], value, f"{path}/if") else "else"
            return self.allows(schema.get(branch, True), value, f"{path}/{branch}")
        return True

    def _number(self, schema: Schema, value: int | float, path: str) -> bool:
        if isinstance(value, float) and not isfinite(value):
            raise fail(path, "a number is not finite")
        given = Decimal(value) if isinstance(value, int) else Decimal(str(value))
        for name, fits in _BOUNDS.items():
            if isinstance(schema.get(name), bool) and name.startswith("exclusive"):  # in the oldest drafts
                name_of_limit = "minimum" if name == "exclusiveMinimum" else "maximum"
                limit = number(schema, name_of_limit, path) if schema[name] else None
            else:
                limit = number(schema, name, path)
            if limit is not None and not fits(given, limit):
                return False
        return True

    def _string(self, schema: Schema, value: str, path: str) -> bool:
        pattern = schema.get("pattern")
        if pattern is not None and not isinstance(pattern, str):
            raise fail(path, "pattern must be a string")
        return _fits(schema, len(value), "Length", path) and (not pattern or self._matches(pattern, value, path))

    def _matches(self, pattern: str, text: str, path: str) -> bool:
        try:
            if pattern not in self._patterns:
                self._patterns[pattern] = Automaton(read_pattern(pattern), self._budget)
            return self._patterns[pattern].matches(text)
        except UnsupportedPattern as why:
            raise fail(path, f"pattern {pattern:.80} is not supported: {why}") from None

    def _array(self, schema: Schema, value: list[Any], path: str) -> bool:
        first, rest = schema.get("prefixItems"), schema.get("items", True)
        if isinstance(rest, list):  # the name in older drafts
            first, rest = rest, schema.get("additionalItems", True)
        first = first if isinstance(first, list) else []
        if not _fits(schema, len(value), "Items", path):
            return False
        if schema.get("uniqueItems") and any(self._is_among(a, value[:i]) for i, a in enumerate(value)):
            return False
        if "contains" in schema:
            n = sum(self.allows(schema["contains"], item, f"{path}/contains") for item in value)
            low, high = count(schema, "minContains", path), count(schema, "maxContains", path)
            if not (1 if low is None else low) <= n <= (len(value) if high is None else high):
                return False
        return all(
            self.allows(first[i] if i < len(first) else rest, item, f"{path}/items") for i, item in enumerate(value)
        )

    def _object(self, schema: Schema, value: dict[str, Any], path: str) -> bool:
        def part(name: str) -> Mapping[str, Any]:
            found = schema.get(name, {})
            if not isinstance(found, dict):
                raise fail(path, f"{name} must be an object")
            return found

        properties, patterns = part("properties"), part("patternProperties")
        if any(name not in value for name in _names(schema.get("required", []), "required", path)):
            return False
        if not _fits(schema, len(value), "Properties", path):
            return False
        needed = {**part("dependentRequired"), **{k: v for k, v in part("dependencies").items() if isinstance(v, list)}}
        present = (names for key, names in needed.items() if key in value)
        if any(name not in value for names in present for name in _names(names, "dependentRequired", path)):
            return False
        depends = {**part("dependentSchemas"), **part("dependencies")}
        if not all(
            self.allows(way, value, f"{path}/{key}")
            for key, way in depends.items()
            if key in value and key not in needed
        ):
            return False
        for key, item in value.items():
            ways = [properties[key]] if key in properties else []
            ways += [way for pattern, way in patterns.items() if self._matches(pattern, key, path)]
            ways = ways or [schema.get("additionalProperties", True)]
            if not all(self.allows(way, item, f"{path}/{key}") for way in ways):
                return False
            if not self.allows(schema.get("propertyNames", True), key, f"{path}/propertyNames"):
                return False
        return True


def _list(schema: Schema, name: str, path: str) -> Sequence[Any]:
    found = schema.get(name, [])
    if not isinstance(found, list):
        raise fail(path, f"{name} must be an array")
    return found


def _names(found: object, keyword: str, path: str) -> Sequence[str]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise fail(path, f"{keyword} must be an array of strings")
    return found


def _fits(schema: Schema, n: int, what: str, path: str) -> bool:
    low, high = count(schema, f"min{what}", path), count(schema, f"max{what}", path)
    return (low is None or n >= low) and (high is None or n <= high)
