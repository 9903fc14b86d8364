"""A real MCP server on standard input and output, made with the official package, and a few that misbehave.

    fake_mcp.py [MARK]             echo, add, slow, hang, fail, picture, environment, chatter, die, pid
    fake_mcp.py mute|die|garbage   answers nothing, ends at once, writes anything but messages
    fake_mcp.py stubborn           ignores the end of its input and SIGTERM
    fake_mcp.py pages              lists its tools in two pages, asks us something first, and answers in one batch

MARK is a file: a line is added to it at each start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def real_server() -> None:
    from mcp.server import MCPServer

    server = MCPServer("fake")

    @server.tool()
    def echo(message: str) -> str:
        """Says it again."""
        return f"echo: {message}"

    @server.tool(structured_output=False)
    def add(a: int, b: int) -> str:
        return str(a + b)

    @server.tool()
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    @server.tool()
    async def hang(seconds: float) -> str:
        time.sleep(seconds)  # noqa: ASYNC251  it is to hang
        return "woke up"

    @server.tool()
    def fail() -> str:
        raise ValueError("it went wrong")

    @server.tool()
    def environment(name: str) -> str:
        return os.environ.get(name, "not set")

    @server.tool()
    def chatter() -> str:
        os.write(1, b"this is no message\n[1, 2\n\xff\xfe\n{}\n")
        print("something is odd", file=sys.stderr, flush=True)
        return "said it"

    @server.tool()
    def die() -> str:
        print("the end is near", file=sys.stderr, flush=True)
        os._exit(7)

    @server.tool()
    def pid() -> str:
        return str(os.getpid())

    server.run("stdio")


def send(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def paging_server() -> None:
    """By hand, since the package would not do it like this."""
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id")}
        if request.get("method") == "initialize":
            send({"jsonrpc": "2.0", "id": "theirs", "method": "sampling/createMessage", "params": {}})
            send({"jsonrpc": "2.0", "id": 99, "method": "ping"})
            answers = [json.loads(sys.stdin.readline()) for _ in range(2)]
            assert answers[0]["error"]["code"] == -32601
            assert answers[1] == {"jsonrpc": "2.0", "id": 99, "result": {}}
            send({**reply, "result": {"protocolVersion": "2024-11-05", "capabilities": {}}})
        elif request.get("method") == "tools/list":
            is_first = "cursor" not in request["params"]
            page = {"tools": [{"name": "one" if is_first else "two", "inputSchema": {"type": "object"}}, "nonsense"]}
            send({**reply, "result": {**page, **({"nextCursor": "more"} if is_first else {})}})
        elif request.get("method") == "tools/call":
            parts = [
                {"type": "text", "text": "a text"},
                {"type": "image", "mimeType": "image/png", "data": "AAAA"},
                {"type": "resource", "resource": {"uri": "file:///x", "text": "its text"}},
            ]
            notice = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
            send([notice, {**reply, "id": 4711, "result": {}}, {**reply, "result": {"content": parts}}])


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode == "die":
        print("no configuration", file=sys.stderr, flush=True)
        sys.exit(3)
    elif mode == "garbage":
        while True:
            os.write(1, b"garbage " * 1000 + b"\n")
    elif mode == "mute":
        time.sleep(1000)
    elif mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    elif mode == "pages":
        paging_server()
    else:
        if mode:
            with Path(mode).open("a") as file:
                file.write("started\n")
        real_server()


if __name__ == "__main__":
    main()
