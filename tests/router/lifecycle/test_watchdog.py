"""Workers that hang are detected and killed, and their requests get the reason; slow workers are not killed."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.worker_reports import HEARTBEAT_S, SignOfLife
from llama_corral.presets.backends import Backend
from llama_corral.router.lifecycle.watchdog import COMPUTING_FACTOR, Liveness, Watchdog, effective_timeout
from llama_corral.router.process.external import CombinedLauncher, health_check_interval
from llama_corral.router.process.health_probe import HealthProbe
from programs import Program, wait_until
from router_http import Gateway, gateway
from router_tools import PATIENCE, fake_launcher, preset
from web_tools import error_of

START = Liveness(0, 0, 0)
TIMEOUT = 300.0


def fed(seconds: int, sign: Callable[[float], SignOfLife]) -> Liveness:
    """Return the state after `seconds` with a heartbeat every 2 s."""
    liveness = START
    for now in range(0, seconds + 1, int(HEARTBEAT_S)):
        liveness = liveness.updated(sign(now), now)
    return liveness


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (lambda now: SignOfLife(), ""),  # idle, or loading
        (lambda now: SignOfLife(busy=True, steps=int(now)), ""),
        (lambda now: SignOfLife(busy=True, steps=3, cpu=now), ""),  # a long batch
        (lambda now: SignOfLife(busy=True, steps=3), "made no progress for"),
        (lambda now: SignOfLife(busy=True, steps=3, cpu=now / 10), "made no progress for"),
    ],
)
def test_reason_for_a_worker_that_sends_heartbeats(sign: Callable[[float], SignOfLife], said: str) -> None:
    why = fed(1000, sign).why_stuck(1000, TIMEOUT)
    assert said in why
    assert bool(why) == bool(said)


def test_a_worker_that_computes_without_progress() -> None:
    end = int(TIMEOUT) * COMPUTING_FACTOR

    def sign(now: float) -> SignOfLife:
        return SignOfLife(busy=True, steps=3, cpu=4 * now)

    assert not fed(end - 10, sign).why_stuck(end - 10, TIMEOUT)
    assert "though it computes" in fed(end + 10, sign).why_stuck(end + 10, TIMEOUT)


def test_a_worker_without_heartbeats() -> None:
    liveness = fed(10, lambda _: SignOfLife())
    assert not liveness.why_stuck(10 + TIMEOUT - 1, TIMEOUT)
    assert "no heartbeat for 300 s" in liveness.why_stuck(10 + TIMEOUT, TIMEOUT)


signs = st.builds(SignOfLife, st.booleans(), st.integers(0, 3), st.floats(0, 1e6))


@given(st.lists(st.tuples(st.floats(0.01, 100), signs), max_size=20), st.floats(0.1, 1000), st.floats(0, 2000))
def test_no_worker_counts_as_hanging_before_stuck_at(
    history: list[tuple[float, SignOfLife]], timeout: float, later: float
) -> None:
    liveness, now = START, 0.0
    for delay, sign in history:
        now += delay
        liveness = liveness.updated(sign, now)
    assert liveness.progressed_at <= liveness.computed_at <= liveness.heard_at
    assert liveness.stuck_at(timeout) <= now + timeout
    looked = now + later
    if abs(looked - liveness.stuck_at(timeout)) > 1e-6:
        assert bool(liveness.why_stuck(looked, timeout)) == (looked > liveness.stuck_at(timeout))


async def test_a_router_that_was_blocked_itself_kills_no_worker() -> None:
    now, ended = 0.0, []
    dog: Watchdog[str] = Watchdog(10, lambda: now, lambda name, _: ended.append(name))
    dog.record("a", {})
    now = 500.0
    dog.check()
    dog.record("a", {})  # a heartbeat that was in the pipe in the meantime
    now = 504.0
    dog.check()
    assert not ended
    now = 520.0
    dog.check()
    now = 524.0
    dog.check()
    assert ended == ["a"]
    dog.check()
    assert ended == ["a"]


def test_a_too_short_timeout_is_raised() -> None:
    assert [effective_timeout(seconds) for seconds in (0, 0.1, 300)] == [0, 3 * HEARTBEAT_S, 300]


async def test_a_stopped_process_is_replaced() -> None:
    async with gateway(preset("m", "beat=0.05,pause=0.05,chunks=1000"), worker_timeout=0.5) as g:
        body = {"model": "m", "stream": True}
        async with g.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            pid = int((await g.worker_of("m"))["pid"])
            os.kill(pid, signal.SIGSTOP)
            waiting = asyncio.create_task(g.chat("m"))
            async with asyncio.timeout(PATIENCE):
                last = [line async for line in lines if line][-1]
        why = "it was killed because it hung: its process sent no heartbeat"
        assert why in json.loads(last.removeprefix("data: "))["error"]["message"]
        refused = await waiting
        assert refused.status_code == 502
        assert why in error_of(refused)["message"]
        status = await g.status("m")
        assert status["failed"]
        assert why in status["error"]
        assert (await g.worker_of("m"))["pid"] != pid


async def test_an_engine_without_progress_is_replaced() -> None:
    async with gateway(preset("m", "beat=0.05,stuck"), worker_timeout=0.5) as g:
        refused = await g.chat("m")
        assert refused.status_code == 502
        assert "its requests made no progress" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("model", "timeout"),
    [("beat=0.05,load=1.5", 0.4), ("beat=0.05,think=1.5", 0.4), ("think=1.5", 0.4), ("beat=0.05,stuck", 0)],
)
async def test_a_worker_that_is_only_slow_is_not_killed(model: str, timeout: float) -> None:
    async with gateway(preset("m", model), worker_timeout=timeout) as g:
        if timeout:
            assert (await g.chat("m")).status_code == 200
            return
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await g.chat("m")
        assert (await g.status("m"))["value"] == "loaded"


def test_a_real_worker_that_is_stopped_is_replaced(start_gateway: Callable[..., Program]) -> None:
    presets = "[tiny]\nmodel = {models}/tiny-llama.gguf\nctx-size = 256\n"
    gateway = start_gateway("--worker-timeout", "6", presets=presets)
    ask = {"model": "tiny", "prompt": "a", "n_predict": 4}
    assert gateway.client.post("/completion", json=ask).status_code == 200
    (pid,) = {int(line.split("[")[1].split("/")[0]) for line in gateway.log_text.splitlines() if "/tiny] " in line}
    os.kill(pid, signal.SIGSTOP)
    refused = gateway.client.post("/completion", json=ask)
    assert refused.status_code == 502
    assert "no heartbeat" in refused.json()["error"]["message"]
    wait_until(lambda: gateway.client.post("/completion", json=ask).status_code == 200, "its successor")


# -- other programs --------------------------------------------------------------------------------------------------


def silent(now: float, cpu: float = 0.0) -> SignOfLife:
    return SignOfLife(busy=True, steps=3, cpu=cpu * now, complaint="GET /health was not answered")


def test_a_program_that_does_not_answer_hangs_unless_it_may_be_busy() -> None:
    assert "GET /health was not answered for 400 s" in fed(400, silent).why_stuck(400, TIMEOUT)
    assert not fed(400, lambda now: silent(now, cpu=1)).why_stuck(400, TIMEOUT)
    liveness = START
    for now in range(0, 400, 2):
        liveness = liveness.updated(silent(now), now, has_requests=True)
    assert not liveness.why_stuck(400, TIMEOUT)
    for now in range(400, 1900, 2):
        liveness = liveness.updated(silent(now), now, has_requests=True)
    assert "though it computes" in liveness.why_stuck(1900, TIMEOUT)
    assert not liveness.updated(SignOfLife(), 1900).why_stuck(1900, TIMEOUT)


async def test_a_program_that_sends_responses_need_not_answer_health_checks() -> None:
    now, ended = 0.0, []
    dog: Watchdog[str] = Watchdog(10, lambda: now, lambda name, _: ended.append(name))
    for now in range(200):  # noqa: B007
        dog.record("a", {"busy": True, "steps": 1}, quiet_for=0.5)
        dog.check()
    assert not ended
    for now in range(200, 220):  # noqa: B007
        dog.record("a", {"busy": True, "steps": 1})
        dog.check()
    assert ended == ["a"]


def test_interval_of_health_checks() -> None:
    assert [health_check_interval(seconds) for seconds in (0, 6, 100, 300, 3000)] == [0, 2, 10, 30, 30]


def signs_of(checkup: HealthProbe, n: int) -> list[SignOfLife]:
    found: list[SignOfLife] = []
    while len(found) < n:
        reads, writes = checkup.descriptors
        select.select(reads, writes, [], checkup.seconds_left)
        if sign := checkup.advance():
            found.append(sign)
    return found


def test_answers_to_a_health_check() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server, ThreadPoolExecutor() as pool:
        pool.submit(server.serve_forever)
        checkup = HealthProbe(("127.0.0.1", server.server_port), "/health", interval=0.2)
        signs = signs_of(checkup, 3)
        server.shutdown()
    assert [(sign.busy, sign.steps) for sign in signs] == [(False, 0), (False, 1), (False, 2)]
    assert signs_of(checkup, 2)[-1].busy, "no server listens any more"
    checkup.close()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        checkup = HealthProbe(deaf.getsockname(), "/health", interval=0.02)
        signs = signs_of(checkup, 3)
        checkup.close()
    assert [(sign.busy, sign.steps) for sign in signs] == [(False, 0), (True, 0), (True, 0)]
    assert signs[-1].complaint == "GET /health was not answered"


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    def log_message(self, format: str, *args: object) -> None:
        pass


def backend_gateway(*flags: str, timeout: float = 0.5, model_name: str = "") -> AbstractAsyncContextManager[Gateway]:
    file = str(Path(__file__).resolve().parents[2] / "support" / "fake_backend.py")
    program = Backend((sys.executable, file, "${PORT}", *flags), model_name=model_name)
    launchers = CombinedLauncher(fake_launcher("spawn"), os.environ, ask_every=0.05)
    return gateway(preset("m", backend=program), launcher=launchers, worker_timeout=timeout)


async def test_a_program_that_hangs_is_replaced() -> None:
    async with backend_gateway() as g:
        pid = (await g.chat("m")).json()["pid"]
        os.kill(pid, signal.SIGSTOP)
        async with g.lifecycle.subscribe() as listener, asyncio.timeout(PATIENCE):
            while not (status := await g.status("m")).get("failed"):
                assert await listener.get() is not None
        assert "it was killed because it hung: GET /health was not answered for" in status["error"]
        assert (await g.chat("m")).json()["pid"] != pid


async def test_the_name_in_an_ordinary_chat_for_a_program_is_changed_without_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To start a thread takes longer than the change; only a large body is given to one."""
    async with backend_gateway(model_name="theirs") as g:
        await g.chat("m")
        works: list[object] = []
        to_thread = asyncio.to_thread

        async def count(work: Callable[..., object], *args: object) -> object:
            works.append(work)
            return await to_thread(work, *args)

        monkeypatch.setattr(asyncio, "to_thread", count)
        for size, n_works in ((32_000, 0), (200_000, 1)):
            response = await g.chat("m", messages=[{"role": "user", "content": "y" * size}])
            assert response.json()["body"]["model"] == "theirs"
            assert len(works) == n_works


@pytest.mark.parametrize("flags", [("sick",), ("single", "pause=0.6")])
async def test_a_program_that_refuses_or_is_busy_is_not_killed(flags: tuple[str, ...]) -> None:
    async with backend_gateway(*flags) as g:
        pid = (await g.chat("m")).json()["pid"]
        body = {"model": "m", "stream": True}
        async with g.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert [line async for line in response.aiter_lines() if line][-1] == "data: [DONE]"
        assert (await g.chat("m")).json()["pid"] == pid
