"""Read JSON schemas: check keywords, resolve references, merge two schemas. Pure; writes no rules.

A keyword that this server cannot enforce is refused by name, never silently ignored. A keyword that is no constraint
by the standard (a title, or `minLength` of a value that is no string) is no constraint here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")

_OF_ALL = ("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf")
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_CONSTRAINING = frozenset({*_OF_ALL, *(name for names in _OF_TYPE.values() for name in names)})
_UNSUPPORTED = ("not", "if", "then", "else", "$dynamicRef", "$recursiveRef")
_UNSUPPORTED_OF_TYPE: dict[str, dict[str, object]] = {
    "object": dict.fromkeys(("patternProperties", "propertyNames", "maxProperties"))
    | dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"))
    | {"minProperties": 0},
    "array": dict.fromkeys(("contains", "minContains", "maxContains", "unevaluatedItems")) | {"uniqueItems": False},
}
"""For each type the unsupported keywords, with the value that has no effect."""


class SchemaError(Exception):
    """The schema is invalid, or a grammar cannot express it."""


class Contradiction(SchemaError):
    """No value satisfies the schema."""


def fail(path: str, why: str) -> SchemaError:
    return SchemaError(f"JSON schema error at {path}: {why}")


def checked(schema: object, path: str) -> Schema:
    """Return the schema as an object (True: empty). Raises SchemaError, also for unsupported keywords."""
    if schema is True:
        return {}
    if schema is False:
        raise Contradiction(f"JSON schema error at {path}: false allows no value")
    if not isinstance(schema, dict):
        raise fail(path, "schema must be an object")
    for name in _UNSUPPORTED:
        if name in schema:
            raise fail(path, f'keyword "{name}" is not supported')
    return schema


def check_type_keywords(schema: Mapping[str, Any], kind: str, path: str) -> None:
    """Raise SchemaError if the schema has an unsupported keyword of its type."""
    for name, harmless in _UNSUPPORTED_OF_TYPE.get(kind, {}).items():
        if schema.get(name, harmless) != harmless:
            raise fail(path, f'keyword "{name}" is not supported')


def constraints(schema: Mapping[str, Any], *without: str) -> Schema:
    """Return the keywords that are constraints, including unsupported ones, except those in `without`."""
    comments = {name for name in schema if name not in _CONSTRAINING and not _is_unsupported(name)}
    return {name: value for name, value in schema.items() if name not in comments and name not in without}


def _is_unsupported(name: str) -> bool:
    return any(name in names for names in _UNSUPPORTED_OF_TYPE.values())


def types_of(schema: Mapping[str, Any], path: str) -> list[str]:
    """Return the types in `type`; an empty list if it is absent."""
    value = schema.get("type")
    if value is None:
        return []
    if isinstance(value, list) and not value:
        raise fail(path, "type must not be empty")
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str):
            raise fail(path, "type must be a string or an array of strings")
        if name not in TYPES:
            raise fail(path, f"unrecognized type {name}")
    return names


def inferred_type(schema: Mapping[str, Any]) -> str | None:
    """Return the type that the other keywords belong to, for a schema without `type`. None: any type is allowed."""
    for kind, names in _OF_TYPE.items():
        known = {*names, *_UNSUPPORTED_OF_TYPE.get(kind, {})}
        if any(name in known and not _constrains_nothing(name, value) for name, value in schema.items()):
            return kind
    return None


def _constrains_nothing(name: str, value: object) -> bool:
    return (name == "additionalProperties" and value is True) or name == "additionalItems"


def is_of_type(value: object, kind: str) -> bool:
    match value:
        case None:
            return kind == "null"
        case bool():
            return kind == "boolean"
        case int():
            return kind in ("integer", "number")
        case float():
            return kind == "number" or (kind == "integer" and value.is_integer())
        case str():
            return kind == "string"
        case list():
            return kind == "array"
    return kind == "object"


def count(schema: Mapping[str, Any], name: str, path: str) -> int | None:
    value = schema.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise fail(path, f"{name} must be a non-negative integer")
    return value


def alternatives(schema: Mapping[str, Any], name: str, path: str) -> list[Any]:
    value = schema[name]
    if not isinstance(value, list):
        raise fail(f"{path}/{name}", "must be an array of schemas")
    if not value:
        raise fail(f"{path}/{name}", "must not be empty")
    return value


def resolved(root: Any, reference: object, path: str) -> Any:
    """Return the target of a `$ref` within the same document. Raises SchemaError."""
    if not isinstance(reference, str):
        raise fail(path, "$ref must be a string")
    if reference != "#" and not reference.startswith("#/"):
        raise fail(path, f"unsupported $ref {reference}, only references into the same document are supported")
    target = root
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and key in target:
            target = target[key]
        elif isinstance(target, list):
            if not key.isdecimal() or int(key) >= len(target):
                raise fail(path, f"cannot resolve $ref {reference}, {part} is out of range")
            target = target[int(key)]
        else:
            raise fail(path, f"cannot resolve $ref {reference}, {part} not found")
    return target


# -- merging schemas ---------------------------------------------------------------------------------------------------

_MAX_REFERENCES = 100


class Merger:
    """Merge schemas that must all be satisfied into one."""

    def __init__(self, root: Any) -> None:
        self._root = root

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
        together = dict(a)
        for name, value in constraints(b).items():
            if name not in together or together[name] == value:
                together[name] = value
            elif name in ("anyOf", "oneOf", "$ref", "pattern", "format"):
                together["allOf"] = [*together.get("allOf", ()), {name: value}]
            elif name in _MERGERS:
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
    return _some([value for value in a if value in b], path)


def _some(values: list[Any], path: str) -> list[Any]:
    if not values:
        raise Contradiction(f"JSON schema error at {path}: no value can satisfy all of these schemas")
    return values


_MERGERS: dict[str, Callable[[Any, Any, str], Any]] = {
    "type": _types,
    "enum": _enums,
    "required": lambda a, b, _: [*a, *(name for name in b if name not in a)],
    "allOf": lambda a, b, _: [*a, *b],
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems"), lambda a, b, _: max(a, b)),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems"), lambda a, b, _: min(a, b)),
}
