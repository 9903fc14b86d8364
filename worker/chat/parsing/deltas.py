"""Define the parsed pieces (deltas) of an answer: content, reasoning, tool calls; and the message they add up to.

The parsers write deltas, every dialect reads them. A later delta never revokes an earlier one: a message is their sum.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable

from msgspec import Struct, field

_LETTERS = string.digits + string.ascii_letters
_ID_LENGTH = 32


class ContentDelta(Struct, frozen=True):
    text: str


class ReasoningDelta(Struct, frozen=True):
    text: str


class ToolCallBegun(Struct, frozen=True):
    """The first delta of a call. `index` counts from 0."""

    index: int
    id: str
    name: str


class ToolCallArguments(Struct, frozen=True):
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


class ToolCallCut(Struct, frozen=True):
    """The call was not written to its end: its arguments must not be used. Follows its other deltas."""

    index: int


Delta = ContentDelta | ReasoningDelta | ToolCallBegun | ToolCallArguments | ToolCallCut
NewCallId = Callable[[], str]


class DeltaWriter:
    """Collect the deltas of one answer.

    A call is open from `call` to `close_call`. Only `close_call` makes it whole, so the end of a text never does.
    """

    def __init__(self, new_id: NewCallId) -> None:
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._is_open = self._has_arguments = False  # of the last call
        self.n_calls = self._n_cut = 0

    @property
    def is_called(self) -> bool:
        """True if there are calls and all of them are whole."""
        return self.n_calls > 0 and not self._n_cut

    def take(self) -> list[Delta]:
        """Return the deltas since the last call of this method."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        if text:
            self._deltas.append(ContentDelta(text))

    def reasoning(self, text: str) -> None:
        if text:
            self._deltas.append(ReasoningDelta(text))

    def call(self, name: str, id: str = "") -> None:
        self.abandon_call()
        self._deltas.append(ToolCallBegun(self.n_calls, id or self._new_id(), name))
        self._is_open, self._has_arguments = True, False
        self.n_calls += 1

    def arguments(self, text: str) -> None:
        """Add argument text to the last call."""
        if text:
            self._has_arguments = True
            self._deltas.append(ToolCallArguments(self.n_calls - 1, text))

    def close_call(self) -> None:
        """The last call was written to its end. Without any arguments they are an empty object."""
        if self._is_open and not self._has_arguments:
            self.arguments("{}")
        self._is_open = False

    def abandon_call(self) -> None:
        """Nothing more of the last call follows: it is cut off unless it was closed."""
        if self._is_open:
            self._deltas.append(ToolCallCut(self.n_calls - 1))
            self._n_cut += 1
        self._is_open = False


class ToolCall(Struct):
    id: str
    name: str
    arguments: str = ""
    is_whole: bool = True


class ParsedMessage(Struct):
    """A message as the sum of its deltas."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def is_called(self) -> bool:
        """True if there are calls and all of them are whole."""
        return bool(self.calls) and all(call.is_whole for call in self.calls)

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
                case ToolCallCut(index):
                    self.calls[index].is_whole = False


def new_call_id() -> str:
    """Return a random id, for models that write no ids."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))
