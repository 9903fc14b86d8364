"""Describe how a model family writes its answers: marks around reasoning, content, tool calls and arguments.

Formats come from `detection` or `families`; the parsers and the grammar of tool calls use them. White space around
a mark is the template's; parsers accept any.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Span(Struct, frozen=True):
    start: str = ""
    end: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """The non-empty marks, without white space around them."""
        return tuple(mark for mark in (self.start.strip(), self.end.strip()) if mark)


NOTHING = Span()


class JsonCalls(Struct, frozen=True):
    """A call is one JSON object that contains the function's name."""

    section: Span = NOTHING  # around all calls
    call: Span = NOTHING  # around each call
    array: bool = False  # the calls are items of one array
    name: str = "name"  # "" if the function's name is the key of the arguments
    arguments: str = "arguments"
    id: str = ""
    id_before_arguments: bool = False
    wrapper: str = ""  # key of the object that holds name and arguments
    extra: str = ""  # members written first, e.g. `"type": "function", `


class Parameters(Struct, frozen=True):
    """Each argument has its own marks. A string is written unquoted, everything else as JSON."""

    name: Span
    value: Span
    between: str = ""
    text_flag: str = ""  # if it is between `name.end` and `flags_end`, the value is a string
    other_flags: tuple[str, ...] = ()  # the same, if the value is JSON
    flags_end: str = ">"
    quote: Span = NOTHING  # optional quotes around a string that contains `value.end`


class TaggedCalls(Struct, frozen=True):
    """The name is between marks; the arguments are one JSON object, or each of them is between marks, too."""

    section: Span = NOTHING
    call: Span = NOTHING
    name: Span = NOTHING
    id: Span = NOTHING  # between name and arguments
    arguments: Span = NOTHING
    close: str = ""  # after the arguments, before the call's end
    parameters: Parameters | None = None
    id_is_name: str = ""  # the id's prefix, if the id contains the name: `functions.NAME:0`
    id_first: bool = False  # the id is between the call's start and the name's start
    name_rest: str = ""  # if set, text after `name.end` up to and including this is ignored
    number: Span = NOTHING  # marks around the call's number, before `name_rest`


class PythonCalls(Struct, frozen=True):
    """The calls are a list in Python syntax."""

    section: Span
    call: Span = NOTHING


class DictCalls(Struct, frozen=True):
    """The arguments are JSON-like, but keys are unquoted and strings are between marks (Gemma)."""

    call: Span
    name: str  # written before the name; `{` of the arguments follows the name
    quote: str
    section: Span = NOTHING


class ElementCalls(Struct, frozen=True):
    """Arguments and members of objects are elements with their name; items of arrays are `<item>` (MiniMax)."""

    space: str  # the namespace prefix before each tag
    section: Span
    name: Span
    call: Span  # its start is `name.start`


Calls = JsonCalls | TaggedCalls | PythonCalls | DictCalls | ElementCalls

Style = Literal["marks", "channels", "recipients", "addressed"]
"""Marks around parts of one message, or several messages to different recipients (gpt-oss, Functionary, Muse)."""


class AnswerFormat(Struct, frozen=True):
    reasoning: Span | None = None  # an empty start: the answer begins with reasoning, without a mark
    content: Span = NOTHING
    calls: Calls | None = None
    calls_end_reasoning: bool = False  # True if the first mark of calls ends the reasoning, too
    thinks_again: bool = False  # True if reasoning may also occur after content
    skipped: tuple[str, ...] = ()  # marks that are removed
    spacing: tuple[str, str, str] = ("\n", "\n", "\n\n")  # after the start of reasoning, before and after its end
    loose: bool = False  # True if all white space after reasoning is dropped
    reopens: tuple[str, str] = ("", "")  # if a generation prompt ends with the first, append the second
    responses_within: bool = False  # True if the template expects tool results in the message with the calls
    turn: str = ""  # begins the message after reasoning, if that is a separate message
    before_content: str = ""
    before_calls: str = ""  # a grammar rule; `recipient` in it is the name of any function
    between_calls: str = ""  # the same, if each call is a separate message
    style: Style = "marks"
    own_marks: tuple[str, ...] = ()  # additional marks that may be special tokens

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks. They may be special tokens, which must be converted to text."""
        found = [*self.own_marks, *self.skipped, *(self.reasoning.marks if self.reasoning else ()), *self.content.marks]
        if self.calls:
            for name in self.calls.__struct_fields__:
                found += _marks(getattr(self.calls, name))
        return tuple(dict.fromkeys(found))


ONLY_CONTENT = AnswerFormat()


def _marks(value: object) -> list[str]:
    if isinstance(value, Span):
        return list(value.marks)
    if isinstance(value, Parameters):
        return [*value.name.marks, *value.value.marks, *Span(value.between).marks]
    return []


def first_mark(calls: Calls) -> str:
    """Return the mark that calls begin with; "" if they begin with JSON."""
    start = calls.section.start.strip() or calls.call.start.strip()
    return start or (calls.name.start.strip() if isinstance(calls, TaggedCalls) else "")
