"""Replace the model's name in the answers of an external program, which may know its model by another name.

Pure; called by `proxy`. Handles whole JSON answers, server-sent events and JSON lines; all other values are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from llama_corral.common.web.application import EVENT_STREAM_TYPE, LINES_TYPE
from llama_corral.common.web.request_body import NOT_JSON

from .connection import Header

JSON = "application/json"
LONGEST_LINE = 1 << 24
"""Bytes; a longer line of a stream is passed on unchanged, so that the router's memory is bounded."""
_MODEL = b'"model"'
_DATA = b"data:"
_INNER = ("response", "message")
"""Objects that contain the name in events: of OpenAI's responses and of Anthropic's messages."""

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def content_type_of(headers: Iterable[Header]) -> str:
    """Return the lower-case content type without parameters; empty: there is none, or the body is compressed."""
    found = {name.lower(): value for name, value in headers}
    if found.get(b"content-encoding", b"identity") != b"identity":
        return ""
    return found.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")


def with_answered_model(answer: bytes, name: str) -> bytes:
    """Return a JSON object with its `model` replaced, at the top and in `response` or `message`; else `answer`."""
    if _MODEL not in answer:
        return answer
    try:
        fields = _object.decode(answer)
    except NOT_JSON:
        return answer
    changed = {key: with_answered_model(bytes(fields[key]), name) for key in _INNER if key in fields}
    if bytes(fields.get("model", b"")).startswith(b'"'):
        changed["model"] = msgspec.json.encode(name)
    changed = {key: value for key, value in changed.items() if value != bytes(fields[key])}
    return msgspec.json.encode({**fields, **{key: msgspec.Raw(changed[key]) for key in changed}}) if changed else answer


class AnswerRenamer:
    """Replaces the name in one answer: in a stream line by line, where a line is passed on when it is complete."""

    def __init__(self, name: str, content_type: str) -> None:
        """`content_type`: of the answer; other types than JSON, events and JSON lines are passed on unchanged."""
        self.needs_whole = content_type == JSON
        """True if `whole` must be used, because the answer is a single object."""
        self._name = name
        self._prefix = {EVENT_STREAM_TYPE: _DATA, LINES_TYPE: b"", "application/jsonl": b""}.get(content_type)
        self._held: list[bytes] = []
        """The chunks of the incomplete last line."""
        self._held_size = 0

    def whole(self, answer: bytes) -> bytes:
        """Return a complete answer with the name replaced."""
        return with_answered_model(answer, self._name) if self.needs_whole else self.feed(answer) + self.end()

    def feed(self, chunk: bytes) -> bytes:
        """Return what may be sent now; may be empty."""
        if self._prefix is None:
            return chunk
        complete, newline, rest = chunk.rpartition(b"\n")
        done = self._take(complete) + newline if newline else b""
        self._held.append(rest)
        self._held_size += len(rest)
        if self._held_size > LONGEST_LINE:
            self._prefix = None
            done += self.end()
        return done

    def end(self) -> bytes:
        """Return the incomplete last line."""
        return self._take(b"")

    def _take(self, more: bytes) -> bytes:
        """Return the held chunks and `more`, which complete the last line; afterwards none is held."""
        text = b"".join([*self._held, more])
        self._held, self._held_size = [], 0
        prefix = self._prefix
        return text if prefix is None else b"\n".join([self._line(line, prefix) for line in text.split(b"\n")])

    def _line(self, line: bytes, prefix: bytes) -> bytes:
        if _MODEL not in line or not line.startswith(prefix):
            return line
        ending = b"\r" if line.endswith(b"\r") else b""
        renamed = with_answered_model(line[len(prefix) :].strip(), self._name)
        return prefix + (b" " if prefix else b"") + renamed + ending
