"""Runs the real engine in a test: one model, one event loop, requests as awaitables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.common.hub.resolve import ModelFiles
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.engine.messages import (
    Embedded,
    Embedding,
    Event,
    Failed,
    Finished,
    Generation,
    Piece,
    Sampling,
)
from llama_corral.worker.engine.runner import Engine, LoadedModel, Ticket

GREEDY = Sampling(temperature=0.0)


@asynccontextmanager
async def running(
    model: Path,
    reports: list[WorkerReport] | None = None,
    *,
    projector: Path | None = None,
    draft: Path | None = None,
    disk: PrivateDirectory | None = None,
    **settings: Any,
) -> AsyncIterator[Engine]:
    """Yield a loaded engine; `reports` collects its reports to the application."""
    options = Settings.of(model=str(model), **{"ctx_size": 1024, "threads": 1, **settings})
    engine = Engine(
        options, ModelFiles(model, projector, draft), (reports if reports is not None else []).append, disk=disk
    )
    try:
        await engine.load()
        yield engine
    finally:
        await engine.close()


async def asleep(engine: Engine) -> None:
    """Wait until the engine sleeps. It reports this only to the router."""
    while not engine.is_sleeping:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


class Request:
    """A submitted request and its events so far."""

    def __init__(self, loaded: LoadedModel, request: Generation | Embedding) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self.ticket: Ticket = loaded.submit(request, self._take)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        while not condition(self.events):
            self._changed.clear()
            await self._changed.wait()
        return self.events

    async def all(self) -> list[Finished]:
        """Return the choices in order. Raises the error that ended the request."""
        n = 1
        if self.events and isinstance(self.events[0], Failed):
            raise self.events[0].error
        await self.until(lambda events: any(isinstance(event, Finished | Failed | Embedded) for event in events))
        n = self.n
        await self.until(lambda events: len(_last(events)) == n or any(isinstance(e, Failed) for e in events))
        for event in self.events:
            if isinstance(event, Failed):
                raise event.error
        return sorted((e for e in self.events if isinstance(e, Finished)), key=lambda event: event.index)

    n = 1

    async def one(self) -> Finished:
        return (await self.all())[0]

    async def error(self) -> ApiError:
        events = await self.until(lambda events: any(isinstance(event, Failed) for event in events))
        return next(event.error for event in events if isinstance(event, Failed))

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))


def _last(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Finished | Embedded)]


def ask(loaded: LoadedModel, prompt: str | list[int] = "Once upon a time", **fields: Any) -> Request:
    """Submit a request; by default greedy, with 16 tokens."""
    tokens = loaded.vocab.tokenize(prompt, True, True) if isinstance(prompt, str) else prompt
    request = Request(loaded, Generation(tokens=tokens, **{"n_predict": 16, "sampling": GREEDY, **fields}))
    request.n = fields.get("n", 1)
    return request


async def vectors(loaded: LoadedModel, text: str, normalize: int = 2) -> list[list[float]]:
    request = Request(loaded, Embedding(loaded.vocab.tokenize(text, True, True), normalize))
    events = await request.until(bool)
    if isinstance(events[0], Failed):
        raise events[0].error
    assert isinstance(events[0], Embedded)
    return [list(vector) for vector in events[0].vectors]
