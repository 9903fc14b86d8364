"""Read from a body which model a request is for, and the few other fields that the router needs.

Pure; called by `proxy`. Bodies are large (images) and forwarded byte for byte, so only these fields are parsed.
"""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser

import msgspec
from llama_corral.common.web.application import NOT_JSON, malformed
from llama_corral.common.web.ollama import keep_alive_of
from msgspec import Struct

_EMPTY = (b"", b"null", b'""', b"[]")
_SHORT = 64
"""Bytes of a value that are compared with these. Values with images are long."""
_HEADERS = BytesHeaderParser()


class _Target(Struct):
    """Validates the whole body as JSON, but builds only these fields."""

    model: msgspec.Raw = msgspec.Raw()
    keep_alive: msgspec.Raw = msgspec.Raw()
    ttl: msgspec.Raw = msgspec.Raw()


class _OllamaTarget(Struct):
    model: msgspec.Raw = msgspec.Raw()
    name: msgspec.Raw = msgspec.Raw()
    keep_alive: msgspec.Raw = msgspec.Raw()
    ttl: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


class Target(Struct, frozen=True):
    """What the router needs from a request in any dialect but Ollama's."""

    model: str = ""
    """Empty if the body names none."""
    keep_alive: float | None = None
    """Seconds; negative: forever."""


class OllamaTarget(Struct, frozen=True):
    model: str = ""
    keep_alive: float | None = None
    """As in Target."""
    only_unloads: bool = False
    """True if the request only asks to unload the model."""


_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_model(body: bytes, name: str) -> bytes:
    """Return the JSON object with `model` set and every other value unchanged; unchanged if it is no object.

    Raises InvalidRequest.
    """
    if not body or body.isspace():
        return body
    try:
        fields = _object.decode(body)
    except msgspec.ValidationError:  # JSON, but not an object
        return body
    except NOT_JSON as error:
        raise malformed(error) from None
    return msgspec.json.encode({**fields, "model": name})


def with_model_in_form(body: bytes, content_type: str, name: str) -> bytes:
    """Return the form with the field `model` set and every other part unchanged; unchanged if it has no parts."""
    if span := _part_in_form(body, content_type, "model"):
        return body[: span[0]] + name.encode() + body[span[1] :]
    delimiter = _delimiter(content_type)
    first = body.find(delimiter) if delimiter else -1
    if first < 0 or body.startswith(b"--", first + len(delimiter)):
        return body
    part = b'%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (delimiter, name.encode())
    return body[:first] + part + body[first:]


class _Streaming(Struct):
    stream: bool = False


_ollama_target = msgspec.json.Decoder(_OllamaTarget)
_target = msgspec.json.Decoder(_Target)
_streaming = msgspec.json.Decoder(_Streaming)
_text = msgspec.json.Decoder(str)


def target_in_json(body: bytes) -> Target:
    """Return the fields of a JSON object; without a model if it is not a string, or the body is empty or no object.

    Raises InvalidRequest if the body is not JSON, or a field is invalid.
    """
    if not body or body.isspace():
        return Target()
    try:
        found = _target.decode(body)
    except msgspec.ValidationError:  # JSON, but not an object
        return Target()
    except NOT_JSON as error:
        raise malformed(error) from None
    return Target(_name(found.model), _keep_alive(found))


def target_in_form(body: bytes, content_type: str) -> Target:
    """Return the fields of a form, at any position. Raises InvalidRequest if a field is invalid."""
    given = {name: _text_in_form(body, content_type, name) or None for name in ("keep_alive", "ttl")}
    return Target(_text_in_form(body, content_type, "model"), keep_alive_of(given))


def _keep_alive(found: _Target | _OllamaTarget) -> float | None:
    """Return the seconds for which the model is to be kept; None if the body does not say. Raises InvalidRequest."""
    given = {name: raw for name, raw in (("keep_alive", found.keep_alive), ("ttl", found.ttl)) if bytes(raw)}
    if not given:
        return None
    try:
        return keep_alive_of({name: msgspec.json.decode(raw) for name, raw in given.items()})
    except NOT_JSON as error:  # a number that is too large, or text that is not valid UTF-8
        raise malformed(error) from None


def _name(raw: msgspec.Raw) -> str:
    if not bytes(raw).startswith(b'"'):
        return ""
    try:
        return _text.decode(raw)
    except NOT_JSON as error:  # broken UTF-8 or a lone surrogate inside the name
        raise malformed(error) from None


def ollama_in_json(body: bytes) -> OllamaTarget:
    """Return the fields that the router needs from a request in Ollama's dialect. Raises InvalidRequest."""
    if not body or body.isspace():
        return OllamaTarget()
    try:
        found = _ollama_target.decode(body)
    except msgspec.ValidationError:  # JSON, but not an object
        return OllamaTarget()
    except NOT_JSON as error:
        raise malformed(error) from None
    keep_alive = _keep_alive(found)
    is_empty = all(_is_empty(raw) for raw in (found.prompt, found.messages, found.input))
    return OllamaTarget(_name(found.model) or _name(found.name), keep_alive, is_empty and keep_alive == 0)


def _is_empty(raw: msgspec.Raw) -> bool:
    start = bytes(raw)[:_SHORT]
    return (b"".join(start.split()) if start.startswith(b"[") else start) in _EMPTY


def streams_in_json(body: bytes) -> bool:
    """Return True if a JSON object requests a stream."""
    try:
        return _streaming.decode(body).stream
    except msgspec.DecodeError:
        return False


def streams_in_form(body: bytes, content_type: str) -> bool:
    return _text_in_form(body, content_type, "stream") == "true"


def _text_in_form(body: bytes, content_type: str, wanted: str) -> str:
    span = _part_in_form(body, content_type, wanted)
    return body[span[0] : span[1]].decode("utf-8", "replace") if span else ""


def _part_in_form(body: bytes, content_type: str, wanted: str) -> tuple[int, int] | None:
    """Return the start and end offset of the field's text in the body, or None."""
    delimiter = _delimiter(content_type)
    if not delimiter:
        return None
    start = body.find(delimiter)
    while start >= 0:
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            break
        blank = body.find(b"\r\n\r\n", start, end)  # a part may be a file of any size: only its head is copied
        head = body[start + len(delimiter) : blank if blank >= 0 else end]
        fields = _HEADERS.parsebytes(head.lstrip(b"\r\n"))
        if fields.get_param("name", header="Content-Disposition") == wanted:
            return (blank + 4, end) if blank >= 0 else None
        start = end + 2
    return None


def _delimiter(content_type: str) -> bytes:
    """Return what separates the parts of a form; empty if the content type does not say."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    return b"--" + boundary.encode("utf-8", "surrogateescape") if isinstance(boundary, str) and boundary else b""
