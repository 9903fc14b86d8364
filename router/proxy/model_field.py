"""Read from a body which model a request is for, and the few other fields that the router needs.

Pure; called by `proxy`. Bodies are large (images) and forwarded byte for byte, so only these fields are parsed.
"""

from __future__ import annotations

import re

import msgspec
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_values import check_members
from llama_corral.common.web.ollama import keep_alive_of
from llama_corral.common.web.request_body import NOT_JSON, malformed
from msgspec import Struct

from .form_fields import delimiter_of, fields_in_form

_TRUE = b"true"
_LARGE = 64 << 10
"""Bytes of JSON above which it is changed without building its members."""
_MODEL = b'"model"'
_MODEL_MEMBER = re.compile(rb'"model"\s*:\s*')
_FIRST_MEMBER = re.compile(rb'\s*\{\s*(")')
_EMPTY = (b"", b"null", b'""', b"[]")
_SHORT = 64
"""Bytes of a value that are compared with these. Values with images are long."""
MAX_NAME = 4 << 10
"""Maximum bytes of a model's name, as it is written in the body."""
MAX_DURATION = 64
"""Maximum bytes of `keep_alive` and `ttl`, as they are written in the body."""
_SHORT_FIELDS = ("model", "name", "keep_alive", "ttl")
_FORM_FIELDS = ("model", "keep_alive", "ttl", "stream")


class _Target(Struct):
    """Validates the whole body as JSON, but builds only these fields."""

    model: msgspec.Raw = msgspec.Raw()
    keep_alive: msgspec.Raw = msgspec.Raw()
    ttl: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()


class _OllamaTarget(Struct):
    model: msgspec.Raw = msgspec.Raw()
    name: msgspec.Raw = msgspec.Raw()
    keep_alive: msgspec.Raw = msgspec.Raw()
    ttl: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()


class Target(Struct, frozen=True):
    """What the router needs from a request in any dialect but Ollama's."""

    model: str = ""
    """Empty if the body names none."""
    keep_alive: float | None = None
    """Seconds; negative: forever."""
    streams: bool = False
    """True if the body asks for a stream."""


class OllamaTarget(Struct, frozen=True):
    model: str = ""
    keep_alive: float | None = None
    """As in Target."""
    only_unloads: bool = False
    """True if the request only asks to unload the model."""
    streams: bool = False
    """True if the body asks for a stream. Without the field, Ollama streams too, but that is not needed here."""


_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_model(body: bytes, name: str) -> bytes:
    """Return the JSON object with `model` set and every other value unchanged; unchanged if it is no object.

    Raises InvalidRequest, and BodyTooLarge for too many members if several are named `model`.
    """
    if not body or body.isspace():
        return body
    text = msgspec.json.encode(name)
    try:
        given = bytes(_target.decode(body).model)
        if len(body) > _LARGE and (changed := _spliced(body, given, text)):
            return changed
        check_members(body)
        return msgspec.json.encode({**_object.decode(body), "model": msgspec.Raw(text)})
    except msgspec.ValidationError:  # JSON, but not an object
        return body
    except NOT_JSON as error:
        raise malformed(error) from None


def _spliced(body: bytes, given: bytes, text: bytes) -> bytes:
    """Return a JSON object with the text of its `model` replaced, without building it; empty if it may have several."""
    n_named = body.count(_MODEL)
    if n_named == 0 and not given and (start := _FIRST_MEMBER.match(body)):
        return b"".join((body[: start.start(1)], _MODEL, b":", text, b",", body[start.start(1) :]))
    if n_named == 1 and given and (found := _MODEL_MEMBER.search(body)) and body.startswith(given, found.end()):
        return b"".join((body[: found.end()], text, body[found.end() + len(given) :]))
    return b""


def with_model_in_form(body: bytes, content_type: str, name: str) -> bytes:
    """Return the form with the field `model` set and every other part unchanged; unchanged if it has no parts.

    Raises InvalidRequest.
    """
    if span := fields_in_form(body, content_type, ("model",)).get("model"):
        return b"".join((body[: span[0]], name.encode(), body[span[1] :]))
    delimiter = delimiter_of(content_type)
    first = body.find(delimiter) if delimiter else -1
    if first < 0 or body.startswith(b"--", first + len(delimiter)):
        return body
    part = b'%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (delimiter, name.encode())
    return b"".join((body[:first], part, body[first:]))


_ollama_target = msgspec.json.Decoder(_OllamaTarget)
_target = msgspec.json.Decoder(_Target)
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
    return Target(_name(found.model), _keep_alive(found), memoryview(found.stream) == _TRUE)


def target_in_form(body: bytes, content_type: str) -> Target:
    """Return the fields of a form, at any position. Raises InvalidRequest if a field or the form is invalid."""
    texts = {}
    for field, (start, end) in fields_in_form(body, content_type, _FORM_FIELDS).items():
        _check_length(field, end - start)
        texts[field] = body[start : min(end, start + MAX_NAME)].decode("utf-8", "replace")
    given = {field: texts.get(field) or None for field in ("keep_alive", "ttl")}
    return Target(texts.get("model", ""), keep_alive_of(given), texts.get("stream") == "true")


def _check_length(field: str, n_bytes: int) -> None:
    """Raises InvalidRequest. Such a value is shown in errors and in the log, and compared with names of models."""
    most = MAX_NAME if field in ("model", "name") else MAX_DURATION
    if field in _SHORT_FIELDS and n_bytes > most:
        raise InvalidRequest(f"Field '{field}': expected at most {most} bytes, found {n_bytes}", field)


def _keep_alive(found: _Target | _OllamaTarget) -> float | None:
    """Return the seconds for which the model is to be kept; None if the body does not say. Raises InvalidRequest."""
    given = {name: raw for name, raw in (("keep_alive", found.keep_alive), ("ttl", found.ttl)) if memoryview(raw)}
    for name, raw in given.items():
        _check_length(name, len(memoryview(raw)))
    if not given:
        return None
    try:
        return keep_alive_of({name: msgspec.json.decode(raw) for name, raw in given.items()})
    except NOT_JSON as error:  # a number that is too large, or text that is not valid UTF-8
        raise malformed(error) from None


def _name(raw: msgspec.Raw, field: str = "model") -> str:
    if bytes(memoryview(raw)[:1]) != b'"':
        return ""
    _check_length(field, len(memoryview(raw)))
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
    name = _name(found.model) or _name(found.name, "name")
    return OllamaTarget(name, keep_alive, is_empty and keep_alive == 0, memoryview(found.stream) == _TRUE)


def _is_empty(raw: msgspec.Raw) -> bool:
    start = bytes(memoryview(raw)[:_SHORT])
    return (b"".join(start.split()) if start.startswith(b"[") else start) in _EMPTY
