"""Describes options for error messages, help and the reference: allowed values, defaults, help texts."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal

import annotated_types

from .table import FIELDS, OPTIONS
from .values import Allowed


def allowed(field: str) -> str:
    """Describe the allowed values, to follow "expected": `an integer from 0 to 65535`, `one of none, layer, row`, …"""
    info = FIELDS[field]
    said = next((item.text for item in info.metadata if isinstance(item, Allowed)), None)
    if said is not None:
        return said
    annotation = info.annotation
    if choices(field):
        return "one of " + ", ".join(choices(field))
    kind = {int: "an integer", float: "a number", str: "text"}.get(typing.cast(type, annotation))
    return (kind or _inner(annotation)) + _range(info.metadata)


def choices(field: str) -> tuple[str, ...]:
    """Return the option's fixed values; empty if it accepts others."""
    return tuple(str(choice) for choice in _choices(FIELDS[field].annotation))


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal`, also inside `Literal[…] | None`."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(choice for part in typing.get_args(annotation) for choice in _choices(part))
    return ()


def _inner(annotation: Any) -> str:
    """Describe the allowed values of an annotated type inside `… | None`."""
    for part in typing.get_args(annotation):
        for item in getattr(part, "__metadata__", ()):
            if isinstance(item, Allowed):
                return item.text
    return "a valid value"


def _range(metadata: list[Any]) -> str:
    least = next((item.ge for item in metadata if isinstance(item, annotated_types.Ge)), None)
    most = next((item.le for item in metadata if isinstance(item, annotated_types.Le)), None)
    above = next((item.gt for item in metadata if isinstance(item, annotated_types.Gt)), None)
    if above is not None:
        return f" above {above}"
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return f" of at most {most}" if most is not None else ""


def default_text(field: str) -> str:
    """Return the default as a user would type it; "" if there is none."""
    value = FIELDS[field].default
    if field == "seed":
        return "-1"
    if field == "max_body":
        return f"{value >> 20}M"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return (";" if field == "samplers" else ",").join(
            json.dumps(item)[1:-1] if "\n" in str(item) else str(item) for item in value
        )
    return "" if value is None else str(value)


def summary(field: str) -> str:
    """Return the option's help text."""
    return FIELDS[field].description or OPTIONS[field].name
