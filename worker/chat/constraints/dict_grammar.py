"""Build the grammar of calls in JSON-like form with unquoted keys and strings between marks (Gemma 4).

Types, names and required members are enforced. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...grammar.rules import GrammarRules, literal
from ..formats.formats import DictCalls
from ..tools import FunctionTool
from .argument_rules import ReferenceRules, any_call, until

MAX_DEPTH = 16
"""Maximum schema depth; deeper values are not constrained."""


class DictRules:
    def __init__(self, form: DictCalls, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._form, self._tools, self._rules = form, tools, rules
        self._text = rules.add("dict-text", f"{literal(form.quote)} {until(rules, form.quote, 'text')}")

    def call(self) -> str:
        """Return a rule for a call of any of the tools."""
        return any_call(self._rules, self._tools, self._one)

    def _one(self, tool: FunctionTool) -> str:
        values = _ToolRules(self._form, tool, self._rules, self._text)
        return f"{literal(self._form.name + tool.name)} {values.members(tool.parameters, tool.name, 0)}"


class _ToolRules:
    """The rules of one tool's arguments."""

    def __init__(self, form: DictCalls, tool: FunctionTool, rules: GrammarRules, text: str) -> None:
        self._form, self._tool, self._rules, self._text = form, tool, rules, text
        self._schemas = tool.schemas(rules.budget)
        self._references = ReferenceRules(rules, tool)

    def _value(self, schema: Any, name: str, depth: int) -> str:
        return self._references.rule_of(schema, lambda: self._content(schema, name, depth))

    def _content(self, schema: Any, name: str, depth: int) -> str:
        if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
            return self._any()
        schema = self._schemas.opened(schema)
        values = self._schemas.listed(schema)
        if values and all(_is_plain(value) for value in values):
            return "(" + " | ".join(self._literal(value) for value in values) + ")"
        ways = schema.get("anyOf", schema.get("oneOf"))
        kinds = schema.get("type")
        if not ways and isinstance(kinds, list):
            ways = [{**schema, "type": kind} for kind in kinds]
        if isinstance(ways, list) and ways:
            return f"({' | '.join(self._value(way, f'{name}-{i}', depth + 1) for i, way in enumerate(ways))})"
        match kinds:
            case "string":
                return self._text
            case "integer" | "number" | "boolean" | "null" as kind:
                return self._rules.primitive(kind)
            case "array":
                item = self._value(schema.get("items"), f"{name}-item", depth + 1)
                return self._rules.add(name, f'"[" space ({item} (space "," space {item})*)? space "]"')
            case "object" if schema.get("properties"):
                return self._rules.add(name, self.members(schema, name, depth))
        return self._any()

    def members(self, schema: Mapping[str, Any], name: str, depth: int) -> str:
        """Required members are written first, sorted by name as the model writes them; then any of the others."""
        properties, required = self._schemas.properties(schema), self._schemas.required(schema)
        if not properties:
            return '"{" space "}"' if not depth else self._any()
        needed: list[str] = []
        others: list[str] = []
        for key in sorted(properties):
            value = self._value(properties[key], f"{name}-{key}", depth + 1)
            rule = self._rules.add(f"{name}-arg-{key}", f"{literal(key + ':')} space {value}")
            (needed if key in required else others).append(rule)
        comma = ' space "," space '
        either = f"({' | '.join(others)})"
        if not others:
            members = comma.join(needed)
        elif needed:
            members = f"{comma.join(needed)} ({comma}{either})*"
        else:
            members = f"({either} ({comma}{either})*)?"
        return f'"{{" space {members} space "}}"'

    def _any(self) -> str:
        key = self._rules.add("dict-key", "[^:{}<>,]+")
        kinds = [self._text, *(self._rules.primitive(kind) for kind in ("number", "boolean", "null"))]
        value = "dict-value"
        member = f'{key} ":" space {value}'
        self._rules.add("dict-object", f'"{{" space ({member} (space "," space {member})*)? space "}}"')
        self._rules.add("dict-array", f'"[" space ({value} (space "," space {value})*)? space "]"')
        return self._rules.add(value, " | ".join([*kinds, "dict-object", "dict-array"]))

    def _literal(self, value: object) -> str:
        if isinstance(value, str):
            return literal(f"{self._form.quote}{value}{self._form.quote}")
        return literal(json.dumps(value))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
