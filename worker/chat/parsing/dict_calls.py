"""Reading calls whose arguments are like JSON with bare keys and texts between marks: `call:f{a:<|"|>x<|"|>,n:3}`.

Used by `parser` once the text is where calls may begin. Arguments go out as JSON while the model writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..formats.formats import DictCalls
from ..tools import Tool
from .reader import Parsing, Reader
from .tagged_calls import as_json

if TYPE_CHECKING:
    from .parser import Writer


class DictCallsReader:
    def __init__(self, form: DictCalls, tools: Mapping[str, Tool], reader: Reader, writer: Writer) -> None:
        self._form, self._tools, self._reader, self._writer = form, tools, reader, writer
        self.mark = form.call.start
        """What calls begin with."""

    def read(self) -> Parsing[bool]:
        """Whether there was a call; if not, nothing is read."""
        reader = self._reader
        n_before = self._writer.n_calls
        while (yield from self._call()) and (yield from reader.comes(self.mark)):
            reader.keep()
        reader.back()
        return self._writer.n_calls > n_before

    def _call(self) -> Parsing[bool]:
        form, reader = self._form, self._reader
        if not (yield from reader.word(form.call.start)) or not (yield from reader.word(form.name)):
            return False
        name, mark = yield from reader.taken_until(["{", form.call.end])
        name = name.strip()
        if mark is None or name not in self._tools:
            return False
        reader.release()
        self._writer.call(name)
        if mark == "{":
            yield from self._value()
        else:
            self._writer.arguments("{}")
        yield from reader.word(form.call.end)
        return True

    def _value(self) -> Parsing[bool]:
        """False: it broke off."""
        reader = self._reader
        yield from reader.space()
        first = yield from reader.peek()
        if first == "{":
            return (yield from self._members("{", "}"))
        if first == "[":
            return (yield from self._members("[", "]"))
        if (yield from reader.literal(self._form.quote)):
            return (yield from self._text())
        if first == '"':
            return (yield from reader.json(self._writer.arguments))
        text, mark = yield from reader.taken_until([",", "}", "]", self._form.call.end])
        if mark is None and reader.truncated:
            return False
        self._writer.arguments(as_json(text))
        return True

    def _text(self) -> Parsing[bool]:
        reader, writer = self._reader, self._writer
        writer.arguments('"')
        mark = yield from reader.until([self._form.quote], lambda text: writer.arguments(_escaped(text)))
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
            yield from reader.space()
            c = yield from reader.peek()
            if c == "" or c in "}]" or (yield from reader.comes(self._form.call.end)):
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
            key, mark = yield from reader.taken_until([self._form.quote])
            reader.skip(len(mark or ""))
        else:
            key = ""
        more, mark = yield from reader.taken_until([":", ",", "}", self._form.call.end])
        if mark is None and reader.truncated:
            return False
        if mark == ":":
            reader.skip(1)
        self._writer.arguments(json.dumps((key + more).strip().strip('"'), ensure_ascii=False) + ":")
        return True


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
