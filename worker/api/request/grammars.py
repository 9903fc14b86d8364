"""Reads the fields that constrain an answer's text: `grammar`, `json_schema`, triggers, preserved tokens.

`params` calls it. A chat format passes its grammar in the same fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, json_type, wrong_type

from ...engine.messages import Grammar, Thinking, Trigger, TriggerKind
from ...grammar.converter import schema_grammar
from ...grammar.schema import SchemaError
from ...grammar.work import Budget
from .samplers import Tokenizer

ANY_OBJECT = {"type": "object"}
"""The meaning of an empty schema."""

OF_TEMPLATE = "tool_calls"
"""The `grammar_type` of a grammar that includes the generation prompt; a user's grammar starts after it."""

_KINDS: tuple[TriggerKind, ...] = (
    "token",
    "word",
    "pattern",
    "pattern_full",
)  # index: the number in `grammar_triggers`


def read_grammar(
    fields: Fields,
    default: Grammar | None,
    preserved: frozenset[int],
    vocab: Tokenizer,
    thinking: Thinking | None = None,
    budget: Budget | None = None,
) -> Grammar | None:
    text = fields.string("grammar", default="")
    prefill = fields.string("generation_prompt", default="")
    if text:
        prefill = prefill if fields.string("grammar_type", default="") == OF_TEMPLATE else ""
    elif (schema := fields.body.get("json_schema")) is not None:
        try:
            text = schema_grammar(ANY_OBJECT if schema == {} else schema, budget)
        except SchemaError as error:
            message = f"Field 'json_schema': \"json_schema\": JSON schema conversion failed:\n{error}"
            raise InvalidRequest(message) from None
    elif default is not None and "grammar" not in fields.body:
        return default
    lazy = fields.boolean("grammar_lazy", default=False)
    triggers = tuple(_triggers(fields, preserved, vocab))
    if lazy and not triggers:
        raise InvalidRequest("Field 'grammar_triggers': Error: no triggers set for lazy grammar!")
    return Grammar(text, lazy, triggers, prefill, thinking) if text else None


def preserved_tokens(fields: Fields, vocab: Tokenizer) -> frozenset[int]:
    """Return the special tokens to show as text: the strings of `preserved_tokens` that are a single token."""
    split = [vocab.tokenize(text, False, True) for text in fields.strings("preserved_tokens", default=())]
    return frozenset(tokens[0] for tokens in split if len(tokens) == 1)


def _triggers(fields: Fields, preserved: frozenset[int], vocab: Tokenizer) -> Iterator[Trigger]:
    _, value = fields.find("grammar_triggers")
    if not isinstance(value, (list, type(None))):
        raise wrong_type("grammar_triggers", "array", value)
    for item in value or ():
        if not isinstance(item, dict):
            raise InvalidRequest(f"Field 'grammar_triggers': entries must be objects, but one is {json_type(item)}")
        entry = Fields(item)
        kind = _KINDS[entry.integer("type", default=0, low=0, high=len(_KINDS) - 1)]
        text = entry.string("value", default="")
        if kind == "token":
            yield Trigger("token", text, entry.integer("token", default=-1, low=0, high=vocab.n_vocab - 1))
        elif kind == "word" and len(tokens := vocab.tokenize(text, False, True)) == 1:
            if tokens[0] not in preserved:
                why = f"Grammar trigger word should be marked as preserved token: {text}"
                raise InvalidRequest(f"Field 'grammar_triggers': {why}")
            yield Trigger("token", text, tokens[0])
        else:
            yield Trigger(kind, text)


def triggers_json(triggers: Sequence[Trigger]) -> list[dict[str, Any]]:
    return [
        {"type": _KINDS.index(trigger.kind), "value": trigger.value}
        | ({"token": trigger.token} if trigger.kind == "token" else {})
        for trigger in triggers
    ]
