"""Merge two JSON schemas that must both be satisfied into one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from math import lcm
from typing import Any

from .schema import Contradiction, Schema, checked, constraints, fail, number, resolved, same, types_of
from .work import COMPARISON, VISIT, Budget

_MAX_REFERENCES = 100


class Merger:
    """Merge schemas that must all be satisfied into one."""

    def __init__(self, root: Any, budget: Budget) -> None:
        self._root = root
        self._budget = budget

    def opened(self, schema: object, path: str) -> Schema:
        """Return the schema with its `$ref` replaced by the target."""
        plain = checked(schema, path)
        for _ in range(_MAX_REFERENCES):
            if "$ref" not in plain:
                return plain
            target = checked(resolved(self._root, plain["$ref"], path), path)
            rest = constraints(plain, "$ref")
            plain = self._together(target, rest, path) if rest else target
        raise fail(path, f"$ref {plain['$ref']} refers to itself")

    def merge(self, a: object, b: object, path: str) -> Schema:
        return self._together(self.opened(a, path), self.opened(b, path), path)

    def _together(self, a: Schema, b: Schema, path: str) -> Schema:
        self._budget.spend(VISIT + sum(map(_size, (a, b))))
        together = dict(a)
        for name, value in constraints(b).items():
            if name not in together:
                together[name] = value
            elif same(together[name], value):
                continue
            elif name in ("anyOf", "oneOf", "$ref", "pattern", "format"):
                together["allOf"] = [*together.get("allOf", ()), {name: value}]
            elif name == "const":
                raise Contradiction(f"JSON schema error at {path}: a value cannot be equal to two constants")
            elif not all(_has_shape(name, side) for side in (together[name], value)):
                raise fail(path, f"{name} has a value of the wrong type")
            elif name in _MERGERS:
                if isinstance(value, list) and isinstance(together[name], list):
                    self._budget.spend(COMPARISON * len(value) * len(together[name]))
                together[name] = _MERGERS[name](together[name], value, path)
            elif name == "properties":
                together[name] = self._properties(together[name], value, path)
            elif name in ("items", "additionalProperties"):
                together[name] = self._nested(together[name], value, path)
            else:
                raise fail(path, f'different values of "{name}" cannot be combined')
        return together

    def _nested(self, a: object, b: object, path: str) -> object:
        if a is False or b is False:
            return False
        return self.merge(a, b, path)

    def _properties(self, a: Schema, b: Schema, path: str) -> Schema:
        together = dict(a)
        for name, value in b.items():
            together[name] = self.merge(together[name], value, path) if name in together else value
        return together


def _types(a: Any, b: Any, path: str) -> object:
    first, second = types_of({"type": a}, path), types_of({"type": b}, path)
    both = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    both += [kind for kind in second if kind == "integer" and kind not in first and "number" in first]
    return _some(both, path) if len(both) != 1 else both[0]


def _enums(a: Sequence[Any], b: Sequence[Any], path: str) -> list[Any]:
    return _some([value for value in a if any(same(value, other) for other in b)], path)


def _steps(a: Any, b: Any, path: str) -> int | float:
    """Return the least common multiple of two values of `multipleOf`."""
    first, second = number({"multipleOf": a}, "multipleOf", path), number({"multipleOf": b}, "multipleOf", path)
    assert first is not None
    assert second is not None
    (over, under), (over_2, under_2) = first.as_integer_ratio(), second.as_integer_ratio()
    if over <= 0 or over_2 <= 0:
        raise fail(path, "multipleOf must be above 0")
    scale = lcm(under, under_2)
    both = Decimal(lcm(over * scale // under, over_2 * scale // under_2)) / scale
    return int(both) if both == int(both) else float(both)


def _some(values: list[Any], path: str) -> list[Any]:
    if not values:
        raise Contradiction(f"JSON schema error at {path}: no value can satisfy all of these schemas")
    return values


def _size(schema: Schema) -> int:
    properties = schema.get("properties")
    return len(schema) + (len(properties) if isinstance(properties, dict) else 0)


def _has_shape(name: str, value: object) -> bool:
    return isinstance(value, _SHAPES.get(name, object)) and not (name in _LIMITS and isinstance(value, bool))


_LIMITS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("enum", "required", "allOf"), list),
    "properties": dict,
    **dict.fromkeys((*_LIMITS, "exclusiveMinimum", "exclusiveMaximum"), (int, float)),
}
"""The types of values that can be merged."""
_MERGERS: dict[str, Callable[[Any, Any, str], Any]] = {
    "type": _types,
    "enum": _enums,
    "multipleOf": _steps,
    "required": lambda a, b, _: [*a, *(name for name in b if name not in a)],
    "allOf": lambda a, b, _: [*a, *b],
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems"), lambda a, b, _: max(a, b)),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems"), lambda a, b, _: min(a, b)),
}
