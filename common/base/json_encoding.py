"""JSON encoding for the whole program. Does not depend on a web server, so logs and command-line tools can use it."""

from __future__ import annotations

import msgspec


def encode_json(value: object) -> bytes:
    """Encode `value` as JSON. Lone surrogates become U+FFFD instead of an error; NaN and infinities become null."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_without_surrogates(value))


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
