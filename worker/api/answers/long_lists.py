"""Encodes answers with many numbers, such as embeddings, without delaying other requests.

A long answer is made on another thread. One call of the encoder cannot be interrupted and blocks all threads, so lists
are encoded in parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

from aiohttp import web
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import json_response
from msgspec import Raw

OFF_LOOP_VALUES = 8192
"""An answer with more values is made on another thread: this takes over a millisecond."""


def encoded_list(items: Iterable[object], at_a_time: int = 1) -> Raw:
    """Return the items as a JSON array. `at_a_time`: the number of items that are encoded in one call."""
    rest, parts = iter(items), list[bytes]()
    while part := list(islice(rest, at_a_time)):
        parts.append(encode_json(part)[1:-1])
    return Raw(b"[" + b",".join(parts) + b"]")


async def long_response(n_values: int, make: Callable[[], object]) -> web.Response:
    """Return the response with the object that `make` returns; `n_values`: about how many values it has."""
    if n_values <= OFF_LOOP_VALUES:
        return json_response(make())
    return await asyncio.to_thread(lambda: json_response(make()))
