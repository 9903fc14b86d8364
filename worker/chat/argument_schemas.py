"""What the schema of a tool's argument says about texts, for formats of calls that write strings without quotes.

A `$ref` and an `allOf` are replaced by what they stand for before a schema is looked at. Clients seldom wrote these
schemas themselves, so a schema that is wrong or not supported allows everything. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from ..grammar.merging import Merger
from ..grammar.schema import SchemaError, constraints
from ..grammar.values import ValueCheck
from ..grammar.work import VISIT, Budget, TooMuchWork

_MAX_DEPTH = 16


class Texts(Struct, frozen=True):
    """The strings that a schema allows, and the schemas of its other values."""

    is_free: bool = False  # True if any string is allowed, or a rule limits them that lists none
    listed: tuple[str, ...] = ()  # the only strings, if they are not free
    others: tuple[Any, ...] = ()  # schemas

    @property
    def may_be_text(self) -> bool:
        return self.is_free or bool(self.listed)

    @property
    def is_text(self) -> bool:
        """True if a value without quotes is a string, whatever it is: `1` is "1". Free strings come before all else."""
        return self.is_free or bool(self.listed and not self.others)


FREE = Texts(is_free=True)


class ArgumentSchemas:
    """The schemas inside a tool's parameters. All methods raise TooMuchWork if `budget` is spent."""

    def __init__(self, root: Mapping[str, Any], budget: Budget | None = None) -> None:
        self._budget = budget or Budget()
        self._merger = Merger(root, self._budget)
        self._check = ValueCheck(root, self._budget)

    def opened(self, schema: Any) -> Mapping[str, Any]:
        """Return the schema with `$ref` and `allOf` replaced; an empty one if it is wrong or not supported."""
        self._budget.spend(VISIT)
        try:
            whole = self._merger.opened(schema, "#")
            for _ in range(_MAX_DEPTH):
                parts = whole.get("allOf")
                if not isinstance(parts, list):
                    break
                whole = {name: value for name, value in whole.items() if name != "allOf"}
                for part in parts:
                    whole = self._merger.merge(whole, part, "#")
        except TooMuchWork:
            raise
        except SchemaError:
            return {}
        return whole

    def properties(self, schema: Any) -> Mapping[str, Any]:
        """Return the schemas of an object's properties."""
        properties = self.opened(schema).get("properties")
        return properties if isinstance(properties, dict) else {}

    def required(self, schema: Any) -> Collection[str]:
        """Return the names of properties that are listed and required."""
        required = self.opened(schema).get("required")
        names = required if isinstance(required, list) else []
        return {name for name in self.properties(schema) if name in names}

    def listed(self, schema: Mapping[str, Any]) -> list[Any] | None:
        """Return the values of `enum` or `const` that an opened schema allows; None if it lists none."""
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        return [value for value in values if self._allows(schema, value)] if isinstance(values, list) else None

    def texts(self, schema: Any, depth: int = 0) -> Texts:
        whole = self.opened(schema)
        values = self.listed(whole)
        if values is not None:
            strings = tuple(value for value in values if isinstance(value, str))
            others = [value for value in values if not isinstance(value, str)]
            return Texts(listed=strings, others=({"enum": others},) if others else ())
        kind = whole.get("type")
        for keyword in ("anyOf", "oneOf"):
            ways = whole.get(keyword)
            if isinstance(ways, list) and depth <= _MAX_DEPTH:
                return _together([self.texts(_typed(self.opened(way), kind), depth + 1) for way in ways])
        if kind is None:
            return Texts(others=(whole,))
        kinds = kind if isinstance(kind, list) else [kind]
        rest = [other for other in kinds if other != "string"]
        return Texts(is_free="string" in kinds, others=({**whole, "type": rest},) if rest else ())

    def _allows(self, schema: Mapping[str, Any], value: object) -> bool:
        try:
            return self._check.allows(schema, value, "#")
        except TooMuchWork:
            raise
        except SchemaError:
            return True


def reference_of(schema: Any) -> str | None:
    """Return the `$ref` of a schema that says nothing else."""
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    return reference if isinstance(reference, str) and not constraints(schema, "$ref") else None


def _typed(way: Mapping[str, Any], kind: Any) -> Mapping[str, Any]:
    return way if kind is None or "type" in way else {"type": kind, **way}


def _together(ways: list[Texts]) -> Texts:
    return Texts(
        is_free=any(way.is_free for way in ways),
        listed=tuple(text for way in ways for text in way.listed),
        others=tuple(other for way in ways for other in way.others),
    )
