"""Makes random requests from the valid ones: fields are set, removed, repeated, or replaced somewhere inside."""

from __future__ import annotations

import copy
import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from .schema import GETS, QUERIES, ROUTES
from .values import NOT_JSON, TEXTS, Pairs, Raw, Values, written

JSON = {"Content-Type": "application/json"}
SCHEMAS = {"json_schema", "schema", "parameters", "input_schema", "format"}


@dataclass(frozen=True)
class Wish:
    """A request. `body` is a value for `written`, so that a smaller one can be tried."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    packs: bool = False
    """The body is sent as gzip."""

    def data(self) -> bytes:
        data = b"" if self.body is None else written(self.body)
        return gzip.compress(data) if self.packs else data


def any_request(chance: random.Random, values: Values) -> Wish:
    pick = chance.random()
    if pick < 0.07:
        return _get(chance)
    if pick < 0.1:
        return _form(chance, values)
    route = chance.choice(ROUTES)
    body: Any = copy.deepcopy(chance.choice(route.bodies))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _change(chance, values, body)
    if chance.random() < 0.05:
        name = chance.choice(list(body) or ["model"])
        body = Pairs((*body.items(), (name, values.any())))
    elif chance.random() < 0.04:
        body = chance.choice((values.any(), Raw(_spoiled(chance, written(body)))))
    packs = chance.random() < 0.02
    headers = {**JSON, "Content-Encoding": "gzip"} if packs else dict(JSON)
    if chance.random() < 0.03:
        headers["X-Conversation-Id"] = quote(str(chance.choice(TEXTS)))
    if chance.random() < 0.05:
        headers["Content-Type"] = chance.choice(
            ("text/plain", "application/x-www-form-urlencoded", "a/b; charset=utf-16")
        )
    return Wish(route.method, route.path + _query(chance, 0.05), body, headers, packs)


def _change(chance: random.Random, values: Values, body: dict[str, Any]) -> None:
    pick = chance.random()
    if pick < 0.5 or not body:
        name, value = values.field()
        body[name] = value
        return
    places = list(_places(body))
    if chance.random() < 0.9:  # another model is rarely interesting
        places = [place for place in places if place[1] != "model"] or places
    holder, key = chance.choice(places)
    if key in SCHEMAS and pick < 0.75:
        holder[key] = values.schema()
    elif pick < 0.85:
        holder[key] = values.any()
    elif pick < 0.93:
        holder[key] = [holder[key]]
    elif isinstance(holder, dict):
        del holder[key]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place inside a value as its container and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:50]:
        yield value, key
        yield from _places(item)


def _spoiled(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return chance.choice((data[:at], data[:at] + chance.choice(NOT_JSON) + data[at:], data + data, b"\xff\xfe" + data))


def _get(chance: random.Random) -> Wish:
    path = chance.choice((*GETS, "/" + quote(str(chance.choice(TEXTS)), safe="")))
    return Wish(
        chance.choice(("GET", "GET", "GET", "DELETE", "OPTIONS", "PUT")), path + _query(chance, 0.8), headers={}
    )


def _query(chance: random.Random, share: float) -> str:
    if chance.random() > share:
        return ""
    given = [
        f"{chance.choice(QUERIES)}={quote(str(chance.choice(TEXTS)), safe='')}" for _ in range(chance.randrange(3))
    ]
    return "?" + "&".join(given)


def _form(chance: random.Random, values: Values) -> Wish:
    """Return a transcription as a form, which no model of the fuzzer can answer, with random parts."""
    parts = [("model", b"chat"), ("file", b"RIFF"), (values.name(), str(chance.choice(TEXTS)).encode())]
    chance.shuffle(parts)
    lines = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (quote(name).encode(), b'; filename="a.wav"' if name == "file" else b"", content)
        for name, content in parts
    )
    data = chance.choice((lines + b"--x--\r\n", lines, lines[: chance.randrange(len(lines))], b"--x" + lines, b""))
    return Wish("POST", "/v1/audio/transcriptions", Raw(data), {"Content-Type": "multipart/form-data; boundary=x"})


def smaller(wish: Wish) -> Iterator[Wish]:
    """Yield requests with one part less."""
    if not isinstance(wish.body, dict):
        return
    for place in range(len(list(_places(wish.body)))):
        body = copy.deepcopy(wish.body)
        holder, key = list(_places(body))[place]
        if key != "model":
            del holder[key]
            yield replace(wish, body=body)
