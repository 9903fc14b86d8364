"""What an attack is: requests or an action, the expected statuses, and the honest request that it is compared with."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .stage import Answer, Stage

CHAT = "chat"
"""The attacked model, unless an attack names another one."""
OTHER = "other"
"""The model of the neighbour stream of another model."""
AT_ONCE = 5
REFUSED = frozenset({400, 413, 422})
BUSY = frozenset({429, 503})
SERVED = frozenset({200})
NO_ANSWER = 0
"""The status of a connection that was closed without an answer."""

Action = Callable[[Stage], Awaitable[list[Answer]]]


@dataclass(frozen=True)
class Sent:
    """A request. `body` makes the bytes, so that large bodies exist only while they are used."""

    path: str
    body: Callable[[], bytes] = bytes
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)

    def to(self) -> Action:
        """Return the action that sends this request AT_ONCE times at the same time."""
        return lambda stage: stage.send_all([(self.method, self.path, dict(self.headers), self.body())], times=AT_ONCE)


@dataclass(frozen=True)
class Attack:
    name: str
    what: str
    action: Action | Sent
    statuses: frozenset[int] = REFUSED
    model: str = CHAT
    """The model of the neighbour stream of the same model."""
    honest: Sent | Action = field(default_factory=lambda: ordinary(CHAT))
    """An honest request with the same number of tokens."""
    options: tuple[str, ...] = ()
    """More options of the gateway."""
    environ: tuple[tuple[str, str], ...] = ()
    key: str = "a-key"
    """The gateway's API key; "" if it runs without keys."""
    prepare: Callable[[Stage], None] | None = None
    """Writes files before the gateway starts."""
    check: Callable[[Stage], str] | None = None
    """Looks at the gateway after the attack. Returns what is wrong."""
    may_be_refused: bool = False
    """The gateway may refuse to load the attacked model."""
    quick: bool = False
    """Takes a few seconds, also on a slow machine."""

    @property
    def run(self) -> Action:
        return self.action.to() if isinstance(self.action, Sent) else self.action


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def sent_json(path: str, make: Callable[[], Any], *, method: str = "POST") -> Sent:
    return Sent(path, lambda: encoded(make()), method)


def completion(model: str = CHAT, **fields: Callable[[], Any] | Any) -> Sent:
    """Return a completion of 16 tokens with these fields; a callable makes its value when the request is sent."""

    def body() -> dict[str, Any]:
        given = {name: value() if callable(value) else value for name, value in fields.items()}
        return {"model": model, "prompt": "Once upon a time", "n_predict": 16, **given}

    return sent_json("/completion", body)


def chat(model: str = CHAT, **fields: Callable[[], Any] | Any) -> Sent:
    def body() -> dict[str, Any]:
        given = {name: value() if callable(value) else value for name, value in fields.items()}
        return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, **given}

    return sent_json("/v1/chat/completions", body)


def ordinary(model: str) -> Sent:
    return completion(model)
