"""Decodes files that are contained in a request, as plain base64 or as `data:` URLs. Pure.

The error messages for `data:` URLs are those of llama-server.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from llama_corral.common.base.errors import InvalidRequest

_KINDS = ("image/", "audio/", "video/")
_BLANKS = re.compile(rb"[ \t\r\n\f\v]+")


def decode_base64(text: str | bytes) -> bytes:
    """Decode base64; whitespace and missing padding are accepted. Raises InvalidRequest if invalid or empty."""
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    try:
        decoded = binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        data = _BLANKS.sub(b"", data).rstrip(b"=")
        try:
            decoded = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error:
            raise InvalidRequest("Invalid base64 value") from None
    if not decoded:
        raise InvalidRequest("Invalid base64 value: it is empty")
    return decoded


def is_data_url(address: str) -> bool:
    return address[:5].lower() == "data:"


def decode_data_url(url: str) -> bytes:
    """Decode `data:<image|audio|video>/<type>[;parameters];base64,<data>`; the data may be percent-encoded."""
    head, comma, data = url[5:].partition(",")
    if not comma or "," in data:
        raise InvalidRequest("Invalid uri-encoded base64 value")
    kind, *parameters = (part.strip().lower() for part in head.split(";"))
    if not kind.startswith(_KINDS):
        raise InvalidRequest(f"Invalid uri format: data:{head[:100]}")
    if "base64" not in parameters:
        raise InvalidRequest("uri must be base64 encoded")
    return decode_base64(unquote_to_bytes(data) if "%" in data else data)
