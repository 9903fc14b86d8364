"""Read calls that are JSON objects which contain the function's name.

Used by `parser` when the text may contain a call. Arguments are emitted while the model writes them, as soon as the
function (and the id, if the format has one) is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..formats.formats import JsonCalls
from ..tools import FunctionTool
from .calls import CallsReader
from .deltas import DeltaWriter
from .reader import Parsing, TextReader

_ARGUMENT_KEYS = ("arguments", "parameters")
"""Models that are trained on one of these keys sometimes write the other."""


class JsonCallsReader(CallsReader):
    def __init__(
        self, form: JsonCalls, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
    ) -> None:
        begins = form.section.start.strip() or ("[" if form.array else form.call.start.strip())
        super().__init__(begins or "{", form.section, tools, reader, writer)
        self._form = form
        self._bare = not begins or begins == "["

    def _opens(self) -> Parsing[bool]:
        return (yield from super()._opens()) and (not self._form.array or (yield from self._reader.word("[")))

    def _has_another_call(self) -> Parsing[bool]:
        form, reader = self._form, self._reader
        yield from reader.word(form.call.end)
        if form.array:
            return (yield from reader.word(","))
        return (yield from reader.is_next(form.call.start.strip() or "{"))

    def _close(self) -> Parsing[None]:
        if self._form.array:
            yield from self._reader.word("]")
        yield from super()._close()

    def _call(self) -> Parsing[bool]:
        reader = self._reader
        if not (yield from reader.word(self._form.call.start)) or not (yield from reader.word("{")):
            return False
        call = _JsonCallParser(self._form, self._tools, reader, self._writer, self._bare)
        return call.finish(is_whole=(yield from call.members()))


class _JsonCallParser:
    """Parse one object that may be a call."""

    def __init__(
        self, form: JsonCalls, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter, strict: bool
    ) -> None:
        """`strict`: an unknown member means that the object is not a call."""
        self._form, self._tools, self._reader, self._writer, self._strict = form, tools, reader, writer, strict
        self._name = self._id = ""
        self._withheld = ""
        self._begun = False

    def members(self) -> Parsing[bool]:
        """Read up to the closing brace. Return False if the object is truncated or not a call."""
        reader = self._reader
        while not (yield from reader.word("}")):
            yield from reader.skip_space()
            if (yield from reader.peek()) != '"':
                return False
            key = yield from self._text()
            if key is None or not (yield from reader.word(":")):
                return False
            yield from reader.skip_space()
            if not (yield from self._member(key)):
                return False
            yield from reader.word(",")
        return True

    def finish(self, *, is_whole: bool) -> bool:
        """Emit what is still withheld. Return True if the object is a call. `is_whole`: its closing brace was read."""
        if not self._begun and self._name:
            self._begin()
        if self._begun and is_whole:
            self._writer.close_call()
        return self._begun

    def _member(self, key: str) -> Parsing[bool]:
        form = self._form
        if key == form.wrapper and form.wrapper:
            return (yield from self._reader.word("{")) and (yield from self.members())
        if key == form.id and form.id:
            return (yield from self._take_id())
        if not form.name:
            return self._named(key) and (yield from self._arguments())
        if key == form.name:
            name = yield from self._text()
            return name is not None and self._named(name)
        if key == form.arguments or key in _ARGUMENT_KEYS:
            return (yield from self._arguments())
        if self._strict and not self._begun and key not in ("type", "id"):
            return False
        return (yield from self._reader.json(lambda _: None))

    def _named(self, name: str) -> bool:
        if name not in self._tools or self._name:
            return False
        self._name = name
        self._begin_if_known()
        return True

    def _take_id(self) -> Parsing[bool]:
        parts: list[str] = []
        whole = yield from self._reader.json(parts.append)
        text = "".join(parts)
        self._id = _unquoted(text) or "" if text.startswith('"') else text
        self._begin_if_known()
        return whole

    def _begin_if_known(self) -> None:
        if self._name and (self._id or not self._form.id) and not self._begun:
            self._begin()

    def _begin(self) -> None:
        self._begun = True
        self._reader.unmark()
        self._writer.call(self._name, self._id)
        self._writer.arguments(self._withheld)
        self._withheld = ""

    def _arguments(self) -> Parsing[bool]:
        """Emit an object while it arrives. A string is taken as the JSON in it, a number or word as no arguments."""
        reader = self._reader
        if (yield from reader.peek()) in ("{", "["):
            return (yield from reader.json(self._emit_arguments))
        text = yield from self._text()
        self._emit_arguments(text or "")
        return text is not None or not reader.starved

    def _emit_arguments(self, text: str) -> None:
        if self._begun:
            self._writer.arguments(text)
        else:
            self._withheld += text

    def _text(self) -> Parsing[str | None]:
        """Read a JSON string. Return None if it is truncated or not a string."""
        parts: list[str] = []
        whole = yield from self._reader.json(parts.append)
        return _unquoted("".join(parts)) if whole else None


def _unquoted(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
