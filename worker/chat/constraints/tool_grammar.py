"""Build the grammar of tool calls: the allowed text from a call's first mark on, or of the whole answer.

With `auto` the grammar is inactive (lazy) until the mark is generated; with `required` it is active from the beginning.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llama_corral.common.base.errors import InvalidRequest
from msgspec import Struct

from ...grammar.rules import GrammarRules, json_literal, literal
from ...grammar.schema import SchemaError
from ...grammar.work import Budget
from ..argument_schemas import Texts
from ..formats.formats import (
    Calls,
    DictCalls,
    ElementCalls,
    JsonCalls,
    Parameters,
    PythonCalls,
    Span,
    TaggedCalls,
    first_mark,
)
from ..tools import FunctionTool
from .argument_rules import Schemas, any_call, joined, literal_of, text_until, until
from .dict_grammar import DictRules
from .element_grammar import ElementRules

_WORD_TRIGGER = 1
_ID = r'"\"" [a-zA-Z0-9]{9} "\""'
"""Nine characters: the only length that every template with ids written by the model accepts."""


class GrammarContext(Struct, frozen=True):
    """The parts of a whole answer before content or calls: the end of the prompt, and reasoning."""

    template: str
    opening: str = ""
    reasoning: Span | None = None
    turn: str = ""  # written again between reasoning and the rest
    content: str = ""  # written before content
    calls: str = ""  # the rule of the text before calls
    next_calls: str = ""  # the rule between sections of calls, if there may be several
    wakes: bool = True  # True if calls begin with a unique mark, which can trigger a lazy grammar

    def rule(self, rules: GrammarRules) -> str:
        """Return the rule of the prompt's end and the reasoning."""
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
    calls: Calls,
    tools: Sequence[FunctionTool],
    context: GrammarContext,
    budget: Budget,
    *,
    required: bool,
    parallel: bool,
) -> dict[str, Any]:
    """Return the completion fields with the grammar of the calls. Raises InvalidRequest."""
    mark = first_mark(calls) if context.wakes else ""
    if not required and not mark:
        return {}  # the start of a call cannot be recognized
    rules = GrammarRules(budget)
    section = call_rule(calls, tools, context, rules, parallel=parallel)
    rules.add("root", f"{context.rule(rules)} space {context.calls} {section}" if required else section)
    fields = grammar_fields(rules, context)
    if not required:
        fields |= {"grammar_lazy": True, "grammar_triggers": [{"type": _WORD_TRIGGER, "value": mark}]}
    return fields


def grammar_fields(rules: GrammarRules, context: GrammarContext) -> dict[str, Any]:
    """Return the completion fields for a grammar of the whole answer."""
    return {
        "grammar": rules.text(),
        "grammar_type": "tool_calls",
        "generation_prompt": context.template + context.opening,
    }


def call_rule(
    calls: Calls, tools: Sequence[FunctionTool], context: GrammarContext, rules: GrammarRules, *, parallel: bool
) -> str:
    """Add the rules of calls and return the rule from their first mark on. Raises InvalidRequest."""
    try:
        return _call_rule(calls, tools, context, rules, parallel=parallel)
    except SchemaError as error:
        raise InvalidRequest(f"Field 'tools': {error}") from None


def _call_rule(
    calls: Calls, tools: Sequence[FunctionTool], context: GrammarContext, rules: GrammarRules, *, parallel: bool
) -> str:
    if "recipient" in context.calls:
        rules.add("recipient", " | ".join(literal(tool.name) for tool in tools))
    write = _writer(calls, tools, rules)
    call = rules.add("tool-call", joined((literal_of(calls.call.start), write.call(), literal_of(calls.call.end))))
    array = isinstance(calls, PythonCalls) or (isinstance(calls, JsonCalls) and calls.array)
    separator = '"," space ' if array else ""
    repeats = parallel and not context.next_calls
    several = f"{call} (space {separator}{call})*" if repeats else call
    if array:
        several = f'"[" space {several} space "]"'
    section = joined((literal_of(calls.section.start), several, literal_of(calls.section.end)))
    if parallel and context.next_calls:
        one = rules.add("tool-calls", section)
        section = f"{one} ({context.next_calls} {one})*"
    return section


def _writer(calls: Calls, tools: Sequence[FunctionTool], rules: GrammarRules) -> CallRules:
    match calls:
        case JsonCalls():
            return _JsonCallRules(calls, tools, rules)
        case PythonCalls():
            return _PythonCallRules(tools, rules)
        case DictCalls():
            return DictRules(calls, tools, rules)
        case ElementCalls():
            return ElementRules(calls, tools, rules)
    return _TaggedCallRules(calls, tools, rules)


class CallRules(Protocol):
    def call(self) -> str:
        """Return the rule of one call, without the marks around each call."""


