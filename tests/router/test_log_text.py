"""Text of clients in the log of a real router and its worker: no request writes a line or an escape sequence."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

from programs import Program, complete

Start = Callable[..., Program]
RAW = "a%0aFAKE%1b[31m%0d%c2%9b%e2%80%a8"
"""A path that is decoded to line breaks and escape sequences."""
DECODED = "a\nFAKE\x1b[31m\r\x9b\u2028"
OWN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} |    |$"
PATHS = ("/", "/v1/", "/models/", "/v1/models/", "/responses/", "/v1/responses/", "/slots/", "/api/", "/tools/")
MANAGING = ("/models", "/models/load", "/api/pull", "/api/show", "/api/generate", "/tools", "/v1/chat/completions")
NOT_HTTP = (
    b"GET /a\x1b[31m HTTP/1.1\r\n\r\n",
    b"\x1b[31m\nFAKE\n\r\n\r\n",
    b"GET / HTTP/1.1\r\nX\x1b: \n1\r\n\r\n",
)
BRIEF: dict[str, Any] = {"model": "m", "max_tokens": 1, "options": {"num_predict": 1, DECODED: 1}, "stream": False}


def bodies() -> list[dict[str, Any]]:
    content = [{"type": DECODED, "text": "x"}, {"type": "image_url", "image_url": DECODED}]
    return [
        *({name: DECODED} for name in ("model", "name", "tool", "prompt", "grammar")),
        BRIEF | {"prompt": "x", "samplers": [DECODED], "keep_alive": DECODED},
        BRIEF | {"prompt": "x", "samplers": [DECODED]},
        *(BRIEF | {"prompt": "x", "messages": [{"role": DECODED, "content": [part]}]} for part in content),
    ]


def test_no_request_forges_a_line_of_the_log(start_gateway: Start) -> None:
    presets = "[m]\nmodel = {models}/tiny-llama.gguf\nverbosity = 4\n"
    gateway = start_gateway("--verbosity", "4", "--tools", "read_file", presets=presets)
    complete(gateway, "m", max_tokens=1)
    for path in PATHS:
        for method in ("GET", "POST", "DELETE"):
            gateway.client.request(method, path + RAW + f"?model={RAW}&conv_id={RAW}", json={"model": DECODED})
    for path in MANAGING:
        for body in bodies():
            gateway.client.post(path, json=body, headers={"X-Conversation-Id": RAW, "X-Tool-Cwd": RAW})
    for sent in NOT_HTTP:
        with socket.create_connection(("127.0.0.1", int(gateway.address)), timeout=20) as raw:
            raw.sendall(sent)
            assert raw.recv(12) == b"HTTP/1.0 400"
    gateway.stop()
    lines = gateway.log.read_bytes().decode().split("\n")
    assert [line for line in lines if not re.match(OWN, line)] == []
    assert [line for line in lines if not line.isprintable()] == []
    assert sum("FAKE" in line for line in lines) > len(PATHS), "they are logged"
