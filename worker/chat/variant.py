"""A chat template with its detected properties: how its model writes, and which messages it gets.

Created once the model is loaded. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from .formats.families import answer_format
from .formats.formats import AnswerFormat
from .messages import Message, shaped
from .parsing.channels import with_thinking
from .quoting import Quotation
from .template.capabilities import (
    Capabilities,
    probe,
    takes_any_call_id,
    takes_text_arguments,
    takes_user_after_result,
)
from .template.probes import shared_length
from .template.template import ChatTemplate, TemplateError
from .template.turns import TurnDelimiter, detect_delimiters
from .tool_turns import one_call_at_a_time, users_in_results, with_short_call_ids, with_tool_responses


class TemplateVariant(Struct, frozen=True):
    """A template and its detected properties."""

    template: ChatTemplate
    capabilities: Capabilities
    form: AnswerFormat
    delimiters: tuple[TurnDelimiter, ...]
    user_after_result: bool  # a user message may directly follow a tool message
    text_arguments: bool  # arguments of a call may be a text instead of an object
    any_call_id: bool  # calls may have ids other than nine letters and digits

    def adapted(self, messages: Sequence[Message], quotation: Quotation) -> list[Message]:
        """Return the messages in the form that the template supports, with the spellings of special tokens hidden."""
        keep_developer = "<|channel|>" in self.template.source  # gpt-oss supports both roles
        adapted = shaped(
            quotation.messages(messages),
            self.capabilities,
            keep_developer=keep_developer,
            text_arguments=self.text_arguments,
        )
        if self.form.style == "channels":
            adapted = [with_thinking(message) for message in adapted]
        if self.capabilities.supports_tool_calls and not self.capabilities.supports_parallel_tool_calls:
            adapted = one_call_at_a_time(adapted)
        if not self.any_call_id:
            adapted = with_short_call_ids(adapted)
        if not self.user_after_result:
            adapted = users_in_results(adapted)
        if self.form.responses_within:
            adapted = with_tool_responses(adapted, quotation.value)
        return adapted

    def turn_starts(self) -> list[str]:
        """Return the texts that the template writes before a user's and before the model's message."""
        found = [delimiter.text for delimiter in self.delimiters if delimiter.role == "user"]
        takes_text = self.capabilities.supports_string_content
        message = {"role": "user", "content": "x" if takes_text else [{"type": "text", "text": "x"}]}
        try:
            closed, opened = (self.template.render([message], add_generation_prompt=opens) for opens in (False, True))
        except TemplateError:
            return found
        return [*found, before_thoughts(added(closed, opened), self.form)]


def examined(template: ChatTemplate, *, parses: bool) -> TemplateVariant:
    """Detect a template's properties. `parses`: False if answers are not parsed."""
    with template.examined():
        capabilities = probe(template)
        form = answer_format(template, capabilities) if parses else AnswerFormat()
        return TemplateVariant(
            template,
            capabilities,
            form,
            detect_delimiters(template, capabilities),
            takes_user_after_result(template, capabilities),
            takes_text_arguments(template, capabilities),
            takes_any_call_id(template, capabilities),
        )


def before_thoughts(generation_prompt: str, form: AnswerFormat) -> str:
    """Return the part of the generation prompt before the reasoning mark; the rest belongs to the answer."""
    start = form.reasoning.start if form.reasoning else ""
    at = generation_prompt.rfind(start) if start else -1
    return generation_prompt if at < 0 else generation_prompt[:at]


def added(closed: str, opened: str) -> str:
    """Return `opened` without the prefix that both texts share."""
    return opened[shared_length(closed, opened) :]
