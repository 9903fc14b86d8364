"""Reads the request fields about reasoning: its token budget and the tags that delimit it. Pure.

`params` calls it. A chat format passes its reasoning tags in the same fields that a completion request may set.
"""

from __future__ import annotations

from llama_corral.common.web.json_fields import Fields
from msgspec import Struct

from ...engine.messages import Thinking


class ThinkingDefaults(Struct, frozen=True):
    budget: int = -1
    message: str = ""


def read_thinking(fields: Fields, defaults: ThinkingDefaults) -> Thinking | None:
    """Return the reasoning parameters, or None if there is no end tag."""
    budget = fields.integer("reasoning_budget_tokens", "thinking_budget_tokens", default=-1, low=-1)
    message = fields.string("reasoning_budget_message", default=defaults.message)
    start = fields.string("reasoning_budget_start_tag", default="")
    ends = tuple(filter(None, _ends(fields)))
    if not ends:
        return None
    return Thinking(
        start=start,
        ends=ends,
        opening=fields.string("generation_prompt", default=""),
        budget=defaults.budget if budget == -1 else budget,
        message=message,
        control=fields.boolean("reasoning_control", default=False),
    )


def _ends(fields: Fields) -> tuple[str, ...]:
    if fields.body.get("reasoning_budget_end_tags") is not None:
        return fields.strings("reasoning_budget_end_tags", default=())
    return (fields.string("reasoning_budget_end_tag", default=""),)
