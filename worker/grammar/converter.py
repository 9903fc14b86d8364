"""Convert a JSON schema to GBNF that matches every value the schema allows.

White space and the order of keys are those of llama-server. `schema_grammar` returns a complete grammar. Chat formats
that need more text around the JSON add a schema's rules to their own rules with `Converter`. Raises SchemaError. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .merging import Merger
from .objects import object_rule
from .rules import MAX_REPETITIONS, GrammarRules, below, json_literal, repeated, rule_name
from .scalars import number_rule, string_rule
from .schema import (
    UNSUPPORTED,
    Contradiction,
    Schema,
    SchemaError,
    alternatives,
    checked,
    constraints,
    count,
    fail,
    inferred_type,
    is_anything,
    other_names,
    refuse_unsupported,
    resolved,
    types_of,
    with_listed_names,
)
from .values import ValueCheck
from .work import VISIT, Budget, TooMuchWork

MAX_DEPTH = 100
_MAX_KEY = 200
"""Maximum length of a property name if other names are allowed too: each character is a level of the grammar."""


def schema_grammar(schema: object, budget: Budget | None = None) -> str:
    """Return a complete grammar for `schema`. Raises SchemaError, and TakesLong if `budget` does."""
    converter = Converter(schema, GrammarRules(budget))
    converter.visit(schema, "", "#")
    return converter.rules.text()


_LOOSER = (
    ("$ref",),
    ("enum", "type"),
    ("const", "type"),
    ("anyOf",),
    ("oneOf",),
    ("properties", "required", "type"),
    ("items", "type"),
    ("type",),
)
"""Keyword sets that are tried, in this order, for a schema that is not fully supported; the first one is required."""
_FINE = frozenset({"pattern", "format", "multipleOf"})
"""Keywords that are supported with some values only."""


def _looser(schema: Schema) -> Iterator[Schema]:
    """Yield looser schemas to try instead of an unsupported one, the strictest first."""
    rest = {keyword: value for keyword, value in schema.items() if keyword not in UNSUPPORTED}
    if "patternProperties" in schema:
        rest.pop("additionalProperties", None)  # without the patterns it would forbid their names
    for looser in (rest, {keyword: value for keyword, value in rest.items() if keyword not in _FINE}):
        if looser != schema and constraints(looser):
            yield looser
    for keywords in _LOOSER:
        looser = {keyword: schema[keyword] for keyword in keywords if keyword in schema}
        if keywords[0] in schema and looser != schema:
            yield looser


class Converter:
    def __init__(self, root: object, rules: GrammarRules | None = None, *, lenient: bool = False) -> None:
        """`lenient`: relax an unsupported schema instead of refusing it; in the worst case any value is allowed."""
        self._lenient = lenient
        self.rules = rules or GrammarRules()
        self._root = root
        self._merger = Merger(root, self.rules.budget)
        self._check = ValueCheck(root, self.rules.budget)
        self._resolving: set[str] = set()
        self._referred: dict[str, str] = {}  # the references by the names of their rules
        self._depth = 0

    def visit(self, schema: object, name: str, path: str) -> str:
        """Add the rules of `schema` under `name` (empty: the grammar's root) and return the name of its top rule."""
        self._depth += 1
        self.rules.budget.spend(VISIT)
        try:
            if self._depth > MAX_DEPTH:
                raise fail(path, "schema is nested too deeply")
            return self._visit(checked(schema, path), name, path)
        except (Contradiction, TooMuchWork):
            raise
        except SchemaError:
            if not self._lenient:
                raise
            return self._loosened(schema, name, path)
        finally:
            self._depth -= 1

    def _loosened(self, schema: object, name: str, path: str) -> str:
        if isinstance(schema, dict) and self._depth <= MAX_DEPTH:
            for looser in _looser(schema):
                try:
                    return self._visit(looser, name, path)
                except TooMuchWork:
                    raise
                except SchemaError:
                    continue
        return self.rules.add(rule_name(name), self.rules.primitive("value"))

    def _visit(self, schema: Schema, name: str, path: str) -> str:
        rule = rule_name(name)
        if "$ref" in schema:
            if constraints(schema, "$ref"):
                return self.visit(self._merger.opened(schema, path), name, path)
            return self.rules.add(rule, self._reference(schema["$ref"], path))
        for keyword in ("oneOf", "anyOf"):
            if keyword in schema:
                return self.rules.add(rule, self._union(schema, keyword, name, path))
        if "allOf" in schema:
            return self._all_of(schema, name, path)
        if "const" in schema or "enum" in schema:
            return self.rules.add(rule, self._values(schema, path))
        refuse_unsupported(schema, path)
        kinds = types_of(schema, path)
        if len(kinds) > 1 or isinstance(schema.get("type"), list):
            ways = [self.visit({**schema, "type": t}, _way(name, i), f"{path}/type/{i}") for i, t in enumerate(kinds)]
            return self.rules.add(rule, " | ".join(ways))
        kind = kinds[0] if kinds else inferred_type(schema)
        return self._typed(schema, kind, name, path)

    def _typed(self, schema: Schema, kind: str | None, name: str, path: str) -> str:
        rule = rule_name(name)
        if kind is None:
            return self.rules.add(rule, self.rules.primitive("value"))
        if kind == "object":
            schema = with_listed_names(schema)
        refuse_unsupported(schema, path, kind)
        match kind:
            case "object":
                return self._object(schema, name, path)
            case "array":
                return self._array(schema, name, path)
            case "string":
                return string_rule(self.rules, schema, rule, path)
            case "integer" | "number":
                return number_rule(self.rules, schema, kind, rule, path)
        return self.rules.primitive(kind, rule)

    # -- combinations --------------------------------------------------------------------------------------------------

    def _reference(self, reference: object, path: str) -> str:
        target = resolved(self._root, reference, path)
        assert isinstance(reference, str)
        name = "ref" + re.sub("[^a-zA-Z0-9]+", "-", reference[1:])
        while self._referred.setdefault(name, reference) != reference:
            name += "-again"
        if name not in self.rules and reference not in self._resolving:
            self._resolving.add(reference)
            name = self.visit(target, name, reference)
            self._resolving.discard(reference)
        return name

    def _union(self, schema: Schema, keyword: str, name: str, path: str) -> str:
        """Return a choice of all alternatives. For `oneOf` a grammar cannot express that exactly one matches."""
        siblings = constraints(schema, keyword)
        ways: list[str] = []
        for i, way in enumerate(alternatives(schema, keyword, path)):
            where = f"{path}/{keyword}/{i}"
            try:
                ways.append(self.visit(self._narrowed(way, siblings, where), _way(name, i), where))
            except Contradiction:
                if not siblings:
                    raise
        if not ways:
            raise Contradiction(f"JSON schema error at {path}: no alternative of {keyword} is possible")
        return " | ".join(ways)

    def _narrowed(self, way: object, siblings: Schema, path: str) -> object:
        """Merge `siblings` into `way`. Return `way` unchanged if that adds nothing: this keeps recursive references."""
        if not siblings:
            return way
        both, alone = self._merger.merge(way, siblings, path), self._merger.opened(way, path)
        kinds: list[str | None] = [*types_of(alone, path)] or [inferred_type(alone)]
        same = constraints(both, "type") == constraints(alone, "type") and kinds == types_of(both, path)
        return way if same else both

    def _all_of(self, schema: Schema, name: str, path: str) -> str:
        """Combine plain objects into one with all their properties, as llama-server does; else merge completely."""
        parts = [self._merger.opened(part, f"{path}/allOf") for part in alternatives(schema, "allOf", path)]
        siblings = constraints(schema, "allOf")
        if len(parts) == 1 and not siblings:
            return self.visit(schema["allOf"][0], name, path)
        if set(siblings) <= {"type"} and (properties := _simple_objects(parts, siblings)) is not None:
            rules = [(key, self.visit(value, below(name, key), f"{path}/{key}")) for key, value in properties.items()]
            return self.rules.add(rule_name(name), object_rule(self.rules, name, rules, set(properties), None))
        whole: Schema = siblings
        for part in parts:
            whole = self._merger.merge(whole, part, path)
        if whole.get("allOf") == schema["allOf"]:
            raise fail(path, "allOf is not supported here")
        return self.visit(whole, name, path)

    def _values(self, schema: Schema, path: str) -> str:
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list) or not values:
            raise fail(path, "enum must be a non-empty array")
        others = constraints(schema, "enum")
        fitting = [value for value in values if self._check.allows(others, value, path)] if others else values
        if not fitting:
            raise Contradiction(f"JSON schema error at {path}: no value of enum or const fits the other keywords")
        if "enum" not in schema:
            return json_literal(fitting[0])
        return "(" + " | ".join(json_literal(value) for value in fitting) + ")"

    # -- types ---------------------------------------------------------------------------------------------------------

    def _object(self, schema: Schema, name: str, path: str) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise fail(path, "properties must be an object")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise fail(path, "required must be an array of strings")
        more = other_names(schema)
        if not isinstance(more, (bool, dict)):
            raise fail(path, "additionalProperties must be a boolean or a schema")
        if not properties and not required and is_anything(more):
            return self.rules.add(rule_name(name), self.rules.primitive("object"))
        missing = [key for key in required if key not in properties]
        if missing and False in (schema.get("additionalProperties"), schema.get("unevaluatedProperties")):
            raise Contradiction(f'JSON schema error at {path}: required property "{missing[0]}" is not allowed')
        properties = {**properties, **{key: more if isinstance(more, dict) else {} for key in missing}}
        rules = [
            (key, self.visit(value, below(name, key), f"{path}/properties/{key}")) for key, value in properties.items()
        ]
        others = None
        if more and any(len(key) > _MAX_KEY for key in properties):
            raise fail(path, "a very long property name together with additionalProperties is not supported")
        if is_anything(more):
            others = self.rules.primitive("value")
        elif isinstance(more, dict):
            others = self.visit(more, below(name, "additional-value"), f"{path}/additionalProperties")
        return self.rules.add(rule_name(name), object_rule(self.rules, name, rules, set(required), others))

    def _array(self, schema: Schema, name: str, path: str) -> str:
        first, keyword = schema.get("prefixItems"), "prefixItems"
        rest = schema.get("items", schema.get("unevaluatedItems"))
        if isinstance(rest, list):  # the name in older drafts
            first, rest, keyword = rest, schema.get("additionalItems"), "items"
        elif isinstance(first, dict):
            first, rest = None, first if rest is None else rest
        low, high = count(schema, "minItems", path) or 0, count(schema, "maxItems", path)
        if high is not None and high < low:
            raise Contradiction(f"JSON schema error at {path}: maxItems is below minItems")
        if low > MAX_REPETITIONS:
            raise fail(path, f"minItems above {MAX_REPETITIONS} is not supported")
        if first is not None:
            return self._tuple(first, rest, low, high, keyword, name, path)
        if rest is False:
            high = 0
        if high == 0:
            return self.rules.add(rule_name(name), '"[" space  space "]"')
        if (rest is None or is_anything(rest)) and low == 0 and high is None:
            return self.rules.primitive("array", rule_name(name))
        item = self.visit({} if rest is None else rest, below(name, "item"), f"{path}/items")
        several = repeated(item, low, high, '"," space')
        return self.rules.add(rule_name(name), f'"[" space {several} space "]"')

    def _tuple(
        self, first: object, rest: object, low: int, high: int | None, keyword: str, name: str, path: str
    ) -> str:
        """Add the rule of an array that begins with the items `first`; `rest` follows if it is given or needed."""
        if not isinstance(first, list):
            raise fail(path, f"{keyword} must be an array of schemas")
        kept = first if high is None else first[:high]
        if rest in (None, False) and low > len(first):
            if rest is False:
                raise Contradiction(f"JSON schema error at {path}: minItems is above the number of items")
            rest = True
        items = [self.visit(item, below(name, f"tuple-{i}"), f"{path}/{keyword}/{i}") for i, item in enumerate(kept)]
        rule = '"[" space ' + ' "," space '.join(items)
        room = None if high is None else high - len(kept)
        if rest not in (None, False) and room != 0:
            item = self.visit(rest, below(name, "item"), f"{path}/items")
            following = repeated(f'("," space {item})' if items else item, max(0, low - len(kept)), room)
            rule += f" {following}"
        return self.rules.add(rule_name(name), f'{rule} space "]"')


def _way(name: str, i: int) -> str:
    return f"{name}-{i}" if name else f"alternative-{i}"


def _simple_objects(parts: Sequence[Schema], siblings: Mapping[str, Any]) -> Schema | None:
    """Return the combined properties of schemas that only list properties, without duplicates; else None."""
    together: Schema = {}
    for part in [*parts, siblings]:
        said = constraints(part)
        if said.get("type", "object") != "object" or (part is not siblings and "properties" not in said):
            return None
        if set(said) - {"type", "properties", "required", "additionalProperties"} or said.get("additionalProperties"):
            return None
        properties = said.get("properties", {})
        if not isinstance(properties, dict) or set(properties) & set(together):
            return None
        required = said.get("required", [])
        if not isinstance(required, list) or not all(name in list(properties) for name in required):
            return None
        together.update(properties)
    return together
