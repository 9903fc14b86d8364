"""A worker without a model: it uses pipes and socket as the real one does, and has the faults that `--model` names.

`--model` is a list of words with commas, some with a value after `=`:
    load=SECONDS        takes that long to become ready, reporting progress
    gate=PATH           waits until this file exists before it becomes ready or fails
    never-ready         answers 503 forever
    fail-load=TEXT      reports `failed` and exits with 1
    die-loading         prints two lines and exits with 3 instead of becoming ready
    die-streaming       ends by SIGKILL after the third chunk of a stream
    ignore-exit         ignores `exit` and SIGTERM
    grandchild          starts a child process in its process group, and logs its pid
    stray               the same, outside of its group, with the log still open
    flood=LINES         writes this many lines to its log before it is ready
    endless-line=BYTES  writes this many bytes without an end of line before it is ready
    garbage             writes an invalid report to the control pipe before it is ready
    chunks=N, pause=S   a streamed answer's length and the pause between two chunks
    beat=SECONDS        reports a heartbeat at this interval
    stuck               never answers a chat, and reports that its engine makes no progress
    think=SECONDS       waits this long before a chat's answer
    refuse=STATUS       answers every chat with that status
    code=N              exits with N on `exit`
    takes=NAME:GIB/…    reports that its model uses this much memory of each device
Runs as a program, and as `fake_worker:run` under the zygote. Uses only the standard library: a test can start dozens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

Headers = dict[str, str]


def run(argv: list[str], environ: Mapping[str, str]) -> int:
    return asyncio.run(FakeWorker(argv, environ).serve())


class FakeWorker:
    def __init__(self, argv: list[str], environ: Mapping[str, str]) -> None:
        options = dict(pairwise(argv))
        words = [word.partition("=") for word in options.get("--model", options.get("-m", "")).split(",")]
        self.flags = {name: value for name, _, value in words}
        self.name = options.get("--alias", "fake")
        self.host = options["--host"]
        self.argv = argv
        self.environ = dict(environ)
        control = environ.get("LLAMA_CORRAL_CONTROL_FD")
        self.control = int(control) if control else None
        self.is_ready = False
        self.is_stuck = False
        self.served = 0
        self.cancelled = 0  # answers whose client disconnected before their end

    async def serve(self) -> int:
        self.leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._watch_stdin(loop)
        loop.add_signal_handler(signal.SIGTERM, self._stop_requested)
        server = await asyncio.start_unix_server(self._connection, self.host)
        async with server:
            beating = asyncio.create_task(self._beat())
            await self._load()
            await self.leave.wait()
        beating.cancel()
        return int(self.flags.get("code", "0"))

    # -- its life ----------------------------------------------------------------------------------------------------

    def _watch_stdin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.control is None:
            return

        def watch() -> None:
            for line in sys.stdin:
                if line.partition(" ")[0].strip() == "exit":
                    loop.call_soon_threadsafe(self._stop_requested)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    async def _beat(self) -> None:
        while seconds := float(self.flags.get("beat", "0")):
            self._report("alive", {"busy": self.is_stuck, "steps": 7, "cpu": 1.5})
            await asyncio.sleep(seconds)

    def _wait_for_gate_file(self) -> None:
        while "gate" in self.flags and not os.path.exists(self.flags["gate"]):
            time.sleep(0.01)

    def _stop_requested(self) -> None:
        if "ignore-exit" in self.flags:
            print("asked to leave, and stays", flush=True)
        else:
            self.leave.set()

    async def _load(self) -> None:
        self._misbehave_before_loading()
        seconds = float(self.flags.get("load", "0"))
        for step in range(4):
            progress = {"stages": ["text_model"], "current": "text_model", "value": step / 4}
            self._report("loading", progress)
            await asyncio.sleep(seconds / 4)
        await asyncio.to_thread(self._wait_for_gate_file)
        if "die-loading" in self.flags:
            print("about to fall\ncannot go on: no reason", flush=True)
            os._exit(3)
        if "fail-load" in self.flags:
            self._report("failed", {"message": self.flags["fail-load"]})
            os._exit(1)
        if "never-ready" in self.flags:
            return
        self._wake({"id": self.name, "aliases": [self.name], "tags": [], "meta": {"n_ctx": 512}})

    def _misbehave_before_loading(self) -> None:
        if "grandchild" in self.flags:
            child = subprocess.Popen(["sleep", "1000"])
            print(f"grandchild {child.pid}", flush=True)
        if "stray" in self.flags:
            print(f"stray {subprocess.Popen(['sleep', '1000'], start_new_session=True).pid}", flush=True)
        for number in range(int(self.flags.get("flood", "0"))):
            print(f"flood {number} " + "x" * 80)
        print("y" * int(self.flags.get("endless-line", "0")))
        sys.stdout.flush()
        if "garbage" in self.flags and self.control is not None:
            os.write(self.control, b'\xff\xfe{"state": 7}\n{"state":"dancing"}\n[]\nno json\n\n{"state":"loading"')
            os.write(self.control, b"}\n")

    def _wake(self, info: dict[str, Any]) -> None:
        self.is_ready = True
        self._report("ready", info, **self._memory())

    def _memory(self) -> dict[str, Any]:
        if "takes" not in self.flags:
            return {}
        parts = [part.split(":") for part in self.flags["takes"].split("/")]
        return {"memory": {"host": 1 << 20, "devices": [{"name": name, "size": int(n) << 30} for name, n in parts]}}

    def _report(self, state: str, payload: dict[str, Any], **more: Any) -> None:
        if self.control is not None:
            os.write(self.control, json.dumps({"state": state, "payload": payload, **more}).encode() + b"\n")

    # -- HTTP --------------------------------------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line = await reader.readline()
        if not line:
            return False
        method, target, _ = line.decode().split(" ", 2)
        headers: Headers = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = await _body(reader, headers)
        await self._answer(WorkerClient(reader, writer), method, target, headers, body)
        return headers.get("connection", "").lower() != "close"

    async def _answer(self, client: WorkerClient, method: str, target: str, headers: Headers, body: bytes) -> None:
        writer = client.writer
        path = urlsplit(target).path
        if not self.is_ready:
            error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            return await _send(writer, 503, {"error": error})
        if path == "/health":
            return await _send(writer, 200, {"status": "ok"})
        if path == "/environ":
            return await _send(writer, 200, {"environ": self.environ})
        if path == "/sleep":
            self._report("sleeping", {})
            return await _send(writer, 200, {"success": True})
        if path == "/wake":
            self._report("loading", {})
            self._wake({})
            return await _send(writer, 200, {"success": True})
        if path == "/die":
            os._exit(7)
        self.served += 1
        if path.endswith("/chat/completions"):
            try:
                return await self._chat(client, json.loads(body or b"{}"))
            except ConnectionError:
                self.cancelled += 1
                raise
        if path == "/tokenize":
            content = json.loads(body).get("content", "")
            return await _send(writer, 200, {"tokens": list(content.encode())})
        echo = {"method": method, "target": target, "query": parse_qs(urlsplit(target).query), "headers": headers}
        me = {"name": self.name, "argv": self.argv, "pid": os.getpid()} | {
            "served": self.served,
            "cancelled": self.cancelled,
        }
        return await _send(writer, 200, {**echo, "body": body.decode("latin-1"), "worker": me})

    async def _chat(self, client: WorkerClient, request: dict[str, Any]) -> None:
        writer = client.writer
        pause = float(self.flags.get("pause", "0"))
        chunks = int(self.flags.get("chunks", "5"))
        if "stuck" in self.flags:
            self.is_stuck = True
            await client.pause(1000)
        await client.pause(float(self.flags.get("think", "0")))
        if status := int(self.flags.get("refuse", "0")):
            return await _send(writer, status, {"error": {"code": status, "message": "no", "type": "server_error"}})
        if not request.get("stream"):
            await client.pause(pause * chunks)
            message = {"role": "assistant", "content": " ".join(f"word{n}" for n in range(chunks))}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return await _send(writer, 200, {"object": "chat.completion", "model": self.name, "choices": [choice]})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(chunks):
            if number == 3 and "die-streaming" in self.flags:
                os.kill(os.getpid(), signal.SIGKILL)
            delta = {"choices": [{"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": None}]}
            await _send_chunk(writer, b"data: " + json.dumps(delta).encode() + b"\n\n")
            await client.pause(pause)
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        await _send_chunk(writer, b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return await writer.drain()


@dataclass
class WorkerClient:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def pause(self, seconds: float) -> None:
        """Wait. Raises ConnectionError as soon as the client has disconnected."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.reader.at_eof():
                raise ConnectionResetError("hung up")
            await asyncio.sleep(min(left, 0.01))


async def _body(reader: asyncio.StreamReader, headers: Headers) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def _send(writer: asyncio.StreamWriter, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], os.environ))
