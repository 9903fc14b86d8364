"""A foreign OpenAI-like server for one model, with flags for faults: `fake_backend.py PORT [FLAG…]`.

`loading=S`: /health is 503 for S seconds. `deaf`: ignores SIGTERM. `mute`: never healthy. `code=N`: exits immediately.
`die`: exits in the middle of an answer. `child`: listens in a grandchild. `base=PATH`: prefix of all paths.
`single`: accepts one connection at a time, so that nothing else is answered meanwhile. `pause=S`: waits before each
chunk of a stream. `sick`: after it was healthy once, /health is 500. `broken=STATUS/…`: every POST has one of these
statuses, in turn (500). `hangs-up`: it closes the connection of every POST. `cuts`: it does so in the middle of every
answer, also of a stream. `fails`: a stream ends with an error, without a newline after it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

PORT, FLAGS = int(sys.argv[1]), dict(word.partition("=")[::2] for word in sys.argv[2:])
BASE = FLAGS.get("base", "")
STARTED = time.monotonic()
STATUSES = itertools.cycle(map(int, (FLAGS.get("broken") or "500").split("/")))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    was_healthy = False

    def do_GET(self) -> None:
        if self.path != BASE + "/health":
            self.answer(200 if self.path.startswith(BASE) else 404, {"path": self.path, "environ": dict(os.environ)})
        elif "mute" in FLAGS or time.monotonic() - STARTED < float(FLAGS.get("loading", 0)):
            self.answer(503, {"error": "loading"})
        elif "sick" in FLAGS and self.was_healthy:
            self.answer(500, {"error": "sick"})
        else:
            Handler.was_healthy = True
            self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "hangs-up" in FLAGS:
            self.close_connection = True
            return
        if "broken" in FLAGS:
            self.answer(next(STATUSES), {"error": "broken"})
            return
        if not self.headers["Content-Type"].startswith("application/json"):
            self.answer(200, {"form": data.decode("latin-1")})
            return
        body = json.loads(data)
        if body.get("stream"):
            self.stream(body)
            return
        shown = {"pid": os.getpid(), "path": self.path, "headers": dict(self.headers), "body": body}
        self.answer(200, {**shown, "raw": data.decode(), "peer": self.client_address[1]})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.say_whether_to_close()
        self.end_headers()
        if "cuts" in FLAGS and self.command == "POST":
            self.wfile.write(data[:-1])
            self.close_connection = True
            return
        self.wfile.write(data)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.say_whether_to_close()
        self.end_headers()
        for number in range(3):
            time.sleep(float(FLAGS.get("pause", 0)))
            self.chunk(f"data: {json.dumps({'n': number, 'model': body['model']})}\n\n")
            if "die" in FLAGS:
                os._exit(3)
            if "cuts" in FLAGS:
                self.close_connection = True
                return
        self.chunk('data: {"error": {"message": "out of ideas"}}' if "fails" in FLAGS else "data: [DONE]\n\n")
        self.chunk("")

    def say_whether_to_close(self) -> None:
        if "single" in FLAGS:
            self.send_header("Connection", "close")

    def chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    if "code" in FLAGS:
        print("the backend has no mind to start", flush=True)
        sys.exit(int(FLAGS["code"]))
    if "deaf" in FLAGS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "child" in FLAGS:
        words = [word for word in sys.argv[2:] if word != "child"]
        sys.exit(subprocess.call([sys.executable, sys.argv[0], str(PORT), *words]))
    print("the backend listens", flush=True)
    server = HTTPServer if "single" in FLAGS else ThreadingHTTPServer
    server(("127.0.0.1", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
