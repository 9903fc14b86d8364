"""How a model family writes its answers: the marks around thoughts, content, tool calls and their arguments.

Found by `detection` or known from `families`; read by the parsers and by the grammar of tool calls. White space
around a mark is what the template writes; parsers take any.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, slots=True)
class Span:
    start: str = ""
    end: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """Those there are, without white space around them."""
        return tuple(mark for mark in (self.start.strip(), self.end.strip()) if mark)


NOTHING = Span()


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """A call is one JSON object, its function's name in it."""

    section: Span = NOTHING  # around all calls
    call: Span = NOTHING  # around each
    array: bool = False  # the calls are items of one array
    name: str = "name"  # "" when the name itself is the key of the arguments
    arguments: str = "arguments"
    id: str = ""
    id_before_arguments: bool = False
    wrapper: str = ""  # key of the object that holds name and arguments
    extra: str = ""  # members written first, as in `"type": "function", `


@dataclass(frozen=True, slots=True)
class Parameters:
    """Each argument in marks of its own: text as it is, everything else as JSON."""

    name: Span
    value: Span
    between: str = ""
    text_flag: str = ""  # the mark of the name goes on up to `flags_end`, and says with this that the value is a text
    other_flags: tuple[str, ...] = ()  # … or with one of these that it is JSON
    flags_end: str = ">"
    quote: Span = NOTHING  # may stand around a text that has the value's end in it


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """The name stands in marks; the arguments are one JSON object, or each of them stands in marks too."""

    section: Span = NOTHING
    call: Span = NOTHING
    name: Span = NOTHING
    id: Span = NOTHING  # between name and arguments
    arguments: Span = NOTHING
    close: str = ""  # after the arguments, before the call's end
    parameters: Parameters | None = None
    id_is_name: str = ""  # the name is part of the id, behind this: `functions.NAME:0`
    id_first: bool = False  # the id stands between the call's start and the name's
    name_rest: str = ""  # the mark of the name goes on up to this, and nobody needs what it says:
    number: Span = NOTHING  # … which call it is


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """A list of calls as Python writes them."""

    section: Span
    call: Span = NOTHING


@dataclass(frozen=True, slots=True)
class DictCalls:
    """The arguments are like JSON, but keys stand bare and texts between marks (Gemma)."""

    call: Span
    name: str  # comes before the name, the arguments' brace behind it
    quote: str
    section: Span = NOTHING


@dataclass(frozen=True, slots=True)
class ElementCalls:
    """Each argument is an element of its own name, members of objects too, items of arrays are `<item>` (MiniMax)."""

    space: str  # before each tag
    section: Span
    name: Span
    call: Span  # its start is that of the name


Calls = JsonCalls | TaggedCalls | PythonCalls | DictCalls | ElementCalls

Style = Literal["marks", "channels", "recipients", "addressed"]
"""Marks around parts of one message; or several messages to different recipients (gpt-oss; Functionary; Muse)."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    reasoning: Span | None = None  # an empty start: thoughts come first, without a mark
    content: Span = NOTHING
    calls: Calls | None = None
    calls_end_reasoning: bool = False
    thinks_again: bool = False  # thoughts may come between content, too
    skipped: tuple[str, ...] = ()  # marks that say nothing
    spacing: tuple[str, str, str] = ("\n", "\n", "\n\n")  # behind the mark of thoughts, before the other, behind that
    loose: bool = False  # any blanks behind thoughts say nothing
    reopens: tuple[str, str] = ("", "")  # a prompt for an answer that ends with the first lacks the second
    responses_within: bool = False  # the template wants results of tools in the message of their calls
    turn: str = ""  # begins the message after the thoughts, where these are one of their own
    before_content: str = ""
    before_calls: str = ""  # a grammar's rule; `recipient` in it is the name of any function
    between_calls: str = ""  # the same, where each call is a message of its own
    style: Style = "marks"
    own_marks: tuple[str, ...] = ()  # of other styles

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks, as they may be special tokens, which must be shown as text."""
        found = [*self.own_marks, *self.skipped, *(self.reasoning.marks if self.reasoning else ()), *self.content.marks]
        if self.calls:
            for field in fields(self.calls):
                found += _marks(getattr(self.calls, field.name))
        return tuple(dict.fromkeys(found))


ONLY_CONTENT = AnswerFormat()


def _marks(value: object) -> list[str]:
    if isinstance(value, Span):
        return list(value.marks)
    if isinstance(value, Parameters):
        return [*value.name.marks, *value.value.marks, *Span(value.between).marks]
    return []


def first_mark(calls: Calls) -> str:
    """What calls begin with, if it is not JSON at once."""
    start = calls.section.start.strip() or calls.call.start.strip()
    return start or (calls.name.start.strip() if isinstance(calls, TaggedCalls) else "")
