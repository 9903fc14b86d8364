"""Reads fields of a JSON request: `null` means absent, a wrong type is a 400 error that names the field.

All dialects of the worker use it for bodies that are objects. It does not depend on models or settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.errors import InvalidRequest

INT32_MAX = 2**31 - 1


def json_type(value: object) -> str:
    """Return the JSON name of a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def wrong_type(name: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(f"Field '{name}': type must be {expected}, but is {json_type(value)}", name)


class Fields:
    """One JSON object. Getters accept several names of a field, the preferred one first."""

    __slots__ = ("body",)

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body

    def find(self, *names: str) -> tuple[str, Any]:
        """Return the first name that is present, and its value; (`names[0]`, None) if none is."""
        for name in names:
            value = self.body.get(name)
            if value is not None:
                return name, value
        return names[0], None

    def boolean(self, *names: str, default: bool) -> bool:
        name, value = self.find(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(name, "boolean", value)
        return value

    def string(self, *names: str, default: str) -> str:
        name, value = self.find(*names)
        if value is None:
            return default
        if not isinstance(value, str):
            raise wrong_type(name, "string", value)
        return value

    def integer(self, *names: str, default: int, low: int = -INT32_MAX - 1, high: int = INT32_MAX) -> int:
        """Return an integer; a fraction is cut off, since some clients send 8.0.

        Raise InvalidRequest outside `low … high`.
        """
        name, value = self.find(*names)
        if value is None:
            return default
        number = int(_number(name, value))
        if not low <= number <= high:
            raise InvalidRequest(
                f"Field '{name}': Value must be between {low} <= value <= {high}, but got {number}", name
            )
        return number

    def clamped_integer(self, *names: str, default: int, low: int, high: int = INT32_MAX) -> int:
        name, value = self.find(*names)
        return default if value is None else max(low, min(high, int(_number(name, value))))

    def real(self, *names: str, default: float, low: float = float("-inf"), high: float = float("inf")) -> float:
        """Return a number, clamped to `low … high`."""
        name, value = self.find(*names)
        return default if value is None else max(low, min(high, float(_number(name, value))))

    def limited_real(self, *names: str, default: float, low: float, high: float) -> float:
        """Return a number. Raise InvalidRequest outside `low … high`."""
        name, value = self.find(*names)
        if value is None:
            return default
        number = float(_number(name, value))
        if not low <= number <= high:
            raise InvalidRequest(
                f"Field '{name}': Value must be between {low:.6f} <= value <= {high:.6f}, but got {number:.6f}", name
            )
        return number

    def strings(self, *names: str, default: Sequence[str]) -> tuple[str, ...]:
        name, value = self.find(*names)
        if value is None:
            return tuple(default)
        if not isinstance(value, list):
            raise wrong_type(name, "array of strings", value)
        for item in value:
            if not isinstance(item, str):
                raise wrong_type(name, "string", item)
        return tuple(value)

    def object(self, name: str) -> dict[str, Any]:
        value = self.body.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise wrong_type(name, "object", value)
        return value


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "number", value)
    if not is_finite(value):
        raise InvalidRequest(f"Field '{name}': must be a finite number", name)
    return value


def is_finite(value: float) -> bool:
    """Return False for infinity, NaN, and an integer that is too large for a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
