"""MCP servers on standard input and output: a real one from the official package, and small ones without it.

fake_mcp.py official           echo, add, slow, fail, environment
fake_mcp.py quick [MARK]       echo, pid, info, grow, silent, hang, chatter, die; writes a line to MARK at each start
fake_mcp.py pages              lists its tools in two pages, first sends a request itself, and answers in one batch
fake_mcp.py mute|die|garbage   never answers, exits immediately, writes invalid messages
fake_mcp.py stubborn           never answers and ignores the end of its input and SIGTERM
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def official_server() -> None:
    import asyncio

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
    def fail() -> str:
        raise ValueError("it went wrong")

    @server.tool()
    def environment(name: str) -> str:
        return os.environ.get(name, "not set")

    server.run("stdio")


def send(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def quick_server() -> None:
    names = ["echo", "pid", "silent", "hang", "chatter", "die", "info", "grow"]
    for line in sys.stdin:
        request = json.loads(line)
        method, number = request["method"], request.get("id")
        result: dict[str, Any] = {}
        if number is None:
            continue
        if method == "initialize":
            result = {"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": {"name": "q", "version": "1"}}
        elif method == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}
        elif method == "tools/call":
            if request["params"]["name"] == "grow":
                names.append("extra")
                send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            text = quick_call(request["params"]["name"], request["params"]["arguments"])
            if text is None:
                continue
            result = {"content": [{"type": "text", "text": text}]}
        send({"jsonrpc": "2.0", "id": number, "result": result})


def quick_call(name: str, arguments: dict[str, Any]) -> str | None:
    """Return the result, or None for no answer while other calls are answered."""
    if name == "silent":
        return None
    if name == "hang":
        if "mark" in arguments:
            Path(arguments["mark"]).touch()
        time.sleep(1000)
    elif name == "chatter":
        os.write(1, b"this is no message\n[1, 2\n\xff\xfe\n{}\n" + b"9" * 5000 + b"\n")
    elif name == "die":
        print("the end is near", file=sys.stderr, flush=True)
        os._exit(7)
    return str(os.getpid()) if name == "pid" else f"echo: {arguments.get('message')}"


def paging_server() -> None:
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


def garbage_server() -> None:
    while True:
        os.write(1, b"garbage " * 1000 + b"\n")


def main() -> None:
    mode, mark = sys.argv[1], sys.argv[2:]
    for file in mark:
        with Path(file).open("a") as log:
            log.write("started\n")
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode in ("stubborn", "mute"):
        time.sleep(1000)
    elif mode == "die":
        sys.exit("no configuration")
    else:
        kinds = {"official": official_server, "quick": quick_server, "pages": paging_server, "garbage": garbage_server}
        kinds[mode]()


if __name__ == "__main__":
    main()
