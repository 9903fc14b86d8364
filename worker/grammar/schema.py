"""Read JSON schemas: check keywords, resolve references, find keywords without effect. Pure; writes no rules.

A keyword that this server cannot enforce is refused by name, never silently ignored. A keyword that is no constraint
by the standard (a title, `minLength` of a value that is no string, an empty `patternProperties`) is no constraint here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")

_OF_ALL = ("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf")
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties", "unevaluatedProperties"),
    "array": ("items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_UNSUPPORTED = ("not", "if", "then", "else", "$dynamicRef", "$recursiveRef")
_UNSUPPORTED_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": (
        *("patternProperties", "propertyNames", "minProperties", "maxProperties"),
        *("dependentRequired", "dependentSchemas", "dependencies"),
    ),
    "array": ("contains", "minContains", "maxContains", "uniqueItems"),
}
UNSUPPORTED = frozenset(_UNSUPPORTED).union(*_UNSUPPORTED_OF_TYPE.values())
"""Keywords that no grammar can express, unless they have no effect."""
CONSTRAINING = UNSUPPORTED.union(_OF_ALL, *_OF_TYPE.values())
"""All keywords that limit the values of a schema."""


class SchemaError(Exception):
    """The schema is invalid, or a grammar cannot express it."""


class Contradiction(SchemaError):
    """No value satisfies the schema."""


def fail(path: str, why: str) -> SchemaError:
    return SchemaError(f"JSON schema error at {path}: {why}")


def checked(schema: object, path: str) -> Schema:
    """Return the schema as an object (True: empty) without keywords that have no effect. Raises SchemaError."""
    if schema is True:
        return {}
    if schema is False:
        raise Contradiction(f"JSON schema error at {path}: false allows no value")
    if not isinstance(schema, dict):
        raise fail(path, "schema must be an object")
    return effective(schema)


def refuse_unsupported(schema: Mapping[str, Any], path: str, kind: str | None = None) -> None:
    """Raise SchemaError if the schema has an unsupported keyword of all types, or of the type `kind`."""
    for name in _UNSUPPORTED if kind is None else _UNSUPPORTED_OF_TYPE.get(kind, ()):
        if name in schema and not (kind and is_implied(name, schema)):
            raise fail(path, f'keyword "{name}" is not supported')


def constraints(schema: Mapping[str, Any], *without: str) -> Schema:
    """Return the keywords that are constraints, including unsupported ones, except those in `without`."""
    return {name: value for name, value in schema.items() if name in CONSTRAINING and name not in without}


def is_anything(schema: object) -> bool:
    """Return True if the schema allows every value."""
    return schema is True or (isinstance(schema, dict) and not constraints(schema))


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
        known = {*names, *_UNSUPPORTED_OF_TYPE.get(kind, ())}
        if any(name in known and not _constrains_nothing(name, value) for name, value in schema.items()):
            return kind
    return None


def _constrains_nothing(name: str, value: object) -> bool:
    return (name == "additionalProperties" and value is True) or name == "additionalItems"


# -- keywords without effect -------------------------------------------------------------------------------------------


def effective(schema: Schema) -> Schema:
    """Return the schema without keywords that allow every value, as if they were not there."""
    idle = [
        name
        for name, value in schema.items()
        if (name in _IDLE and _IDLE[name](value, schema)) or (value is None and name in CONSTRAINING - {"const"})
    ]
    return {name: value for name, value in schema.items() if name not in idle} if idle else schema


def other_names(schema: Mapping[str, Any]) -> Any:
    """Return the schema of properties that are not listed. Without a keyword for them they are allowed only if no
    properties are listed, as in llama-server."""
    return schema.get("additionalProperties", schema.get("unevaluatedProperties", "properties" not in schema))


def is_implied(name: str, schema: Mapping[str, Any]) -> bool:
    """Return True if the other keywords of a complete schema imply the unsupported keyword `name`."""
    if name == "maxProperties":
        properties = schema.get("properties", {})
        names_are_known = other_names(schema) is False and isinstance(properties, dict)
        return names_are_known and _is_at_most(len(properties), schema[name])
    return name == "uniqueItems" and _is_at_most(schema.get("maxItems"), 1)


def with_listed_names(schema: Schema) -> Schema:
    """Replace `propertyNames` that lists the names (`enum`, `const`) by the properties with these names."""
    names = schema.get("propertyNames")
    said = constraints(names, "type") if isinstance(names, dict) else {}
    values = said.get("enum", [said.get("const")])
    if not said or set(said) - {"enum", "const"} or len(said) > 1 or not isinstance(values, list):
        return schema
    properties = schema.get("properties", {})
    more = other_names(schema)
    if not isinstance(properties, dict):
        return schema
    kept = {
        name: properties.get(name, more) for name in values if isinstance(name, str) and (more or name in properties)
    }
    replaced = ("propertyNames", "unevaluatedProperties")
    rest = {name: value for name, value in schema.items() if name not in replaced}
    return {**rest, "properties": kept, "additionalProperties": False}


def _is_at_most(number: object, limit: object) -> bool:
    return isinstance(number, (int, float)) and isinstance(limit, (int, float)) and number <= limit


def _all_idle(values: object) -> bool:
    return isinstance(values, dict) and all(value == [] or is_anything(value) for value in values.values())


def _no_condition(_: object, schema: Mapping[str, Any]) -> bool:
    return all(is_anything(schema.get(name, True)) for name in ("then", "else"))


def _no_branch(value: object, schema: Mapping[str, Any]) -> bool:
    return schema.get("if") is None or is_anything(value)


def _no_patterns(value: object, schema: Mapping[str, Any]) -> bool:
    """Patterns also allow names; this has an effect only if other names are not allowed."""
    return value == {} or (_all_idle(value) and is_anything(schema.get("additionalProperties", True)))


def _any_name(value: object, _: Mapping[str, Any]) -> bool:
    """Names are strings, so a schema that only says this allows every name."""
    return is_anything(value) or (isinstance(value, dict) and constraints(value) == {"type": "string"})


def _needs_nothing(value: object, schema: Mapping[str, Any]) -> bool:
    """What is required anyway may be required again."""
    required = schema.get("required")
    known = required if isinstance(required, list) else []
    return isinstance(value, dict) and all(
        isinstance(names, list) and all(name in known for name in names) for names in value.values()
    )


def _few_required(value: object, schema: Mapping[str, Any]) -> bool:
    required = schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return _is_at_most(value, len(names)) and not isinstance(value, bool)


def _any_number(_: object, schema: Mapping[str, Any]) -> bool:
    least = schema.get("minContains")
    return schema.get("contains") is None or (
        least == 0 and not isinstance(least, bool) and schema.get("maxContains") is None
    )


_IDLE: dict[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "not": lambda value, _: value is False,
    "if": _no_condition,
    "then": _no_branch,
    "else": _no_branch,
    "patternProperties": _no_patterns,
    "propertyNames": _any_name,
    "minProperties": _few_required,
    "maxProperties": lambda *_: False,
    "dependentRequired": _needs_nothing,
    "dependentSchemas": lambda value, _: _all_idle(value),
    "dependencies": lambda value, _: _all_idle(value),
    "contains": _any_number,
    "minContains": _any_number,
    "maxContains": _any_number,
    "uniqueItems": lambda value, _: value is False,
    "unevaluatedItems": lambda value, _: is_anything(value),
    "unevaluatedProperties": lambda value, _: is_anything(value),
}
"""For each keyword that may have no effect: whether its value in this schema has none. `null` has no effect anyway."""


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


def same(a: object, b: object) -> bool:
    """Return True if two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def number(schema: Mapping[str, Any], name: str, path: str) -> Decimal | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e300:  # NaN fails, too
        raise fail(path, f"{name} must be a number")
    return Decimal(str(value))


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
