"""Read calls with JSON-like arguments, unquoted keys and strings between marks: `call:f{a:<|"|>x<|"|>,n:3}`.

Used by `parser` when the text may contain a call. Arguments are emitted as JSON while the model writes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..formats.formats import NOTHING, DictCalls
from ..tools import FunctionTool
from .calls import CallsReader
from .deltas import DeltaWriter
from .reader import Parsing, TextReader, as_json, escaped, json_of


class DictCallsReader(CallsReader):
    def __init__(
        self, form: DictCalls, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
    ) -> None:
        super().__init__(form.call.start, NOTHING, tools, reader, writer)
        self._form = form

    def _call(self) -> Parsing[bool]:
        form, reader = self._form, self._reader
        if not (yield from reader.word(form.call.start)) or not (yield from reader.word(form.name)):
            return False
        name, mark = yield from reader.text_until(["{", form.call.end])
        name = name.strip()
        if mark is None or name not in self._tools:
            return False
        reader.unmark()
        self._writer.call(name)
        if mark != "{" or (yield from self._value()):
            self._writer.close_call()
        yield from reader.word(form.call.end)
        return True

    def _has_another_call(self) -> Parsing[bool]:
        return self._reader.is_next(self.mark)

    def _value(self) -> Parsing[bool]:
        """Read a value. Return False if it is truncated."""
        reader = self._reader
        yield from reader.skip_space()
        first = yield from reader.peek()
        if first == "{":
            return (yield from self._members("{", "}"))
        if first == "[":
            return (yield from self._members("[", "]"))
        if (yield from reader.literal(self._form.quote)):
            return (yield from self._text())
        if first == '"':
            return (yield from reader.json(self._writer.arguments))
        text, mark = yield from reader.text_until([",", "}", "]", self._form.call.end])
        if mark is None and reader.truncated:
            return False
        self._writer.arguments(as_json(text))
        return True

    def _text(self) -> Parsing[bool]:
        reader, writer = self._reader, self._writer
        writer.arguments('"')
        mark = yield from reader.until([self._form.quote], lambda text: writer.arguments(escaped(text)))
        if mark is None and reader.truncated:
            return False
        reader.skip(len(mark or ""))
        writer.arguments('"')
        return True

    def _members(self, opening: str, closing: str) -> Parsing[bool]:
        reader, writer = self._reader, self._writer
        reader.skip(1)
        writer.arguments(opening)
        separator = ""
        while True:
            yield from reader.skip_space()
            c = yield from reader.peek()
            if c == "" or c in "}]" or (yield from reader.is_next(self._form.call.end)):
                break
            if c == ",":
                reader.skip(1)
                continue
            writer.arguments(separator)
            if opening == "{" and not (yield from self._key()):
                return False
            if not (yield from self._value()):
                return False
            separator = ","
        if c == "" and reader.truncated:
            return False
        if c and c in "}]":
            reader.skip(1)
        writer.arguments(closing)
        return True

    def _key(self) -> Parsing[bool]:
        reader = self._reader
        if (yield from reader.literal(self._form.quote)):
            key, mark = yield from reader.text_until([self._form.quote])
            reader.skip(len(mark or ""))
        else:
            key = ""
        more, mark = yield from reader.text_until([":", ",", "}", self._form.call.end])
        if mark is None and reader.truncated:
            return False
        if mark == ":":
            reader.skip(1)
        self._writer.arguments(json_of((key + more).strip().strip('"')) + ":")
        return True
