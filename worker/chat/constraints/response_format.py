"""Read `response_format`, build the grammar for the required JSON, and extract the JSON from the answer.

As in llama-server, the answer may have white space or a code block around the JSON, because models are trained to write
that; neither is part of the message. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields
from msgspec import Struct

from ...grammar.converter import Converter, schema_grammar
from ...grammar.rules import GrammarRules, literal
from ...grammar.schema import SchemaError
from ...grammar.work import Budget
from .tool_grammar import GrammarContext, grammar_fields

_ANY_OBJECT = {"type": "object"}
_FENCE = "```json"
_BLANK = " \t\r\n"


class ResponseFormat(Struct, frozen=True):
    schema: object


def read_response_format(fields: Fields) -> ResponseFormat | None:
    """Return the required format. None: any text, or the request has a grammar. Raises InvalidRequest."""
    schema = fields.body.get("json_schema")
    if schema is not None and fields.string("grammar", default=""):
        raise InvalidRequest("Cannot use both json_schema and grammar")
    form = Fields(fields.object("response_format"))
    kind = form.string("type", default="")
    if kind == "json_object":
        if "schema" in form.body or not schema:
            schema = form.object("schema")
    elif kind == "json_schema":
        schema = _schema_of(form, schema)
    elif kind not in ("text", ""):
        raise InvalidRequest(f'response_format type must be one of "text" or "json_object", but got: {kind}')
    elif not kind and any(form.body.get(name) is not None for name in ("schema", "json_schema")):
        raise InvalidRequest("Field 'response_format.type': a format with a schema needs the type \"json_schema\"")
    if schema is None:
        return None
    return ResponseFormat(_ANY_OBJECT if schema == {} else schema)


def _schema_of(form: Fields, default: object) -> object:
    """Return the schema of a `json_schema` format: in OpenAI's place (`json_schema.schema`), or in llama-server's
    (`schema`), or the request's `json_schema`. Raises InvalidRequest if there is none."""
    for place in (Fields(form.object("json_schema")), form):
        if place.body.get("schema") is not None:
            return place.object("schema")
    if default is None:
        raise InvalidRequest("Field 'response_format.json_schema.schema': a json_schema format needs a schema")
    return default


def completion_fields(
    form: ResponseFormat, context: GrammarContext, calls: Callable[[GrammarRules], str] | None, budget: Budget
) -> dict[str, Any]:
    """Return the completion fields with the grammar: reasoning is allowed before the JSON. Raises InvalidRequest.

    `calls`: if the answer may also be tool calls, adds their rules and returns the rule of all calls.
    """
    try:
        converter = Converter(form.schema, rules := GrammarRules(budget))
        schema_rule = converter.visit(form.schema, "response-format-schema", "#")
    except SchemaError as error:
        why = "Unable to generate parser for this template. Automatic parser generation failed"
        raise InvalidRequest(f"{why}: {error}") from None
    answer = '("```json" space response-format space "```" | space response-format space)'
    rules.add("response-format", schema_rule)
    answer = f"{literal(context.content) if context.content else 'space'} space {answer}"
    if calls is not None:
        answer = f"({answer} | space {context.calls} {calls(rules)})"
    rules.add("root", f"{context.rule(rules)} {answer}")
    return grammar_fields(rules, context)


def plain_fields(form: ResponseFormat, budget: Budget) -> dict[str, Any]:
    """Return the completion fields for rendering without Jinja: only the JSON is allowed. Raises InvalidRequest."""
    try:
        return {"grammar": schema_grammar(form.schema, budget)}
    except SchemaError as error:
        raise InvalidRequest(f"JSON schema conversion failed:\n{error}") from None


class JsonText:
    """Extract the JSON from an answer that arrives in pieces. Text around it is dropped."""

    def __init__(self) -> None:
        self._began = self._in_string = self._escaped = False
        self._withheld = ""

    def add(self, text: str) -> str:
        text, self._withheld = self._withheld + text, ""
        if not self._began:
            text = self._opened(text)
        return self._inner(text) if self._began else ""

    def _opened(self, text: str) -> str:
        start = text.lstrip(_BLANK)
        if start.startswith(_FENCE):
            start = start[len(_FENCE) :].lstrip(_BLANK)
        elif _FENCE.startswith(start):
            self._withheld = start
            return ""
        self._began = bool(start)
        if not start:
            self._withheld = _FENCE  # processed again with the next text
        return start

    def _inner(self, text: str) -> str:
        """Return the text without trailing white space and backticks outside a string; these are withheld."""
        end = 0
        for i, c in enumerate(text, 1):
            if self._in_string:
                self._in_string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
                end = i
            elif c not in _BLANK and c != "`":
                self._in_string = c == '"'
                end = i
        self._withheld = text[end:]
        return text[:end]


def json_in(text: str) -> str:
    """Return the JSON of a complete answer, or the answer itself if it ends before the JSON begins."""
    return JsonText().add(text) or text
