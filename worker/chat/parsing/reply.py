"""Describe how the answer to one chat request is parsed: by the template's format and the request's options.

Created with the prompt, used by every dialect: `parser()` for each streamed choice, `parse()` for a complete one. Pure.
"""

from __future__ import annotations

from msgspec import Struct

from ..constraints.response_format import JsonText
from ..formats.formats import ONLY_CONTENT, AnswerFormat
from ..tools import FunctionTool
from .deltas import ContentDelta, Delta, ParsedMessage
from .parser import AnswerParser


class ReplyFormat(Struct, frozen=True):
    form: AnswerFormat = ONLY_CONTENT
    tools: tuple[FunctionTool, ...] = ()
    opening: str = ""  # the end of the prompt that belongs to the answer: open reasoning, a continued message
    separate_reasoning: bool = True
    wrapped_json: bool = False  # True if text around the JSON in the content is to be dropped
    shows_opening: bool = True  # True if a stream begins with `opening`
    only_calls: bool = False  # True if the answer must be calls, so that it has no content

    def parser(self) -> ReplyParser:
        return ReplyParser(self)

    def parse(self, text: str, *, truncated: bool, follows: str = "") -> ParsedMessage:
        parser = self.parser()
        said = ParsedMessage()
        for deltas in (parser.opened, parser.add(text), parser.end(truncated=truncated, follows=follows)):
            said.add(deltas)
        return said


PLAIN = ReplyFormat()


class ReplyParser:
    """Parse one choice's text, piece by piece."""

    def __init__(self, reply: ReplyFormat) -> None:
        self._parser = AnswerParser(
            reply.form,
            reply.tools,
            opening=reply.opening,
            separate_reasoning=reply.separate_reasoning,
            only_calls=reply.only_calls,
        )
        self._json = JsonText() if reply.wrapped_json else None
        self.opened = self._shown(self._parser.opened)
        """The deltas of the prompt's end that belongs to the answer."""

    def add(self, text: str) -> list[Delta]:
        return self._shown(self._parser.add(text))

    def end(self, *, truncated: bool, follows: str = "") -> list[Delta]:
        """See `AnswerParser.end`."""
        return self._shown(self._parser.end(truncated=truncated, follows=follows))

    @property
    def is_called(self) -> bool:
        """True if there are calls and all of them are whole."""
        return self._parser.is_called

    def _shown(self, deltas: list[Delta]) -> list[Delta]:
        if self._json is None:
            return deltas
        shown = [
            ContentDelta(self._json.add(delta.text)) if isinstance(delta, ContentDelta) else delta for delta in deltas
        ]
        return [delta for delta in shown if not isinstance(delta, ContentDelta) or delta.text]
