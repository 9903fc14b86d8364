"""The grammar of tool calls: what a model may write from a call's first mark on, or as its whole answer.

With `auto` the grammar sleeps until the mark comes up; with `required` it holds from the beginning. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...presets.errors import InvalidRequest
from ..grammar.converter import Converter
from ..grammar.rules import Rules, json_literal, literal
from ..grammar.schema import SchemaError
from .formats import Calls, JsonCalls, Parameters, PythonCalls, Span, TaggedCalls, first_mark
from .tools import Tool

_WORD_TRIGGER = 1
_ID = r'"\"" [a-zA-Z0-9]{9} "\""'
"""Nine letters: the only length that every template with ids of the model's own takes."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a grammar of a whole answer begins with: the end of the prompt, and thoughts."""

    template: str
    opening: str = ""
    reasoning: Span | None = None
    turn: str = ""  # comes again between thoughts and the rest
    content: str = ""  # comes before content

    def rule(self, rules: Rules) -> str:
        start = literal(self.template) if self.template else '""'
        if self.reasoning is None or not self.reasoning.end:
            return start
        inner = until(rules, self.reasoning.end, "thought")
        if self.turn:
            inner += f" {literal(self.turn)}"
        if not self.reasoning.start:
            return f"{start} {inner}"
        thought = f"{literal(self.reasoning.start)} {inner}"
        is_open = self.reasoning.start in self.opening
        return f"{start} {thought}" if is_open else f"{start} space ({thought})?"


def tool_fields(
    calls: Calls, tools: Sequence[Tool], around: Around, *, required: bool, parallel: bool
) -> dict[str, Any]:
    """What a completion is asked for, as fields of its request."""
    mark = "" if around.turn else first_mark(calls)
    if not required and not mark:
        return {}  # nothing tells where a call begins
    try:
        grammar = _grammar(calls, tools, around, required=required, parallel=parallel)
    except SchemaError as error:
        raise InvalidRequest(f"Field 'tools': {error}") from None
    fields: dict[str, Any] = {
        "grammar": grammar,
        "grammar_type": "tool_calls",
        "generation_prompt": around.template + around.opening,
    }
    if not required:
        fields |= {"grammar_lazy": True, "grammar_triggers": [{"type": _WORD_TRIGGER, "value": mark}]}
    return fields


def _grammar(calls: Calls, tools: Sequence[Tool], around: Around, *, required: bool, parallel: bool) -> str:
    rules = Rules()
    write = _writer(calls, tools, rules)
    call = rules.add("tool-call", _joined((literal_of(calls.call.start), write.call(), literal_of(calls.call.end))))
    array = isinstance(calls, PythonCalls) or (isinstance(calls, JsonCalls) and calls.array)
    separator = '"," space ' if array else ""
    several = f"{call} (space {separator}{call})*" if parallel else call
    if array:
        several = f'"[" space {several} space "]"'
    section = (literal_of(calls.section.start), several, literal_of(calls.section.end))
    before = f"{around.rule(rules)} space " if required else ""
    rules.add("root", before + _joined(section))
    return rules.text()


def _writer(calls: Calls, tools: Sequence[Tool], rules: Rules) -> _Json | _Tagged | _Python:
    if isinstance(calls, JsonCalls):
        return _Json(calls, tools, rules)
    return _Python(tools, rules) if isinstance(calls, PythonCalls) else _Tagged(calls, tools, rules)


def literal_of(mark: str) -> str:
    return literal(mark.strip()) if mark.strip() else ""


def _joined(parts: Iterable[str]) -> str:
    return " space ".join(part for part in parts if part)


class _Json:
    def __init__(self, form: JsonCalls, tools: Sequence[Tool], rules: Rules) -> None:
        self._form, self._rules = form, rules
        self._schemas = _Schemas(tools, rules)
        self._tools = tools

    def call(self) -> str:
        return "(" + " | ".join(self._rules.add(f"call-{tool.name}", self._one(tool)) for tool in self._tools) + ")"

    def _one(self, tool: Tool) -> str:
        form, arguments = self._form, self._schemas.of(tool)
        if not form.name:
            return _object([(tool.name, arguments)])
        inner = [(form.name, json_literal(tool.name)), (form.arguments, arguments)]
        members = [(form.wrapper, _object(inner))] if form.wrapper else inner
        if form.id:
            members.insert(-1 if form.id_before_arguments else len(members), (form.id, _ID))
        if form.extra:
            members.insert(0, ("type", json_literal("function")))
        return _object(members)


def _object(members: Sequence[tuple[str, str]]) -> str:
    pairs = ' space "," space '.join(f'{json_literal(key)} space ":" space {value}' for key, value in members)
    return f'"{{" space {pairs} space "}}"'


