"""Read calls in Python syntax: `[get_weather(city="Oslo", days=3)]`; `true`, `false` and `null` are allowed (LFM2).

Used by `parser` when the text may contain a call. Arguments are emitted when their call is complete.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ..formats.formats import PythonCalls
from ..tools import FunctionTool
from .calls import CallsReader
from .deltas import DeltaWriter
from .reader import Parsing, TextReader, json_of

_ESCAPED = {"\n": "\\n", "\r": "\\r"}
"""Models write line breaks inside quotes, which Python does not allow."""
_WORDS = {"true": True, "false": False, "null": None}


class PythonCallsReader(CallsReader):
    def __init__(
        self, form: PythonCalls, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
    ) -> None:
        super().__init__(form.section.start, form.section, tools, reader, writer)

    def _opens(self) -> Parsing[bool]:
        return (yield from super()._opens()) and (yield from self._reader.word("["))

    def _call(self) -> Parsing[bool]:
        reader = self._reader
        name, mark = yield from reader.text_until(["(", "]"])
        if mark != "(" or name.strip() not in self._tools:
            return False
        reader.unmark()
        self._writer.call(name.strip())
        text = yield from self._in_parentheses()
        if text is not None:
            self._writer.arguments(_arguments(text, self._tools[name.strip()]))
            self._writer.close_call()
        return text is not None

    def _has_another_call(self) -> Parsing[bool]:
        return self._reader.word(",")

    def _close(self) -> Parsing[None]:
        yield from self._reader.word("]")
        yield from super()._close()

    def _in_parentheses(self) -> Parsing[str | None]:
        """Read the text from `(` to the matching `)`. Return None if there is none."""
        reader = self._reader
        depth, quote, escaped = 0, "", False
        letters: list[str] = []
        while c := (yield from reader.peek()):
            reader.skip(1)
            letters.append(_ESCAPED.get(c, c) if quote else c)
            if escaped:
                escaped = False
            elif quote:
                quote, escaped = ("" if c == quote else quote), c == "\\"
            elif c in "\"'":
                quote = c
            elif c in "([{":
                depth += 1
            elif c in ")]}":
                depth -= 1
                if depth == 0:
                    return "".join(letters)
        return None


def _arguments(text: str, tool: FunctionTool) -> str:
    """Return the arguments in parentheses as a JSON object; the text as a JSON string if it is not valid Python."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        assert isinstance(call, ast.Call)
        values = {
            name: _value(word)
            for name, word in zip(tool.schemas().properties(tool.parameters), call.args, strict=False)
        }
        values |= {word.arg: _value(word.value) for word in call.keywords if word.arg}
        return json_of(values)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return json_of(text)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id) if id in _WORDS:
            return _WORDS[id]
        case ast.List(items) | ast.Tuple(items):
            return [_value(item) for item in items]
        case ast.Dict(keys, values):
            return {str(_value(key)): _value(value) for key, value in zip(keys, values, strict=True) if key}
    return ast.literal_eval(node)
