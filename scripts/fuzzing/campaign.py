"""Sends random requests one after the other to a real gateway, and finds the smallest request of each fault."""

from __future__ import annotations

import http.client
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from attacks.stage import TRACEBACK, Answer, Stage

from .requests import Wish, any_request, smaller
from .schema import fields
from .values import Values

ANSWER_S = 20.0
DOCUMENTED = {
    501: "the route exists, but its feature is not supported",
    503: "the model is loading, or there is no place for it",
    529: "the same in Anthropic's dialect",
}
"""Server errors that a client may meet without a fault of the program."""
KNOWN = re.compile("is too large to process|multimodal|does not support")
"""Messages of 500 that clients of llama-server know."""
ENDED = re.compile(r"exited with (?!code 0\b).*|was killed by .*")
"""What the router logs about a worker that ended with an error. A worker that is unloaded exits with 0."""
TRIES = 60
"""Most requests to make a fault smaller."""
LISTED = 4096
LOG_PREFIX = re.compile(r"[-\d]+ [:.\d]+ (?:\w+: )?(?:\[\d+/[^]]*\] )?")
EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception|Interrupt|Exit|Group)\b")


@dataclass
class Fault:
    kind: str
    wish: Wish
    detail: str
    count: int = 1

    def __str__(self) -> str:
        data = self.wish.data()
        shown = data if len(data) <= LISTED else data[:LISTED] + b" ... (%d bytes)" % len(data)
        return f"{self.count} x {self.kind}\n  {self.wish.method} {self.wish.path}\n  {shown!r}\n  {self.detail}"


@dataclass
class Campaign:
    stage: Stage
    seed: int
    begun: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[str, Fault] = field(default_factory=dict)
    _log_at: int = 0
    _connection: http.client.HTTPConnection | None = None

    def run(self, requests: int, tell: Callable[[str], None] = print) -> None:
        chance = random.Random(self.seed)
        values = Values(chance, fields())
        try:
            for _ in range(requests):
                wish = any_request(chance, values)
                self.begun += 1
                answer, words = self.exchange(wish)
                self.statuses[answer.status] += 1
                if kind := self.judge(answer, words):
                    self._found(kind, wish, answer, tell)
        finally:
            self._close()

    def exchange(self, wish: Wish) -> tuple[Answer, str]:
        """Send a request; return its answer, and what the gateway has logged meanwhile."""
        began = time.monotonic()
        try:
            answer = self._send(wish, began)
        except TimeoutError:
            self._close()
            answer = Answer(-1, f"no answer within {ANSWER_S:.0f} s", time.monotonic() - began)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            answer = Answer(0, f"{type(error).__name__}: {error}", time.monotonic() - began)
        with self.stage.log.open("rb") as log:
            log.seek(self._log_at)
            words = log.read()
            self._log_at = log.tell()
        return answer, words.decode(errors="replace")

    def _send(self, wish: Wish, began: float) -> Answer:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.stage.port, timeout=ANSWER_S)
        self._connection.request(wish.method, wish.path, wish.data() or None, {**self.stage.headers, **wish.headers})
        response = self._connection.getresponse()
        text = bytearray()
        while piece := response.read1(1 << 16):
            text += piece
            if time.monotonic() - began > ANSWER_S:
                raise TimeoutError
        response.close()  # `read1` leaves a response open whose body has a length
        return Answer(response.status, text.decode(errors="replace"), time.monotonic() - began)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def judge(self, answer: Answer, words: str) -> str:
        """Return the kind of the fault, or "" if there is none."""
        if TRACEBACK in words:
            return f"traceback: {_last_of_traceback(words)}"
        if answer.status < 0:
            return "no answer in time"
        if answer.status == 0:
            return f"no answer: {_general(answer.text)}"
        if answer.status >= 500 and answer.status not in DOCUMENTED and not KNOWN.search(answer.message):
            return f"status {answer.status}: {_general(answer.message)}"
        if answer.status >= 400 and not answer.message:
            return f"status {answer.status} without a message: {_general(answer.text)}"
        if answer.status == 200 and (error := _error_event(answer.text)):
            return f"stream ends with an error: {_general(error)}"
        if self.stage.process.poll() is not None:
            return "the router ended"
        if ended := ENDED.search(words):
            return f"a worker ended: {_general(ended[0])}"
        return ""

    def _found(self, kind: str, wish: Wish, answer: Answer, tell: Callable[[str], None]) -> None:
        if kind in self.faults:
            self.faults[kind].count += 1
            return
        least = self._smallest(kind, wish) if answer.status > 0 else wish
        self.faults[kind] = Fault(kind, least, f"{answer.status} {answer.text[:300]}")
        tell(f"[{self.begun}] {self.faults[kind]}\n")

    def _smallest(self, kind: str, wish: Wish) -> Wish:
        tries = 0
        found = True
        while found and tries < TRIES:
            found = False
            for less in smaller(wish):
                tries += 1
                if self.judge(*self.exchange(less)) == kind:
                    wish, found = less, True
                    break
                if tries >= TRIES:
                    break
        return wish


def _general(text: str) -> str:
    """Return a text without what differs from request to request."""
    return re.sub(r"'[^']*'|\d+", "…", text)[:80]


def _last_of_traceback(words: str) -> str:
    """Return the exception, and the last line of the program that it passed."""
    lines = [LOG_PREFIX.sub("", line) for line in words.split(TRACEBACK, 1)[1].splitlines()]
    raised = next((number for number, line in enumerate(lines) if EXCEPTION.match(line)), len(lines) - 1)
    places = [line.strip() for line in lines[:raised] if line.startswith("  File ") and "/llama_corral/" in line]
    place = re.sub(r'File ".*/llama_corral/', "", places[-1]) if places else "?"
    return f"{_general(lines[raised])} in {place}"


def _error_event(text: str) -> str:
    """Return the message of an error of the server in a stream that began with status 200."""
    for line in text.split("\n"):
        if line.startswith('data: {"error"'):
            try:
                error = json.loads(line.removeprefix("data: "))["error"]
            except ValueError:
                return f"not JSON: {line[:80]}"
            code = error.get("code") if isinstance(error, dict) else None
            if isinstance(code, int) and code >= 500 and code not in DOCUMENTED:
                return str(error.get("message"))
    return ""
