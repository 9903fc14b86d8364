"""What an answer's text turns out to mean, bit by bit: content, thoughts, tool calls; and the message they add up to.

The parsers write these, every dialect reads them. A later one never takes back an earlier one: a message is their sum.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_LETTERS = string.digits + string.ascii_letters
_ID_LENGTH = 32


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegun:
    """Always the first of its `index`; indexes count up from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Delta = ContentDelta | ReasoningDelta | ToolCallBegun | ToolCallArguments
NewCallId = Callable[[], str]


class DeltaWriter:
    """Collects the deltas of one answer."""

    def __init__(self, new_id: NewCallId) -> None:
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self.n_calls = 0

    def take(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        if text:
            self._deltas.append(ContentDelta(text))

    def reasoning(self, text: str) -> None:
        if text:
            self._deltas.append(ReasoningDelta(text))

    def call(self, name: str, id: str = "") -> None:
        self._deltas.append(ToolCallBegun(self.n_calls, id or self._new_id(), name))
        self.n_calls += 1

    def arguments(self, text: str) -> None:
        """Of the call begun last."""
        if text:
            self._deltas.append(ToolCallArguments(self.n_calls - 1, text))


@dataclass(slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ParsedMessage:
    """A whole message."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            match delta:
                case ContentDelta(text):
                    self.content += text
                case ReasoningDelta(text):
                    self.reasoning += text
                case ToolCallBegun(_, id, name):
                    self.calls.append(ToolCall(id, name))
                case ToolCallArguments(index, text):
                    self.calls[index].arguments += text


def new_call_id() -> str:
    """For models that give their calls none."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))
