"""`response_format`: which JSON a chat's answer has to be, the grammar for it, and the JSON without what is around it.

As in llama-server, a template's answer may have white space around the JSON or stand in a code block, since models are
used to that; neither is part of the message. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields

from ...grammar.converter import Converter, schema_grammar
from ...grammar.rules import GrammarRules, literal
from ...grammar.schema import SchemaError
from .tool_grammar import GrammarContext

_ANY_OBJECT = {"type": "object"}
_FENCE = "```json"
_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    schema: object


def read_response_format(fields: Fields) -> ResponseFormat | None:
    """None: any text, or what the request's own grammar says."""
    schema = fields.body.get("json_schema")
    if schema is not None and fields.string("grammar", default=""):
        raise InvalidRequest("Cannot use both json_schema and grammar")
    form = Fields(fields.object("response_format"))
    kind = form.string("type", default="text")
    if kind == "json_object":
        if "schema" in form.body or not schema:
            schema = form.object("schema")
    elif kind == "json_schema":
        schema = Fields(form.object("json_schema")).object("schema")
    elif kind not in ("text", ""):
        raise InvalidRequest(f'response_format type must be one of "text" or "json_object", but got: {kind}')
    if schema is None:
        return None
    return ResponseFormat(_ANY_OBJECT if schema == {} else schema)


def completion_fields(form: ResponseFormat, context: GrammarContext, generation_prompt: str) -> dict[str, Any]:
    """What a completion is asked for: thoughts may come before the JSON."""
    try:
        converter = Converter(form.schema, rules := GrammarRules())
        schema_rule = converter.visit(form.schema, "response-format-schema", "#")
    except SchemaError as error:
        why = "Unable to generate parser for this template. Automatic parser generation failed"
        raise InvalidRequest(f"{why}: {error}") from None
    answer = '("```json" space response-format space "```" | space response-format space)'
    rules.add("response-format", schema_rule)
    rules.add(
        "root", f"{context.rule(rules)} {literal(context.content) if context.content else 'space'} space {answer}"
    )
    return {"grammar": rules.text(), "grammar_type": "tool_calls", "generation_prompt": generation_prompt}


def plain_fields(form: ResponseFormat) -> dict[str, Any]:
    """For templates that are no Jinja: nothing but the JSON."""
    try:
        return {"grammar": schema_grammar(form.schema)}
    except SchemaError as error:
        raise InvalidRequest(f"JSON schema conversion failed:\n{error}") from None


class JsonText:
    """Takes an answer's text piece by piece and gives the JSON in it. What surrounds it is dropped."""

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
            self._withheld = _FENCE  # read again with what follows
        return start

    def _inner(self, text: str) -> str:
        """All but the blanks and backticks at the end, unless they are inside of a string."""
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
    """The JSON of a whole answer; all of it when none has begun."""
    return JsonText().add(text) or text
