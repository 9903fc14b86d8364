"""One gateway for one attack: its files, its processes, its log, and a client for it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.error import HTTPError
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import aiohttp
import psutil

MAKER = Path(__file__).resolve().parent.parent / "make_test_models.py"
DEMO = Path(__file__).resolve().parents[2] / "presets" / "demo"
NOT_INHERITED = ("LLAMA_", "HF_", "XDG_", "GGML_")
READY_S = 60.0
STOP_S = 15.0
END_S = 4.0
"""A gateway that still works on an attack is killed after this time; the rule has nothing about it."""
PRESETS = """[*]
threads = 1
parallel = 8
ctx-size = 8192
cache-ram = 16

[chat]
model = {demo}/demo-chat.gguf

[other]
model = {demo}/demo-story.gguf

[embed]
model = {demo}/demo-embed.gguf
embeddings = true

[spare]
model = {demo}/demo-story.gguf
"""
Request: TypeAlias = tuple[str, str, Mapping[str, str], bytes]
"""Method, path, headers and body."""
TRACEBACK = "Traceback (most recent call last)"
MOST_TEXT = 1 << 17
"""Bytes of an answer that are kept."""
NOISE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Answer:
    status: int
    """0 if the connection was closed without an answer, or -1 if there was no answer in time."""
    text: str = ""
    """The first characters of the answer, or the client's error."""
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """The message of the error object, in any dialect; "" if there is none."""
        try:
            error = json.loads(self.text).get("error")
        except (ValueError, AttributeError):
            return ""
        found = error.get("message") if isinstance(error, dict) else error
        return found if isinstance(found, str) else ""


class ModelRefused(RuntimeError):
    """The gateway cannot load a model; the text is its reason."""


@dataclass
class Stage:
    folder: Path
    program: str
    models: Path
    """Directory of the tiny models."""
    key: str = ""
    options: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    patience: float = 30.0
    """Seconds after which a request is given up."""
    more_presets: str = ""
    descriptors: int = 0
    """Soft limit of the gateway's open files; 0: that of this process."""
    left_behind: frozenset[str] = frozenset()
    """Names in `temporary` that an earlier gateway left."""
    port: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def log(self) -> Path:
        return self.folder / "gateway.log"

    @property
    def presets(self) -> Path:
        return self.folder / "presets.ini"

    @property
    def temporary(self) -> Path:
        """The directory for temporary files of the gateway and its workers."""
        return self.folder / "tmp"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @contextmanager
    def running(self, *loaded: str) -> Iterator[None]:
        """Run the gateway with these models loaded; at the end kill its processes."""
        if not os.path.lexists(self.presets):
            self.presets.write_text(PRESETS.format(demo=DEMO) + self.more_presets)
        limit = ["prlimit", f"--nofile={self.descriptors}:"] if self.descriptors else []
        argv = [
            *limit,
            self.program,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--models-preset",
            str(self.presets),
        ]
        argv += [*(("--api-key", self.key) if self.key else ()), *self.options]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
        own = {"HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as out:
            environ = {**inherited, **own, **self.environ}
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ)
        try:
            self._wait()
            for model in loaded:
                self.load(model)
            yield
        finally:
            self._end()

    def _wait(self) -> None:
        limit = time.monotonic() + READY_S
        while time.monotonic() < limit and self.process.poll() is None:
            with suppress(OSError), urlopen(self.url + "/health", timeout=5):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the gateway is not ready:\n{self.last_words()}")

    def load(self, model: str) -> None:
        """Load a model. Raises ModelRefused."""
        body = json.dumps({"model": model, "prompt": "Hi", "n_predict": 1, "input": "Hi"}).encode()
        path = "/v1/embeddings" if model == "embed" else "/completion"
        headers = {"Content-Type": "application/json", **self.headers}
        try:
            with urlopen(UrlRequest(self.url + path, body, headers), timeout=READY_S):
                return
        except HTTPError as error:
            with error:
                raise ModelRefused(Answer(error.code, error.read().decode(errors="replace")).message) from None

    def _end(self) -> None:
        family = self.family()
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in family:
            with suppress(psutil.Error):
                process.kill()

    def stop(self) -> float | None:
        """Send SIGTERM; return the seconds until the gateway has ended, or None if it does not within STOP_S."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - began

    def family(self) -> list[psutil.Process]:
        """Return the router and all its descendants; empty if the router has ended."""
        try:
            router = psutil.Process(self.process.pid)
            return [router, *router.children(recursive=True)]
        except psutil.Error:
            return []

    def zygote(self) -> psutil.Process | None:
        for process in self.family()[1:]:
            with suppress(psutil.Error):
                if any("zygote" in word for word in process.cmdline()):
                    return process
        return None

    async def send_all(
        self,
        requests: Sequence[Request],
        *,
        times: int = 1,
        leave_after: float | None = None,
    ) -> list[Answer]:
        """Send every request `times` times, all at once. `leave_after`: disconnect after this many seconds."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(self.patience if leave_after is None else leave_after)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            sends = [self._send(session, *request) for request in requests for _ in range(times)]
            return list(await asyncio.gather(*sends))

    async def _send(
        self, session: aiohttp.ClientSession, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        began = time.monotonic()
        try:
            async with session.request(
                method, self.url + path, data=io.BytesIO(body) if body else None, headers={**self.headers, **headers}
            ) as response:
                text = (await _beginning(response.content)).decode(errors="replace")
                while await response.content.read(1 << 16):
                    pass
                return Answer(response.status, text, time.monotonic() - began)
        except TimeoutError:
            return Answer(-1, "no answer in time", time.monotonic() - began)
        except (aiohttp.ClientError, OSError) as error:
            return Answer(0, f"{type(error).__name__}: {error}", time.monotonic() - began)

    async def raw(self, data: bytes, *, end_writing: bool = False, seconds: float | None = None) -> Answer:
        """Send these bytes on a new connection and return the status of the answer."""
        began = time.monotonic()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self.patience if seconds is None else seconds):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(data)
                await writer.drain()
                if end_writing:
                    writer.write_eof()
                answer = await reader.read(4096)
        except TimeoutError:
            return Answer(-1, "no answer in time", time.monotonic() - began)
        except OSError as error:
            return Answer(0, str(error), time.monotonic() - began)
        finally:
            if writer is not None:
                writer.close()
        status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
        _, _, text = answer.partition(b"\r\n\r\n")
        return Answer(int(status[1]) if status else 0, text.decode(errors="replace"), time.monotonic() - began)

    def tracebacks(self) -> int:
        return self.log.read_text(errors="replace").count(TRACEBACK)

    def last_words(self, lines: int = 15) -> str:
        return "\n".join(NOISE.sub("?", self.log.read_text(errors="replace")).splitlines()[-lines:])


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """Return the first MOST_TEXT bytes, or fewer if there are no more."""
    text = bytearray()
    while len(text) < MOST_TEXT and (piece := await content.read(MOST_TEXT - len(text))):
        text += piece
    return bytes(text)


def make_models(folder: Path) -> Path:
    subprocess.run([sys.executable, str(MAKER), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder
