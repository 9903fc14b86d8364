"""How one request's events reach its client: statuses, pings, late errors, disconnects.

The engine is a fake that the test controls; server and client are real.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from llama_corral.common.web.access_log import AccessLog
from llama_corral.common.web.application import application
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.answers.dialect import AnswerInfo
from llama_corral.worker.api.answers.openai_chat import OpenAIChat
from llama_corral.worker.api.answers.streaming import respond
from llama_corral.worker.api.control import ControllableCompletion
from llama_corral.worker.api.request.params import CompletionParams
from llama_corral.worker.api.request.prompts import Prompt
from llama_corral.worker.engine.batching.jobs import ALONE
from llama_corral.worker.engine.messages import Begun, Event, Failed, Finished, Generation, Piece, Sink, Timings

FINISHED = Finished(0, 0, "ab", (1, 2), "eos", "", 2, 3, 5, False, False, Timings(0, 3, 1.0, 2, 1.0))


class HandPlayedEngine:
    """Records submitted requests and cancellations; the test sends the events."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.cancelled = self.n_checked = self.n_trusted = 0
        self.window = 2
        self.refuses: Exception | None = None
        self.changed = asyncio.Event()

    def submit(self, request: Generation, sink: Sink, *, checked: bool = False) -> HandPlayedEngine:
        if self.refuses and self.sinks:
            raise self.refuses
        self.sinks.append(sink)
        self.n_trusted += checked
        self.changed.set()
        return self

    def check(self, request: Generation) -> None:
        self.n_checked += 1

    def cancel(self) -> None:
        self.cancelled += 1
        self.changed.set()

    def send(self, *events: Event) -> None:
        for event in events:
            self.sinks[0](event)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 5)


Scene = Callable[[HandPlayedEngine, aiohttp.ClientSession], Awaitable[None]]


async def play(scene: Scene, *, stream: bool = True, n_prompts: int = 1, ping: float = -1) -> HandPlayedEngine:
    engine = HandPlayedEngine()

    async def handler(request: web.Request) -> web.StreamResponse:
        params = CompletionParams(stream=stream)
        prompts: Sequence[Sequence[int]] = [[1]] * n_prompts
        answer = AnswerInfo(params, "tiny", "b0", prompts, str, len)
        generations = [params.generation(Prompt(tokens), None) for tokens in prompts]
        return await respond(request, engine, generations, OpenAIChat(answer), ping)

    app = application(Settings.of(model="x.gguf"))
    app.router.add_get("/", handler)
    server = TestServer(app)
    await server.start_server(access_log_class=AccessLog)
    async with server, aiohttp.ClientSession(server.make_url("/")) as client:
        await scene(engine, client)
        await engine.until(lambda: engine.cancelled >= len(engine.sinks))
    return engine


async def asked(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> asyncio.Task[aiohttp.ClientResponse]:
    task = asyncio.ensure_future(client.get(""))
    await engine.until(lambda: bool(engine.sinks))
    return task


async def test_headers_are_sent_when_the_prompt_begins_and_the_stream_ends_with_done() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        assert not asking.done()
        engine.send(Begun(0))
        response = await asking
        assert response.status == 200
        assert response.headers["X-Accel-Buffering"] == "no"
        engine.send(Piece(0, "a", (1,), 1, 3), Piece(0, "b", (2,), 2, 3), FINISHED)
        text = await response.text()
        assert text.count("data: ") == 5
        assert text.endswith("data: [DONE]\n\n")

    await play(scene)


async def test_an_error_before_the_first_event_has_its_own_status() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        engine.send(Failed(InvalidRequest("no good")))
        response = await asking
        assert response.status == 400
        assert (await response.json())["error"]["message"] == "no good"

    await play(scene)
    await play(scene, stream=False)


async def test_a_later_error_ends_the_stream_as_an_event() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        engine.send(Begun(0), Piece(0, "a", (1,), 1, 3))
        response = await asking
        await response.content.readuntil(b'"a"')
        engine.send(Failed(ServerFault("context is full")))
        text = await response.text()
        expected = 'data: {"error":{"code":500,"message":"context is full","type":"server_error"}}\n\n'
        assert text.endswith(expected)

    await play(scene)


async def test_the_log_has_the_error_of_a_stream_that_has_begun(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "corral.access")

    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        engine.send(Begun(0))
        response = await asking
        engine.send(Failed(ServerFault("context is full")))
        await response.read()

    await play(scene)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "corral.access")
    assert line.startswith("127.0.0.1 GET / 200 ")
    assert line.endswith(": context is full")


async def test_a_silent_stream_sends_pings() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        engine.send(Begun(0))
        response = await asking
        assert await response.content.readexactly(6) == b":\n\n:\n\n"
        engine.send(FINISHED)
        assert (await response.text()).endswith("data: [DONE]\n\n")

    await play(scene, ping=0.02)


async def test_a_disconnect_cancels_the_request() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        engine.send(Begun(0), Piece(0, "a", (1,), 1, 3))
        (await asking).close()

    async def impatient(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        (await asked(engine, client)).cancel()

    assert (await play(scene)).cancelled == 1
    assert (await play(impatient)).cancelled == 1
    assert (await play(impatient, stream=False)).cancelled == 1


async def test_results_of_several_prompts_keep_their_order() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        asking = await asked(engine, client)
        await engine.until(lambda: len(engine.sinks) == 2)
        engine.sinks[1](FINISHED)
        engine.sinks[0](FINISHED)
        shown = await (await asking).json()
        assert [choice["index"] for choice in shown["choices"]] == [0, 1]
        assert shown["usage"]["prompt_tokens"] == 6

    assert (await play(scene, stream=False, n_prompts=2)).cancelled == 2


async def test_one_refused_prompt_cancels_the_others() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        engine.refuses = InvalidRequest("the second is wrong")
        response = await client.get("")
        assert response.status == 400

    assert (await play(scene, n_prompts=2)).cancelled == 1


async def test_a_long_list_of_prompts_is_submitted_a_few_at_a_time() -> None:
    async def scene(engine: HandPlayedEngine, client: aiohttp.ClientSession) -> None:
        response = await asked(engine, client)
        await engine.until(lambda: len(engine.sinks) == 2)
        assert engine.n_checked == 5, "all are checked before any is computed"
        for finished in range(5):
            assert len(engine.sinks) == min(5, 2 + finished)
            engine.sinks[finished](FINISHED)
        assert len((await (await response).json())["choices"]) == 5
        assert engine.n_trusted == 5, "none is checked again"

    await play(scene, stream=False, n_prompts=5)


async def test_the_thoughts_of_finished_prompts_are_not_ended() -> None:
    class Ticket:
        done, n_asked = False, 0

        async def end_thoughts(self) -> bool:
            self.n_asked += 1
            return not self.done

    tickets = [Ticket() for _ in range(50)]
    rest = iter(tickets)
    loaded: Any = SimpleNamespace(submit=lambda *_, **__: next(rest))
    completion = ControllableCompletion(loaded, True, ALONE)
    for ticket in tickets:
        completion.submit(Generation(tokens=[1]), lambda _: None)
        ticket.done = ticket is not tickets[-1]
    assert await completion.end_thoughts()
    assert [ticket.n_asked for ticket in tickets] == [0] * 49 + [1]
