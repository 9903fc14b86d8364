"""Parse an answer's text incrementally into content, reasoning and tool calls.

The deltas of `AnswerParser` add up to the same message however the text is split, because ambiguous text is withheld.
Text that only looks like a call (unknown tool, wrong form) is content. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..formats.formats import AnswerFormat, DictCalls, ElementCalls, JsonCalls, PythonCalls, Span
from ..tools import FunctionTool
from .calls import CallsReader
from .channels import addressed, harmony, recipients
from .deltas import Delta, DeltaWriter, NewCallId, new_call_id
from .dict_calls import DictCallsReader
from .element_calls import ElementCallsReader
from .json_calls import JsonCallsReader
from .python_calls import PythonCallsReader
from .reader import Parsing, TextReader
from .tagged_calls import TaggedCallsReader
from .trimmed import TrimmedText


class AnswerParser:
    """Call `add` for each piece of text, then `end` once. `opening`: the prompt's end that belongs to the answer."""

    def __init__(
        self,
        form: AnswerFormat,
        tools: Sequence[FunctionTool] = (),
        *,
        opening: str = "",
        separate_reasoning: bool = True,
        only_calls: bool = False,
        new_id: NewCallId = new_call_id,
    ) -> None:
        """`only_calls`: the grammar forbids content, so white space before the calls is not content either."""
        self._reader = TextReader()
        self._writer = DeltaWriter(new_id)
        by_name = {tool.name: tool for tool in tools}
        self._parsing: Parsing[None] | None = _parsing(
            form, by_name, separate_reasoning, only_calls, self._reader, self._writer
        )
        self.opened = self.add(opening)
        """The deltas of `opening`."""

    @property
    def is_called(self) -> bool:
        return self._writer.is_called

    def add(self, text: str) -> list[Delta]:
        self._reader.feed(text)
        if self._parsing is not None:
            next(self._parsing, None)
        return self._writer.take()

    def end(self, *, truncated: bool = False, follows: str = "") -> list[Delta]:
        """Return the last deltas.

        `truncated`: a limit or the stop word `follows` ended the answer. Then the beginning of a mark or of a call at
        its end is dropped, and a call whose end was not written is reported as cut off.
        """
        self._reader.ended, self._reader.truncated, self._reader.follows = True, truncated, follows
        if self._parsing is not None:
            for _ in self._parsing:
                raise AssertionError("a parser waits for text after the end")
        self._parsing = None
        self._writer.abandon_call()
        return self._writer.take()


def _parsing(
    form: AnswerFormat,
    tools: Mapping[str, FunctionTool],
    separate_reasoning: bool,
    only_calls: bool,
    reader: TextReader,
    writer: DeltaWriter,
) -> Parsing[None]:
    if form.style == "channels":
        return harmony(tools, separate_reasoning, reader, writer)
    if form.style == "recipients":
        return recipients(tools, reader, writer)
    if form.style == "addressed":
        return addressed(_calls_reader(form, tools, reader, writer), separate_reasoning, reader, writer)
    return _answer(form, tools, separate_reasoning, only_calls, reader, writer)


def _answer(
    form: AnswerFormat,
    tools: Mapping[str, FunctionTool],
    separate_reasoning: bool,
    only_calls: bool,
    reader: TextReader,
    writer: DeltaWriter,
) -> Parsing[None]:
    calls = _calls_reader(form, tools, reader, writer)
    thoughts = form.reasoning if separate_reasoning else None
    thought = False
    if thoughts:
        thought = yield from _thoughts(form, thoughts, calls, reader, writer)
    marks = [*form.content.marks, *_skipped(form, separate_reasoning)]
    again = thoughts.start if thoughts and form.thinks_again else ""
    if again:
        marks.append(again)
    if calls is not None:
        marks.append(calls.mark)
    leading = not only_calls and (thought or form.reasoning is None)
    content = TrimmedText(writer.content, leading=leading, trailing=not marks)
    while True:
        mark = yield from reader.until(marks, content)
        if mark is None:
            may_precede_call = calls is not None and reader.truncated and not content.said
            if not writer.n_calls and not may_precede_call:
                content.flush()
            return
        if thoughts and mark == again:
            yield from _thoughts(form, thoughts, calls, reader, writer)
            content = TrimmedText(writer.content)
            continue
        if calls is None or mark != calls.mark:
            if mark == form.content.end and content.said:
                content.flush()
            reader.skip(len(mark))
            content = TrimmedText(writer.content, leading=mark == form.content.start)
            continue
        reader.mark()
        if (yield from calls.read()):
            content = TrimmedText(writer.content)
        else:
            content(reader.rest[:1])
            reader.skip(1)


def _skipped(form: AnswerFormat, separate_reasoning: bool) -> Sequence[str]:
    """Return the marks to remove. Marks of reasoning are kept if reasoning is part of the content."""
    shown = form.reasoning.marks if form.reasoning and not separate_reasoning else ()
    return [mark for mark in form.skipped if mark not in shown]


def _thoughts(
    form: AnswerFormat, tags: Span, calls: CallsReader | None, reader: TextReader, writer: DeltaWriter
) -> Parsing[bool]:
    """Read the reasoning at this position. Return True if there were marks of reasoning."""
    start, end = tags.start.strip(), tags.end.strip()
    if start and not (yield from reader.word(start)):
        found = yield from reader.word(end)  # an end mark without a start mark
        if reader.is_undecided:
            reader.skip_rest()  # the beginning of a mark
        if found:
            yield from _blanks(form.spacing[2], form.calls_end_reasoning or form.loose, reader)
        return found
    yield from _blanks(form.spacing[0], form.calls_end_reasoning or form.thinks_again, reader)
    ends = [end, *Span(form.content.start).marks]
    if form.calls_end_reasoning and calls is not None:
        ends.append(calls.mark)
    text = TrimmedText(writer.reasoning, leading=True)
    mark = yield from reader.until(ends, text)
    if text.said and (mark is None or (mark == end and not form.thinks_again)):
        text.flush(without=form.spacing[1] if mark else "")
    if mark == end:
        reader.skip(len(end))
        yield from _blanks(form.spacing[2], form.calls_end_reasoning or form.loose, reader)
    return True


def _blanks(of_template: str, all_of_them: bool, reader: TextReader) -> Parsing[None]:
    """Skip the white space that the template writes after a mark; it is not part of the text."""
    return reader.skip_space() if all_of_them else reader.skip_blanks(of_template)


def _calls_reader(
    form: AnswerFormat, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
) -> CallsReader | None:
    if not tools or form.calls is None:
        return None
    if isinstance(form.calls, JsonCalls):
        return JsonCallsReader(form.calls, tools, reader, writer)
    if isinstance(form.calls, PythonCalls):
        return PythonCallsReader(form.calls, tools, reader, writer)
    if isinstance(form.calls, DictCalls):
        return DictCallsReader(form.calls, tools, reader, writer)
    if isinstance(form.calls, ElementCalls):
        return ElementCallsReader(form.calls, tools, reader, writer)
    return TaggedCallsReader(form.calls, tools, reader, writer)
