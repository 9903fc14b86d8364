"""Decompress the body of a request within limits. Pure; `request_body` calls it, for large bodies on a thread.

A few kilobytes can stand for gigabytes, so the result is limited in bytes, and in its ratio to what was sent.
"""

from __future__ import annotations

import zlib

from ..base.errors import InvalidRequest

ENCODINGS = ("gzip", "deflate", "br", "zstd")
"""The encodings that are known. The last two are refused: their libraries are not installed."""
MAX_RATIO = 200
"""Maximum bytes of the result for each byte that was sent. JSON with text has a ratio of 3 to 20."""
FREE_BYTES = 1 << 20
"""Bytes of the result up to which the ratio does not count, since short repetitive bodies have a high one."""
MAX_PARTS = 100
"""Maximum number of gzip files in one body. Programs that compress in parallel make several, all others one."""
_READ, _WRITTEN = 64 << 10, 256 << 10
"""Bytes of the body, and of the result, for one call of zlib. Between two calls the limits are checked."""


def inflate(body: bytes, encoding: str, most: int) -> bytes:
    """Return the decompressed body. `encoding`: one of ENCODINGS. `most`: maximum bytes of the result.

    Raise OverflowError for more bytes, and InvalidRequest for data in another format or with a higher ratio.
    """
    if encoding not in ("gzip", "deflate"):
        raise _unreadable(f"content-encoding: {encoding} is not supported: send gzip, deflate or no compression")
    allowed = max(FREE_BYTES, MAX_RATIO * len(body))
    wbits = _window(encoding, body)
    pieces, size, at, n_parts = [], 0, 0, 0
    while at < len(body):
        n_parts += 1
        if n_parts > MAX_PARTS or (n_parts > 1 and encoding != "gzip"):
            raise _unreadable(f"content-encoding: {encoding}: there are more than {n_parts - 1} compressed parts")
        decompressor = zlib.decompressobj(wbits)
        rest = b""
        while not decompressor.eof:
            if not rest:
                rest = body[at : at + _READ]
                at += len(rest)
            try:
                piece = decompressor.decompress(rest, _WRITTEN)
            except zlib.error:
                raise _wrong(encoding) from None
            if not rest and not piece and not decompressor.eof:
                raise _wrong(encoding)  # it is cut off
            rest = decompressor.unconsumed_tail
            size += len(piece)
            if size > most:
                raise OverflowError
            if size > allowed:
                reason = f"it has more than {MAX_RATIO} times the size that was sent ({len(body)} bytes)"
                raise _unreadable(f"content-encoding: {encoding}: {reason}")
            pieces.append(piece)
        at -= len(decompressor.unused_data)
    return b"".join(pieces)


def _window(encoding: str, body: bytes) -> int:
    """Return zlib's `wbits`. Some clients send `deflate` without the header that the standard requires."""
    if encoding == "gzip":
        return zlib.MAX_WBITS + 16
    return zlib.MAX_WBITS if body[:1] and body[0] & 15 == 8 else -zlib.MAX_WBITS


def _wrong(encoding: str) -> InvalidRequest:
    return _unreadable(f"Can not decode content-encoding: {encoding}")


def _unreadable(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the request body cannot be read: {reason}")
