"""Shared rules of the tool-call grammars: marks, text up to a mark, schemas of arguments. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...grammar.converter import MAX_DEPTH, Converter
from ...grammar.rules import GrammarRules, literal
from ..argument_schemas import Texts, reference_of
from ..tools import FunctionTool


def literal_of(mark: str) -> str:
    return literal(mark.strip()) if mark.strip() else ""


def joined(parts: Iterable[str]) -> str:
    return " space ".join(part for part in parts if part)


class Schemas:
    """The rules of the tools' parameters. A `$ref` is resolved within the tool's own schema.

    Clients seldom wrote these schemas themselves, so unsupported keywords are relaxed instead of refused.
    """

    def __init__(self, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._root = {"tools": {tool.name: _rooted(tool.parameters, tool.name) for tool in tools}}
        self._converter = Converter(self._root, rules, lenient=True)

    def of_arguments(self, tool: FunctionTool) -> str:
        """Return the rule of the object with all arguments."""
        schema = self._root["tools"][tool.name] or {"type": "object"}
        return self._converter.visit(schema, f"{tool.name}-arguments", f"#/tools/{tool.name}")

    def under(self, tool: FunctionTool, schema: Any, name: str) -> str:
        """Return the rule of a schema inside the tool's schema, as JSON."""
        return self._converter.visit(_rooted(schema, tool.name), name, f"#/tools/{tool.name}")


def _rooted(schema: Any, name: str, depth: int = 0) -> Any:
    """Rewrite each `$ref` for the common root. Parts deeper than the converter's limit are not changed."""
    if depth > 2 * MAX_DEPTH:  # one schema level is two JSON levels
        return schema
    if isinstance(schema, Mapping):
        rooted = {key: _rooted(value, name, depth + 1) for key, value in schema.items()}
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            rooted["$ref"] = f"#/tools/{name}{reference[1:]}"
        return rooted
    return [_rooted(item, name, depth + 1) for item in schema] if isinstance(schema, list) else schema


def text_until(rules: GrammarRules, texts: Texts, mark: str, name: str) -> str:
    """Return a rule for a string without quotes up to and including `mark`: any text, or one that is listed."""
    listed = [text for text in texts.listed if mark not in text]
    if texts.is_free or not listed:
        return until(rules, mark, name)
    return f"({' | '.join(literal(text + mark) for text in listed)})"


def until(rules: GrammarRules, mark: str, name: str) -> str:
    """Return a rule for any text up to and including the first `mark`: one rule for each prefix of the mark.

    Most text is matched by one repeated class, which takes a matcher the fewest states. The mark is also written as a
    whole, wherever a mark may begin: it may contain a control token, which fits only where a text spells it.
    """
    letters = sorted(set(mark))
    number = "-".join(f"{ord(letter):x}" for letter in mark)  # the mark is the rule's identity
    names = [f"{name}-until-{number}-{i}" for i in range(len(mark))]
    whole = rules.add(f"{name}-until-{number}-mark", literal(mark))
    for i, rule in enumerate(names):
        seen = {letter: n for letter in letters if (n := _seen(mark, mark[:i] + letter))}
        other = f"[^{''.join(map(_in_class, seen))}]"
        ways = [literal(letter) + (f" {names[n]}" if n < len(mark) else "") for letter, n in seen.items()]
        if (mark[:i] + mark).find(mark) == i:  # otherwise the first mark would end before this one
            ways.append(whole)
        rules.add(rule, " | ".join([f"{other} {names[0]}", *ways]) if i else f"{other}* ({' | '.join(ways)})")
    return names[0]


def _seen(mark: str, text: str) -> int:
    """Return the length of the longest prefix of the mark that the text ends with."""
    return next(n for n in range(len(text), -1, -1) if text.endswith(mark[:n]))


def _in_class(letter: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter) or (
        letter if letter.isalnum() and letter.isascii() else f"\\U{ord(letter):08X}"
    )


def any_call(rules: GrammarRules, tools: Sequence[FunctionTool], one: Callable[[FunctionTool], str]) -> str:
    """Return a rule for a call of any of the tools. `one` returns the text of the rule for a call of one tool."""
    return "(" + " | ".join(rules.add(f"call-{tool.name}", one(tool)) for tool in tools) + ")"


class ReferenceRules:
    """The rules of the values that a tool's schema refers to with `$ref`, also of those that are being written."""

    def __init__(self, rules: GrammarRules, tool: FunctionTool) -> None:
        self._rules, self._name = rules, f"{tool.name}-reference"
        self._known: dict[str, str] = {}

    def rule_of(self, schema: Any, write: Callable[[], str]) -> str:
        """Return the rule of a schema's reference, written once; for a schema without one the text of `write`."""
        reference = reference_of(schema)
        if reference is None:
            return write()
        if reference not in self._known:
            self._known[reference] = rule = self._rules.reserve(self._name)
            self._rules.define(rule, write())
        return self._known[reference]