class _Tagged:
    def __init__(self, form: TaggedCalls, tools: Sequence[Tool], rules: Rules) -> None:
        self._form, self._tools, self._rules = form, tools, rules
        self._schemas = _Schemas(tools, rules)

    def call(self) -> str:
        return "(" + " | ".join(self._rules.add(f"call-{tool.name}", self._one(tool)) for tool in self._tools) + ")"

    def _one(self, tool: Tool) -> str:
        form = self._form
        name = literal_of(form.name.start + form.id_is_name + tool.name)
        if form.id_is_name:
            name += ' ":" [0-9]{1,4}'
        head = f"{name} {literal_of(form.name.end)}".strip()
        id = f"({literal_of(form.id.start)} [a-zA-Z0-9]{{9}} {literal_of(form.id.end)})?" if form.id.start else ""
        arguments = self._parameters(form.parameters, tool) if form.parameters else self._schemas.of(tool)
        parts = (literal_of(form.arguments.start), arguments, literal_of(form.arguments.end), literal_of(form.close))
        return _joined((f"{head} {id}".strip(), *parts))

    def _parameters(self, form: Parameters, tool: Tool) -> str:
        """Those that are required in their order, then any of the others."""
        properties = tool.parameters.get("properties")
        required = tool.parameters.get("required")
        needed: list[str] = []
        others: list[str] = []
        for key in properties if isinstance(properties, dict) else ():
            rule = self._rules.add(f"{tool.name}-arg-{key}", self._parameter(form, tool, key))
            (needed if isinstance(required, list) and key in required else others).append(rule)
        optional = f"(space ({' | '.join(others)}))*" if others else ""
        return f"{_joined(needed)} {optional}".strip()

    def _parameter(self, form: Parameters, tool: Tool, key: str) -> str:
        is_text = tool.takes_text(key)
        start = form.name.start.lstrip() + key + form.name.end
        if form.text_flag:
            start += f" {form.text_flag if is_text else form.text_flag.replace('true', 'false')}>"
        if is_text:
            end = form.value.end
            value = until(self._rules, end, "text") if end else ""
            return f"{literal(start + form.value.start)} {value}"
        parts = (literal(start), literal_of(form.value.start), self._schemas.of(tool, key), literal_of(form.value.end))
        return _joined(parts)


class _Python:
    def __init__(self, tools: Sequence[Tool], rules: Rules) -> None:
        self._tools, self._rules = tools, rules
        self._schemas = _Schemas(tools, rules)

    def call(self) -> str:
        return "(" + " | ".join(self._rules.add(f"call-{tool.name}", self._one(tool)) for tool in self._tools) + ")"

    def _one(self, tool: Tool) -> str:
        """Required arguments in their order, then any of the others."""
        properties, required = tool.parameters.get("properties"), tool.parameters.get("required")
        keys = list(properties) if isinstance(properties, dict) else []
        needed = [key for key in keys if isinstance(required, list) and key in required]
        others = " | ".join(self._argument(tool, key) for key in keys if key not in needed)
        first = ' "," space '.join(self._argument(tool, key) for key in needed)
        rest = f'("," space ({others}))*' if needed else f'(({others}) ("," space ({others}))*)?'
        return f'{literal(tool.name + "(")} {first} {rest if others else ""} ")"'

    def _argument(self, tool: Tool, key: str) -> str:
        return self._rules.add(f"{tool.name}-arg-{key}", f"{literal(key + '=')} {self._schemas.of(tool, key)}")


class _Schemas:
    """The rules of the tools' parameters. A reference leads into the tool's own schema."""

    def __init__(self, tools: Sequence[Tool], rules: Rules) -> None:
        self._root = {"tools": {tool.name: _rooted(tool.parameters, tool.name) for tool in tools}}
        self._converter = Converter(self._root, rules)

    def of(self, tool: Tool, argument: str = "") -> str:
        schema = self._root["tools"][tool.name]
        path = f"#/tools/{tool.name}"
        if argument:
            return self._converter.visit(schema["properties"][argument], f"{tool.name}-{argument}", path)
        return self._converter.visit(schema or {"type": "object"}, f"{tool.name}-arguments", path)


def _rooted(schema: Any, name: str) -> Any:
    """The same schema at its place below the common root."""
    if isinstance(schema, Mapping):
        rooted = {key: _rooted(value, name) for key, value in schema.items()}
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            rooted["$ref"] = f"#/tools/{name}{reference[1:]}"
        return rooted
    return [_rooted(item, name) for item in schema] if isinstance(schema, list) else schema


def until(rules: Rules, mark: str, name: str) -> str:
    """Any text up to and including the first `mark`: one rule for each letter of it that has been seen."""
    letters = sorted(set(mark))
    number = "-".join(f"{ord(letter):x}" for letter in mark)  # the mark is the rule's identity
    names = [f"{name}-until-{number}-{i}" for i in range(len(mark))]
    others = "".join(_in_class(letter) for letter in letters)
    for i, rule in enumerate(names):
        ways = [f"[^{others}] {names[0]}"]
        for letter in letters:
            seen = _seen(mark, mark[:i] + letter)
            ways.append(literal(letter) + (f" {names[seen]}" if seen < len(mark) else ""))
        rules.add(rule, " | ".join(ways))
    return names[0]


def _seen(mark: str, text: str) -> int:
    """How much of the mark the text ends with."""
    return next(n for n in range(len(text), -1, -1) if text.endswith(mark[:n]))


def _in_class(letter: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter) or (
        letter if letter.isalnum() and letter.isascii() else f"\\U{ord(letter):08X}"
    )
