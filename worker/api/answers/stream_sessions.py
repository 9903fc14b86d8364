"""Keeps the last bytes of each conversation's answer, so that a client can disconnect and continue later.

There is one `StreamSession` per conversation: the task that produces the answer, and its last bytes. Any number of
readers can read from any offset that is still kept; a reader never blocks the producer. `resumable` uses it on the
event loop. It contains no HTTP code.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

log = logging.getLogger("corral.worker")

MAX_BYTES = 4 << 20
"""Limit for one session, as in llama-server. Its oldest bytes are dropped first."""
MAX_ENDED_BYTES = 256 << 20
"""Limit for all ended sessions together. The session that ended first is dropped first."""
RETENTION_S = 300.0
"""How long an ended session is kept, as in llama-server."""


class OffsetLost(Exception):
    """The next byte for a reader is no longer kept."""


class StreamSession:
    def __init__(self, conversation: str, max_bytes: int) -> None:
        self.conversation = conversation
        self.started_at = int(time.time())
        self.completed_at = 0  # 0: not yet
        self.content_type = ""  # of the stream, once it has begun
        self.begun = asyncio.Event()
        """Set when the stream begins; an error before that is the answer to the request itself."""
        self.producer: asyncio.Task[Any] | None = None
        self.client_left = False
        self.outlives_client: bool | None = None  # None: not known yet
        self._max_bytes = max_bytes
        self._kept = bytearray()
        self._n_dropped = 0
        self._changed = asyncio.Event()

    @property
    def is_done(self) -> bool:
        return self.completed_at > 0

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    @property
    def n_dropped(self) -> int:
        return self._n_dropped

    @property
    def total_bytes(self) -> int:
        return self._n_dropped + len(self._kept)

    def append(self, chunk: bytes) -> None:
        self._kept += chunk
        excess = len(self._kept) - self._max_bytes
        if excess > 0:
            del self._kept[:excess]
            self._n_dropped += excess
        self._notify()

    def finish(self) -> None:
        self.completed_at = self.completed_at or int(time.time())
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, offset: int) -> bytes:
        """Return the bytes from `offset` on; wait if there are none yet. b"" at the end. Raises OffsetLost."""
        while self.total_bytes <= offset and not self.is_done:
            await self._changed.wait()
        if offset < self._n_dropped:
            raise OffsetLost
        return bytes(self._kept[offset - self._n_dropped :])


class StreamSessions:
    """All sessions of a worker: at most one for each conversation."""

    def __init__(
        self, *, kept_s: float = RETENTION_S, max_bytes: int = MAX_BYTES, max_ended_bytes: int = MAX_ENDED_BYTES
    ) -> None:
        self._kept_s = kept_s
        self._max_bytes = max_bytes
        self._max_ended_bytes = max_ended_bytes
        self._sessions: dict[str, StreamSession] = {}
        self._producers: set[asyncio.Task[Any]] = set()

    def get(self, conversation: str) -> StreamSession | None:
        return self._sessions.get(conversation)

    def matching(self, conversations: Iterable[str]) -> list[StreamSession]:
        """Return the sessions whose name is one of `conversations`, or starts with one of them and `::`."""
        return [
            session
            for wanted in conversations
            for name, session in self._sessions.items()
            if name == wanted or name.startswith(wanted + "::")
        ]

    def open(self, conversation: str, produce: Callable[[StreamSession], Coroutine[Any, Any, Any]]) -> StreamSession:
        """Stop the conversation's last session and return a new one, with `produce` running as a separate task."""
        self.stop(conversation)
        session = self._sessions[conversation] = StreamSession(conversation, self._max_bytes)
        session.producer = producer = asyncio.ensure_future(produce(session))
        self._producers.add(producer)
        producer.add_done_callback(lambda task: self._on_end(session, task))
        return session

    def stop(self, conversation: str) -> None:
        """Cancel the session's producer and drop the session; do nothing if the conversation is unknown."""
        session = self._sessions.get(conversation)
        if session is not None:
            self.forget(session)
            if session.producer is not None:
                session.producer.cancel()

    def forget(self, session: StreamSession) -> None:
        """Drop the session and end its readers. Its producer, if still running, continues for its direct awaiters."""
        if self._sessions.get(session.conversation) is session:
            del self._sessions[session.conversation]
        session.finish()

    async def close(self) -> None:
        for conversation in list(self._sessions):
            self.stop(conversation)
        for producer in self._producers:
            producer.cancel()
        await asyncio.gather(*self._producers, return_exceptions=True)

    def _on_end(self, session: StreamSession, producer: asyncio.Task[Any]) -> None:
        self._producers.discard(producer)
        session.producer = None
        error = None if producer.cancelled() else producer.exception()
        if not session.begun.is_set():
            self.forget(session)  # the request itself gets the answer or the error
            return
        if error is not None:
            log.error("a stream failed: %r", error, exc_info=error)
        session.finish()
        asyncio.get_running_loop().call_later(self._kept_s, self.forget, session)
        self._limit_ended()

    def _limit_ended(self) -> None:
        ended = [session for session in self._sessions.values() if session.producer is None]
        excess = sum(session.n_kept for session in ended) - self._max_ended_bytes
        for session in sorted(ended, key=lambda session: session.completed_at):
            if excess <= 0:
                return
            excess -= session.n_kept
            self.forget(session)