class _JsonCallRules:
    def __init__(self, form: JsonCalls, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._form, self._rules = form, rules
        self._schemas = Schemas(tools, rules)
        self._tools = tools

    def call(self) -> str:
        return any_call(self._rules, self._tools, self._one)

    def _one(self, tool: FunctionTool) -> str:
        form, arguments = self._form, self._schemas.of_arguments(tool)
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


class _TaggedCallRules:
    def __init__(self, form: TaggedCalls, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._form, self._tools, self._rules = form, tools, rules
        self._schemas = Schemas(tools, rules)

    def call(self) -> str:
        return any_call(self._rules, self._tools, self._one)

    def _one(self, tool: FunctionTool) -> str:
        form = self._form
        name = literal_of(form.name.start + form.id_is_name + tool.name)
        if form.id_is_name:
            name += ' ":" [0-9]{1,4}'
        if form.id_first:
            name = f"[a-z0-9]{{10}} {name}"
        name_end = form.name.end.strip() or form.name.end  # white space that ends the name is needed
        head = f"{name} {literal(name_end) if name_end else ''}".strip()
        if form.name_rest:
            head += f" {literal(form.number.start)} [0-9]{{1,3}} {literal(form.number.end + form.name_rest)}"
        id = f"({literal_of(form.id.start)} [a-zA-Z0-9]{{9}} {literal_of(form.id.end)})?" if form.id.start else ""
        arguments = self._parameters(form.parameters, tool) if form.parameters else self._schemas.of_arguments(tool)
        parts = (literal_of(form.arguments.start), arguments, literal_of(form.arguments.end), literal_of(form.close))
        return joined((f"{head} {id}".strip(), *parts))

    def _parameters(self, form: Parameters, tool: FunctionTool) -> str:
        """Required arguments are written first, in schema order; then any of the others."""
        schemas = tool.schemas(self._rules.budget)
        required = schemas.required(tool.parameters)
        needed: list[str] = []
        others: list[str] = []
        for key, schema in schemas.properties(tool.parameters).items():
            name, texts = f"{tool.name}-{key}", schemas.texts(schema)
            ways = [self._text(form, key, texts)] if texts.may_be_text else []
            if not texts.may_be_text:
                ways.append(self._json(form, key, self._schemas.under(tool, schema, name)))
            elif texts.others and not texts.is_free:
                ways.append(self._json(form, key, self._schemas.under(tool, {"anyOf": [*texts.others]}, name)))
            rule = self._rules.add(f"{tool.name}-arg-{key}", " | ".join(ways))
            (needed if key in required else others).append(rule)
        optional = f"(space ({' | '.join(others)}))*" if others else ""
        return f"{joined(needed)} {optional}".strip()

    def _text(self, form: Parameters, key: str, texts: Texts) -> str:
        """Return a rule for an argument that is a string."""
        head, end = self._head(form, key, [form.text_flag]), form.value.end
        value = text_until(self._rules, texts, end, "text") if end else ""
        if form.quote.start:
            inner = text_until(self._rules, texts, form.quote.end, "quoted")
            quoted = f"{literal(form.quote.start)} {inner} {literal(end)}"
            value = f"({quoted} | {value})"
        return f"{head} {literal(form.value.start)} {value}" if form.value.start else f"{head} {value}"

    def _json(self, form: Parameters, key: str, value: str) -> str:
        head = self._head(form, key, form.other_flags)
        return joined((head, literal_of(form.value.start), value, literal_of(form.value.end)))

    def _head(self, form: Parameters, key: str, flags: Sequence[str]) -> str:
        start = literal(form.name.start.lstrip() + key + form.name.end)
        if not form.text_flag:
            return start
        return f"{start} ({' | '.join(literal(f' {flag}{form.flags_end}') for flag in flags)})"


class _PythonCallRules:
    def __init__(self, tools: Sequence[FunctionTool], rules: GrammarRules) -> None:
        self._tools, self._rules = tools, rules
        self._schemas = Schemas(tools, rules)

    def call(self) -> str:
        return any_call(self._rules, self._tools, self._one)

    def _one(self, tool: FunctionTool) -> str:
        """Required arguments are written first, in schema order; then any of the others."""
        schemas = tool.schemas(self._rules.budget)
        required = schemas.required(tool.parameters)
        rules = {key: self._argument(tool, key, it) for key, it in schemas.properties(tool.parameters).items()}
        needed = [rule for key, rule in rules.items() if key in required]
        others = " | ".join(rule for key, rule in rules.items() if key not in required)
        first = ' "," space '.join(needed)
        rest = f'("," space ({others}))*' if needed else f'(({others}) ("," space ({others}))*)?'
        return f'{literal(tool.name + "(")} {first} {rest if others else ""} ")"'

    def _argument(self, tool: FunctionTool, key: str, schema: Any) -> str:
        value = self._schemas.under(tool, schema, f"{tool.name}-{key}")
        return self._rules.add(f"{tool.name}-arg-{key}", f"{literal(key + '=')} {value}")
