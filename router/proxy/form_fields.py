"""Find fields of a `multipart/form-data` body without copying its files. Pure; `model_field` calls it.

The body is searched once for all fields, and the number of its parts and the size of their heads are limited: each
head is parsed, which takes much longer than to search a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from email.message import Message
from email.parser import BytesHeaderParser

from llama_corral.common.base.errors import InvalidRequest

MAX_PARTS = 256
"""Maximum number of parts. A transcription has about ten."""
MAX_HEAD = 4 << 10
"""Maximum bytes of a part's head. It has the names of the field and of the file, in ASCII and in UTF-8."""
MAX_HEADS = 64 << 10
"""Maximum bytes of all heads."""
MAX_CONTENT_TYPE = 1 << 10
"""Maximum bytes of the request's content type; a boundary has at most 70."""
_WINDOW = 4 << 20
"""Bytes that one call searches, so that other threads run between two calls."""
_HEADERS = BytesHeaderParser()

Span = tuple[int, int]
"""Start and end offset in the body."""


def fields_in_form(body: bytes, content_type: str, wanted: Collection[str]) -> Mapping[str, Span]:
    """Return where the texts of the wanted fields are; of several parts with one name the first counts.

    Raise InvalidRequest if the form has more or longer parts than are allowed.
    """
    found: dict[str, Span] = {}
    known: set[object] = set()
    n_heads = 0
    for n_parts, (start, blank, end) in enumerate(_parts(body, delimiter_of(content_type)), 1):
        if n_parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")
        head = body[start : blank if blank >= 0 else end]
        n_heads += len(head)
        if n_heads > MAX_HEADS:
            raise InvalidRequest(f"the heads of the form's parts have more than {MAX_HEADS} bytes")
        name = _HEADERS.parsebytes(head.lstrip(b"\r\n")).get_param("name", header="Content-Disposition")
        if name in known:
            continue
        known.add(name)
        if isinstance(name, str) and name in wanted and blank >= 0:
            found[name] = (blank + 4, end)
    return found


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the start of each complete part, the end of its head (negative: it has no end), and its end.

    Raise InvalidRequest for a head that is too long.
    """
    start = _find(body, delimiter, 0) if delimiter else -1
    while start >= 0:
        start += len(delimiter)
        blank = body.find(b"\r\n\r\n", start, start + MAX_HEAD + 4)
        end = _find(body, b"\r\n" + delimiter, start)
        if end < 0:
            return
        if blank > end:
            blank = -1
        if (blank if blank >= 0 else end) - start > MAX_HEAD:
            raise InvalidRequest(f"the head of a part of the form has more than {MAX_HEAD} bytes")
        yield start, blank, end
        start = end + 2


def _find(body: bytes, what: bytes, start: int) -> int:
    while start < len(body):
        at = body.find(what, start, start + _WINDOW + len(what) - 1)
        if at >= 0:
            return at
        start += _WINDOW
    return -1


def delimiter_of(content_type: str) -> bytes:
    """Return what separates the parts of a form; empty if the content type does not say. Raise InvalidRequest."""
    if len(content_type) > MAX_CONTENT_TYPE:
        raise InvalidRequest(
            f"header 'Content-Type': expected at most {MAX_CONTENT_TYPE} characters, found {len(content_type)}"
        )
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    return b"--" + boundary.encode("utf-8", "surrogateescape") if isinstance(boundary, str) and boundary else b""
