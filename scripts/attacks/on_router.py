"""Attacks on the router's event loop: multipart bodies, its own JSON routes, and state that grows with clients."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import Callable
from contextlib import closing

import psutil

from .attack import AT_ONCE, BUSY, NO_ANSWER, REFUSED, SERVED, Attack, Sent, encoded, sent_json
from .stage import Answer, Stage

FORM = (("Content-Type", "multipart/form-data; boundary=x"),)
TRANSCRIBE = "/v1/audio/transcriptions"
JSON = ("Content-Type", "application/json")
OWN_ROUTES = {
    "load": "/models/load",
    "unload": "/models/unload",
    "download": "/models",
    "show": "/api/show",
    "pull": "/api/pull",
    "lookup": "/v1/streams/lookup",
}
PULLS = 80
FEW_PROCESSES = 12
"""The router, the zygote, two models and their helpers, two downloads at a time."""
TOO_MANY = -2
"""Stands for a status, if more than FEW_PROCESSES run."""
STARTING_S = 2.0
MANY = 1500


def form(make: Callable[[], bytes]) -> Sent:
    return Sent(TRANSCRIBE, make, headers=FORM)


def part(head: bytes, content: bytes = b"") -> bytes:
    return b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def list_body(megabytes: int) -> bytes:
    """Return JSON for the router's own routes with millions of small objects that it does not need."""
    return b'{"model":"nope","filler":[' + b"{}," * (megabytes * (1 << 20) // 3) + b"{}]}"


def inflated(megabytes: int) -> bytes:
    return gzip.compress(b'{"model":"nope","filler":[' + b"[]," * (megabytes * (1 << 20) // 3) + b"[]]}", 9)


async def conversations(stage: Stage) -> list[Answer]:
    """Start many conversations with names of 8,000 letters each, then look all of them up."""
    body = encoded({"model": "chat", "prompt": "Hi", "n_predict": 1, "stream": True})
    answers = []
    for start in range(0, MANY, 50):
        named = [
            ("POST", "/completion", {**dict([JSON]), "X-Conversation-Id": f"{number:06}" + "n" * 7000}, body)
            for number in range(start, min(start + 50, MANY))
        ]
        answers += await stage.send_all(named)
    names = encoded({"conversation_ids": [f"{number:06}" + "n" * 7000 for number in range(MANY)]})
    return answers + await stage.send_all([("POST", OWN_ROUTES["lookup"], dict([JSON]), names)], times=AT_ONCE)


async def many_lookups(stage: Stage) -> list[Answer]:
    """Look up 200,000 names while there are a few hundred conversations."""
    body = encoded({"model": "chat", "prompt": "Hi", "n_predict": 1, "stream": True})
    started = [
        ("POST", "/completion", {**dict([JSON]), "X-Conversation-Id": f"c{number}"}, body) for number in range(300)
    ]
    answers = []
    for start in range(0, 300, 50):
        answers += await stage.send_all(started[start : start + 50])
    names = encoded({"conversation_ids": [f"x{number}" for number in range(200_000)]})
    return answers + await stage.send_all([("POST", OWN_ROUTES["lookup"], dict([JSON]), names)], times=AT_ONCE)


async def pulls(stage: Stage) -> list[Answer]:
    """Download many repositories from a hub that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", int(dict(stage.environ)["ATTACK_HUB_PORT"])), backlog=200)):
        requests = [
            ("POST", "/models", dict([JSON]), encoded({"model": f"someone/model-{number}:Q4_0"}))
            for number in range(PULLS)
        ]
        answers = await stage.send_all(requests)
        await asyncio.sleep(STARTING_S)
        alive = sum(process.status() != psutil.STATUS_ZOMBIE for process in stage.family())
        if alive > FEW_PROCESSES:
            answers.append(Answer(TOO_MANY, f"{alive} processes"))
        return answers


def hub_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


HUB = hub_port()

ATTACKS = (
    Attack(
        "multipart-boundaries", "a form of 400,000 boundaries (2 MB)", form(lambda: b"--x\r\n" * 400_000), quick=True
    ),
    Attack(
        "multipart-head", "a form whose first part has a head of 10 MB", form(lambda: b"--x\r\n" + b"a" * (10 << 20))
    ),
    Attack(
        "multipart-header-lines",
        "a part with 500,000 header lines",
        form(lambda: part(b"a:b\r\n" * 500_000 + b"c: d")),
    ),
    Attack(
        "multipart-parts",
        "a form of 50,000 small parts, without a model",
        form(
            lambda: (
                b"".join(part(b'Content-Disposition: form-data; name="f%d"' % n, b"v") for n in range(50_000))
                + b"--x--"
            )
        ),
    ),
    Attack(
        "multipart-name",
        "a part whose name has 5 MB",
        form(lambda: part(b'Content-Disposition: form-data; name="' + b"n" * (5 << 20) + b'"', b"v") + b"--x--"),
    ),
    Attack(
        "multipart-no-boundary",
        "a form of 10 MB in which almost every byte begins a boundary",
        Sent(
            TRANSCRIBE,
            lambda: b"\r\n-" * (10 * (1 << 20) // 3),
            headers=(("Content-Type", "multipart/form-data; boundary=" + "-" * 60),),
        ),
    ),
    *(
        Attack(
            f"own-json-{name}",
            f"15 MB of small objects to {path}",
            Sent(path, lambda: list_body(15)),
            statuses=REFUSED | {404, *(SERVED if name == "lookup" else ())},
            quick=name == "load",
        )
        for name, path in OWN_ROUTES.items()
    ),
    Attack(
        "own-gzip",
        "61 KB of gzip to /models/load that are 60 MB of JSON",
        Sent("/models/load", lambda: inflated(60), headers=(JSON, ("Content-Encoding", "gzip"))),
        statuses=REFUSED | {404, 415},
    ),
    Attack(
        "own-deflate",
        "the same with deflate, to /api/show",
        Sent(
            "/api/show",
            lambda: zlib.compress(b'{"model":"nope","x":[' + b"[]," * (20 << 20) + b"[]]}", 9),
            headers=(JSON, ("Content-Encoding", "deflate")),
        ),
        statuses=REFUSED | {404, 415},
    ),
    Attack(
        "model-gzip",
        "gzip that is 300 MB of JSON, to a model",
        Sent(
            "/completion",
            lambda: gzip.compress(b'{"model":"chat","prompt":"' + b"a" * (300 << 20) + b'"}', 6),
            headers=(JSON, ("Content-Encoding", "gzip")),
        ),
        statuses=REFUSED | {415},
    ),
    Attack(
        "deep-json",
        "a body with a million nested arrays, to a model",
        Sent("/completion", lambda: b'{"model":"chat","prompt":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
        quick=True,
    ),
    Attack(
        "many-keys",
        "a body with a million keys, to a model",
        sent_json("/completion", lambda: {"model": "nope", **{f"k{n}": n for n in range(1_000_000)}}),
        statuses=REFUSED | {404},
    ),
    Attack(
        "model-name",
        "a model's name of 8 MB",
        sent_json("/completion", lambda: {"model": "n" * (8 << 20), "prompt": "Hi"}),
        statuses=REFUSED | {404},
    ),
    Attack("conversations", f"{MANY} conversations with long names", conversations, statuses=SERVED | REFUSED | BUSY),
    Attack("lookups", "lookups of 200,000 conversations", many_lookups, statuses=SERVED | REFUSED | BUSY),
    Attack(
        "pulls",
        f"{PULLS} downloads from a hub that never answers",
        pulls,
        statuses=SERVED | BUSY,
        environ=(("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", f"http://127.0.0.1:{HUB}"), ("ATTACK_HUB_PORT", HUB)),
    ),
    Attack(
        "query",
        "a query of 900 fields",
        Sent("/props?" + "&".join(f"a{n}=" for n in range(900)), method="GET", headers=()),
        statuses=SERVED | REFUSED | {414},
        quick=True,
    ),
    Attack(
        "long-target",
        "a request target of 60 KB",
        Sent("/models/" + "a" * 60_000, method="GET", headers=()),
        statuses=REFUSED | {404, 414, 431, NO_ANSWER},
        quick=True,
    ),
)
