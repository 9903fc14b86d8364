"""Read calls whose arguments are XML-like elements, nested like the values: `<a>x</a><list><item>1</item></list>`.

Used by `parser` when the text may contain a call. A string is emitted while it arrives, any other argument when it is
complete, as JSON by the tool's schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..argument_schemas import ArgumentSchemas
from ..formats.formats import ElementCalls
from ..tools import FunctionTool
from .calls import CallsReader
from .deltas import DeltaWriter
from .reader import Parsing, TextReader, as_json, escaped, json_of


class ElementCallsReader(CallsReader):
    def __init__(
        self, form: ElementCalls, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
    ) -> None:
        super().__init__(form.section.start, form.section, tools, reader, writer)
        self._form = form

    def _call(self) -> Parsing[bool]:
        form, reader, writer = self._form, self._reader, self._writer
        if not (yield from reader.word(form.name.start)):
            return False
        name, mark = yield from reader.text_until([form.name.end])
        tool = self._tools.get(name)
        if mark is None or tool is None:
            return False
        reader.skip(len(mark))
        reader.unmark()
        writer.call(name)
        writer.arguments("{")
        separator = ""
        while not (is_whole := (yield from reader.word(form.call.end))) and (yield from reader.word(f"{form.space}<")):
            key, mark = yield from reader.text_until([">"])
            if mark is None:
                return True
            reader.skip(1)
            writer.arguments(f"{separator}{json_of(key)}:")
            if not (yield from self._argument(key, tool)):
                return True
            separator = ","
        if is_whole or (not (yield from reader.peek()) and not reader.truncated):
            writer.arguments("}")
            writer.close_call()
        return True

    def _has_another_call(self) -> Parsing[bool]:
        return self._reader.is_next(self._form.name.start)

    def _argument(self, key: str, tool: FunctionTool) -> Parsing[bool]:
        """Read an argument. Return False if it is truncated."""
        reader, writer, space = self._reader, self._writer, self._form.space
        end = f"{space}</{key}>"
        schemas = tool.schemas()
        schema = schemas.properties(tool.parameters).get(key, {})
        is_nested = (yield from reader.is_next(f"{space}<")) and not (yield from reader.is_next(f"{space}</"))
        if schemas.texts(schema).is_text and not is_nested:
            writer.arguments('"')
            mark = yield from reader.until([end], lambda text: writer.arguments(escaped(text)))
            writer.arguments('"' if mark or not reader.truncated else "")
        else:
            text, mark = yield from self._inner(key)
            if mark or not reader.truncated:
                writer.arguments(json_of(value_of(text, schemas, schema, space)))
        reader.skip(len(mark or ""))
        return mark is not None or not reader.truncated

    def _inner(self, key: str) -> Parsing[tuple[str, str | None]]:
        """Read up to the element's end tag; nested elements of the same name are skipped."""
        start, end = f"{self._form.space}<{key}>", f"{self._form.space}</{key}>"
        text, depth = "", 0
        while True:
            more, mark = yield from self._reader.text_until([start, end])
            text += more
            if mark is None or (mark == end and depth == 0):
                return text, mark
            depth += 1 if mark == start else -1
            text += mark
            self._reader.skip(len(mark))


def value_of(text: str, schemas: ArgumentSchemas, schema: Any, space: str) -> Any:
    """Convert an element's text to a JSON value. `space`: the prefix of tags."""
    elements, whole = _elements(text, space), schemas.opened(schema)
    kind = whole.get("type")
    if elements and kind != "object" and all(name == "item" for name, _ in elements):
        return [value_of(inner, schemas, whole.get("items", {}), space) for _, inner in elements]
    if elements:
        known = schemas.properties(whole)
        return {name: value_of(inner, schemas, known.get(name, {}), space) for name, inner in elements}
    if not text.strip() and kind in ("array", "object"):
        return [] if kind == "array" else {}
    texts = schemas.texts(whole)
    return text if texts.is_text or text in texts.listed else json.loads(as_json(text))


def _elements(text: str, space: str) -> list[tuple[str, str]]:
    """Return name and inner text of each element; an empty list if the text is not a sequence of elements."""
    found: list[tuple[str, str]] = []
    rest = text.strip()
    while rest:
        name, close, rest = rest.removeprefix(f"{space}<").partition(">")
        if not close or not text.lstrip().startswith(f"{space}<"):
            return []
        start, end = f"{space}<{name}>", f"{space}</{name}>"
        at, depth = 0, 1
        while depth:
            nearest = rest.find(end, at)
            if nearest < 0:
                return []
            opened = rest.find(start, at, nearest)
            depth += 1 if opened >= 0 else -1
            at = opened + len(start) if opened >= 0 else nearest + len(end)
        found.append((name, rest[: at - len(end)]))
        rest = rest[at:].lstrip()
        if rest and not rest.startswith(f"{space}<"):
            return []
    return found
