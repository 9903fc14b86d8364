"""Build the grammar of calls whose arguments are XML-like elements, nested as in the schema (MiniMax M3). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...grammar.rules import GrammarRules, literal
from ..formats.formats import ElementCalls
from ..tools import FunctionTool
from .argument_rules import ReferenceRules, Schemas, any_call, literal_of, text_until

MAX_DEPTH = 16
"""Maximum schema depth; deeper values are JSON."""


class ElementRules:
    def __init__(self, form: ElementCalls, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._form, self._tools, self._rules = form, tools, rules
        self._json = Schemas(tools, rules)

    def call(self) -> str:
        """Return a rule for a call of any of the tools."""
        return any_call(self._rules, self._tools, self._one)

    def _one(self, tool: FunctionTool) -> str:
        head = literal(self._form.name.start + tool.name + self._form.name.end)
        return f"{head} {_ToolRules(self._form, tool, self._rules, self._json).members(tool.parameters, tool.name, 0)}"


class _ToolRules:
    """The rules of one tool's arguments."""

    def __init__(self, form: ElementCalls, tool: FunctionTool, rules: GrammarRules, json: Schemas) -> None:
        self._form, self._tool, self._rules, self._json = form, tool, rules, json
        self._schemas = tool.schemas(rules.budget)
        self._references = ReferenceRules(rules, tool)

    def members(self, schema: Any, name: str, depth: int) -> str:
        """Required members are written first, in schema order; then any of the others."""
        required = self._schemas.required(schema)
        needed: list[str] = []
        others: list[str] = []
        for key, inner in self._schemas.properties(schema).items():
            rule = self._rules.add(f"{name}-arg-{key}", self._element(key, inner, f"{name}-{key}", depth))
            (needed if key in required else others).append(rule)
        several = f"(space ({' | '.join(others)}))*" if others else ""
        return " ".join(part for part in ("space", " space ".join(needed), several, "space") if part)

    def _element(self, key: str, schema: Any, name: str, depth: int) -> str:
        space, texts = self._form.space, self._schemas.texts(schema)
        start, end = literal(f"{space}<{key}>"), f"</{key}>"
        if not texts.may_be_text:
            return f"{start} {self._value(schema, name, depth + 1)} {literal_of(space + end)}"
        text = f"{text_until(self._rules, texts, space, 'text')} {literal(end)}"
        if not texts.others or texts.is_free:
            return f"{start} {text}"
        other = self._value({"anyOf": [*texts.others]}, name, depth + 1)
        return f"{start} ({text} | {other} {literal_of(space + end)})"

    def _value(self, schema: Any, name: str, depth: int) -> str:
        return self._references.rule_of(schema, lambda: self._content(schema, name, depth))

    def _content(self, schema: Any, name: str, depth: int) -> str:
        whole = self._schemas.opened(schema)
        if depth <= MAX_DEPTH:
            if whole.get("type") == "object" and whole.get("properties"):
                return self.members(whole, name, depth)
            if whole.get("type") == "array" and isinstance(whole.get("items"), Mapping):
                item = self._element("item", whole["items"], f"{name}-item", depth)
                return f"(space {self._rules.add(f'{name}-item', item)})* space"
        return self._json.under(self._tool, schema, name)
