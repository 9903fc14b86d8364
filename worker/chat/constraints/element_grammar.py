"""Build the grammar of calls whose arguments are XML-like elements, nested as in the schema (MiniMax M3). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...grammar.rules import GrammarRules, literal
from ..formats.formats import ElementCalls
from ..tools import FunctionTool, may_be_text
from .argument_rules import Schemas, literal_of, text_until

MAX_DEPTH = 16
"""Maximum schema depth; deeper values are JSON."""


class ElementRules:
    def __init__(self, form: ElementCalls, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._form, self._tools, self._rules = form, tools, rules
        self._schemas = Schemas(tools, rules)

    def call(self) -> str:
        """Return a rule for a call of any of the tools."""
        return "(" + " | ".join(self._rules.add(f"call-{tool.name}", self._one(tool)) for tool in self._tools) + ")"

    def _one(self, tool: FunctionTool) -> str:
        head = literal(self._form.name.start + tool.name + self._form.name.end)
        return f"{head} {self._members(tool, tool.parameters, tool.name, 0)}"

    def _members(self, tool: FunctionTool, schema: Mapping[str, Any], name: str, depth: int) -> str:
        """Required members are written first, in schema order; then any of the others."""
        properties, required = schema.get("properties"), schema.get("required")
        needed: list[str] = []
        others: list[str] = []
        for key, inner in properties.items() if isinstance(properties, dict) else ():
            rule = self._rules.add(f"{name}-arg-{key}", self._element(tool, key, inner, f"{name}-{key}", depth))
            (needed if isinstance(required, list) and key in required else others).append(rule)
        several = f"(space ({' | '.join(others)}))*" if others else ""
        return " ".join(part for part in ("space", " space ".join(needed), several, "space") if part)

    def _element(self, tool: FunctionTool, key: str, schema: Any, name: str, depth: int) -> str:
        space = self._form.space
        start, end = f"{space}<{key}>", f"{space}</{key}>"
        if may_be_text(schema):
            return f"{literal(start)} {text_until(self._rules, tool, schema, space, 'text')} {literal(f'</{key}>')}"
        return f"{literal(start)} {self._value(tool, schema, name, depth + 1)} {literal_of(end)}"

    def _value(self, tool: FunctionTool, schema: Any, name: str, depth: int) -> str:
        if isinstance(schema, Mapping) and depth <= MAX_DEPTH:
            if schema.get("type") == "object" and schema.get("properties"):
                return self._members(tool, schema, name, depth)
            if schema.get("type") == "array" and isinstance(schema.get("items"), Mapping):
                item = self._element(tool, "item", schema["items"], f"{name}-item", depth)
                return f"(space {self._rules.add(f'{name}-item', item)})* space"
        return self._schemas.under(tool, schema, name)
