"""Attacks with connections: idle and half-open ones, bodies without a key, targets that would change the log."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress

from .attack import NO_ANSWER, REFUSED, SERVED, Attack
from .stage import Answer, Stage

IDLE = 1100
SOFT_LIMIT = 1024
SOON_S = 5.0
KEYLESS_S = 2.0
SLOW_S = 40.0
"""Longer than the time that a client has for the head of its first request."""


async def idle(stage: Stage, first: bytes = b"") -> list[Answer]:
    """Open many connections, each with the first bytes of a request, and ask for /health with a new one."""
    writers: list[asyncio.StreamWriter] = []

    async def opened() -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(10):
                _, writer = await asyncio.open_connection("127.0.0.1", stage.port)
            writers.append(writer)
            writer.write(first)

    try:
        for _ in range(0, IDLE, 50):
            await asyncio.gather(*(opened() for _ in range(50)))
        await asyncio.sleep(0.5)
        return [await stage.raw(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", seconds=SOON_S)]
    finally:
        for writer in writers:
            writer.close()


async def half_open(stage: Stage) -> list[Answer]:
    return await idle(stage, b"POST /completion HTTP/1.1\r\nHost: a\r\nX-A: ")


async def slow_heads(stage: Stage) -> list[Answer]:
    """Send a head that never ends: the server must answer or close within SLOW_S."""
    heads = [stage.raw(b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: ", seconds=SLOW_S) for _ in range(5)]
    return list(await asyncio.gather(*heads))


async def half_closed(stage: Stage) -> list[Answer]:
    """Send a complete request and end the sending direction: the answer must come all the same."""
    body = b'{"model":"chat","prompt":"Hi","n_predict":4}'
    head = f"POST /completion HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {stage.key}\r\n".encode()
    complete = head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    get = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    sent = [stage.raw(data, end_writing=True, seconds=SOON_S) for data in (complete, get) * 5]
    return list(await asyncio.gather(*sent))


async def keyless_bodies(stage: Stage) -> list[Answer]:
    """Send heads without a valid key whose bodies never come: the answer must not wait for them."""
    answers = []
    for path in (
        "/completion",
        "/models/load",
        "/api/chat",
        "/v1/audio/transcriptions",
        "/tools",
        "/v1/streams/lookup",
    ):
        for key in (b"", b"Authorization: Bearer wrong\r\n"):
            for size in (b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
                head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" % path.encode()
                answers.append(stage.raw(head + key + size, seconds=KEYLESS_S))
    return list(await asyncio.gather(*answers))


async def strange_targets(stage: Stage) -> list[Answer]:
    """Ask for paths with line ends, escape sequences and bytes that are not UTF-8, with and without a key."""
    targets: tuple[bytes, ...] = (
        b"/a%0aFAKE%1b[31m",
        b"/a%0d%0aFAKE%0d",
        b"/models/%1b]0;FAKE%07",
        b"/a%c2%85FAKE%e2%80%a8x",
        b"/%ff%fe%00",
    )
    targets += (b"/props?model=%0aFAKE%1b[31m", b"/v1/models/%0aFAKE")
    keys = (b"", b"Authorization: Bearer %s\r\n" % stage.key.encode(), b"Authorization: Bearer \x1b[31mFAKE\r\n")
    requests = [
        b"GET %s HTTP/1.1\r\nHost: a\r\nUser-Agent: a%%0aFAKE\r\n%sConnection: close\r\n\r\n" % (target, key)
        for target in targets
        for key in keys
    ]
    body = b'{"model":"\\nFAKE\\u001b[31m"}'
    requests.append(
        b"POST /completion HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (stage.key.encode(), len(body), body)
    )
    return [await stage.raw(request, seconds=SOON_S) for request in requests]


def log_is_clean(stage: Stage) -> str:
    text = stage.log.read_bytes()
    if any(sign in text for sign in (b"\x1b", b"\x07", b"\x00", b"\r")):
        return "control characters from a request are in the log"
    if any(line.startswith(b"FAKE") for line in text.splitlines()):
        return "a request has written its own line into the log"
    return ""


async def request_heads(stage: Stage) -> list[Answer]:
    """Send heads that are too large or that contradict themselves."""
    heads = (
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * (5 << 20) + b"\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    )
    return list(await asyncio.gather(*(stage.raw(head, seconds=SOON_S) for head in heads)))


def low_limit(stage: Stage) -> None:
    """Give the gateway a soft limit of SOFT_LIMIT descriptors, as most systems do; this process keeps a higher one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * SOFT_LIMIT), hard))
    stage.descriptors = SOFT_LIMIT


ATTACKS = (
    Attack("idle-connections", f"{IDLE} idle connections, {SOFT_LIMIT} descriptors", idle, SERVED, prepare=low_limit),
    Attack("half-open-heads", f"{IDLE} connections with half a head", half_open, SERVED, prepare=low_limit),
    Attack("slow-heads", "heads that never end", slow_heads, REFUSED | {408, NO_ANSWER}),
    Attack("half-closed", "complete requests, then the end of the sending direction", half_closed, SERVED, quick=True),
    Attack("keyless-bodies", "no valid key, and a body that never comes", keyless_bodies, frozenset({401}), quick=True),
    Attack(
        "log-lines",
        "targets and names with line ends and escape sequences",
        strange_targets,
        REFUSED | {401, 404, NO_ANSWER},
        check=log_is_clean,
        quick=True,
    ),
    Attack(
        "heads", "heads that are too large or contradictory", request_heads, REFUSED | {401, 431, NO_ANSWER}, quick=True
    ),
)
