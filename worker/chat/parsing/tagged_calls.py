"""Read calls whose name is between marks; the arguments are one JSON object, or each of them is between marks.

Used by `parser` when the text may contain a call. Arguments between marks are converted to the text of one JSON object.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..argument_schemas import FREE, Texts
from ..formats.formats import Parameters, TaggedCalls, first_mark
from ..tools import FunctionTool
from .calls import CallsReader
from .deltas import DeltaWriter
from .reader import Emit, Parsing, TextReader, as_json, escaped, json_of


class TaggedCallsReader(CallsReader):
    def __init__(
        self, form: TaggedCalls, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
    ) -> None:
        super().__init__(first_mark(form), form.section, tools, reader, writer)
        self._form = form
        ends = (form.arguments.end, form.close, form.call.end, form.section.end)
        self._next = form.call.start.strip() or form.name.start.strip()
        self._ends = [mark for mark in (*map(str.strip, ends), self._next) if mark]
        """Marks that may follow the arguments."""

    def _call(self) -> Parsing[bool]:
        form, reader = self._form, self._reader
        if not (yield from reader.word(form.call.start)):
            return False
        id = ""
        if form.id_first:
            id, _ = yield from reader.text_until([form.name.start])
        if not (yield from reader.word(form.name.start)):
            return False
        said = yield from self._name()
        if said is None:
            return False
        name = said
        if form.id_is_name:
            name, id = _name_in_id(said, form.id_is_name)
        elif form.id.start.strip() and (yield from reader.word(form.id.start)):
            id, _ = yield from reader.text_until([form.id.end.strip() or form.arguments.start.strip() or "{"])
            yield from reader.word(form.id.end)
        tool = self._tools.get(name)
        if tool is None:
            return False
        reader.unmark()
        self._writer.call(name, id.strip())
        yield from reader.word(form.arguments.start)
        if form.parameters:
            is_whole = yield from self._tagged_arguments(form.parameters, tool)
        else:
            is_whole = yield from self._json_arguments()
        if is_whole:
            self._writer.close_call()
        yield from reader.word(form.arguments.end)
        yield from reader.word(form.close)
        return True

    def _has_another_call(self) -> Parsing[bool]:
        form, reader = self._form, self._reader
        yield from reader.word(form.call.end)
        return (yield from reader.is_next(self._next))

    def _name(self) -> Parsing[str | None]:
        """Read the name up to its end mark, or to any mark that may follow. Return None if it is truncated."""
        form, reader = self._form, self._reader
        marks = [form.name.end.strip()]
        if not marks[0]:
            start = form.parameters.name.start if form.parameters else "{"
            others = (form.id.start, form.arguments.start, start, form.close, form.call.end, form.section.end)
            marks = [mark for mark in map(str.strip, others) if mark]
        name, mark = yield from reader.text_until(marks)
        yield from reader.word(form.name.end)
        if form.name_rest:
            _, mark = yield from reader.text_until([form.name_rest])
            reader.skip(len(form.name_rest))
        return name.strip() if mark is not None else None

    def _json_arguments(self) -> Parsing[bool]:
        """Return True if the arguments are whole."""
        reader = self._reader
        yield from reader.skip_space()
        if (yield from reader.peek()) == "{":
            return (yield from reader.json(self._writer.arguments))
        return (yield from self._is_at_end())

    def _is_at_end(self) -> Parsing[bool]:
        """Return True if the arguments end here: at a mark, or because the model ended its answer."""
        reader = self._reader
        for mark in self._ends:
            if (yield from reader.is_next(mark)):
                return True
        return not (yield from reader.peek()) and not reader.truncated

    def _tagged_arguments(self, form: Parameters, tool: FunctionTool) -> Parsing[bool]:
        """Return True if the arguments are whole."""
        reader, writer = self._reader, self._writer
        writer.arguments("{")
        separator = ""
        while (yield from reader.word(form.name.start)):
            key, mark = yield from reader.text_until([form.name.end.strip()])
            if mark is None:
                return False
            reader.skip(len(mark))
            key = key.strip().strip("\"'")
            writer.arguments(f"{separator}{json_of(key)}:")
            texts = tool.texts(key)
            if form.text_flag:
                flags, _ = yield from reader.text_until([form.flags_end])
                reader.skip(len(form.flags_end))
                texts = FREE if form.text_flag in flags else Texts()
            elif form.value.start.strip():
                yield from reader.word(form.value.start)
            if reader.is_undecided or not (yield from self._value(form, texts)):
                return False
            yield from reader.word(form.between)
            separator = ","
        is_whole = yield from self._is_at_end()
        writer.arguments("}" if is_whole else "")
        return is_whole

    def _value(self, form: Parameters, texts: Texts) -> Parsing[bool]:
        """Read a value. Return False if it is truncated."""
        reader, writer, is_text = self._reader, self._writer, texts.is_text
        end = form.value.end.strip()
        if form.quote.start and (yield from reader.word(form.quote.start)):
            return (yield from self._quoted(form, texts))
        if reader.is_undecided:
            return False
        inner = _UnframedValue(form, (lambda text: writer.arguments(escaped(text))) if is_text else None)
        if is_text:
            writer.arguments('"')
        mark = yield from reader.until([end], inner)
        if mark is None and reader.truncated:
            return False
        reader.skip(len(mark or ""))
        rest = inner.finish()
        writer.arguments('"' if is_text else _json_of(rest, texts))
        return True

    def _quoted(self, form: Parameters, texts: Texts) -> Parsing[bool]:
        reader, writer = self._reader, self._writer
        text, mark = yield from reader.text_until([form.quote.end])
        if mark is None and reader.truncated:
            return False
        reader.skip(len(mark or ""))
        yield from reader.word(form.value.end)
        writer.arguments(_json_of(text, texts))
        return True


def _json_of(text: str, texts: Texts) -> str:
    return json_of(text) if texts.is_text or text in texts.listed else as_json(text)


class _UnframedValue:
    """Remove the white space that the format puts around a value."""

    def __init__(self, form: Parameters, emit: Emit | None) -> None:
        """Without `emit` the value is only returned by `finish`."""
        blank = form.value.start[len(form.value.start.rstrip()) :] or form.name.end[len(form.name.end.rstrip()) :]
        self._before = blank
        self._behind = form.value.end[: len(form.value.end) - len(form.value.end.lstrip())]
        self._emit = emit
        self._begun = False
        self._withheld = ""

    def __call__(self, text: str) -> None:
        text = self._withheld + text
        if not self._begun:
            if len(text) < len(self._before) and self._before.startswith(text):
                self._withheld = text
                return
            text = text.removeprefix(self._before)
            self._begun = True
        keep = len(text) if self._emit is None else _overlap(text, self._behind)
        self._withheld = text[len(text) - keep :]
        if self._emit is not None and len(text) > keep:
            self._emit(text[: len(text) - keep])

    def finish(self) -> str:
        rest = self._withheld.removesuffix(self._behind)
        if self._emit is not None and rest and self._begun:
            self._emit(rest)
        return rest


def _overlap(text: str, ending: str) -> int:
    """Return the length of the longest suffix of `text` that `ending` begins with."""
    return next((n for n in range(min(len(text), len(ending)), 0, -1) if text.endswith(ending[:n])), 0)


def _name_in_id(said: str, prefix: str) -> tuple[str, str]:
    name = said.removeprefix(prefix)
    stem, colon, number = name.rpartition(":")
    return (stem if colon and number.isdigit() else name), said
