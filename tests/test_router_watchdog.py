"""Workers that hang: found, ended, and their requests told why; and those that only take long, which are left alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.presets.control import HEARTBEAT_S, SignOfLife
from llama_corral.router.watchdog import COMPUTING_FACTOR, Pulse, Watchdog, least_timeout
from programs import Program, wait_until
from router_http import error_of, gateway
from router_tools import PATIENCE, preset, run

START = Pulse(0, 0, 0)
TIMEOUT = 300.0


def fed(seconds: int, sign: Callable[[float], SignOfLife]) -> Pulse:
    """After so many seconds with a sign of life every two."""
    pulse = START
    for now in range(0, seconds + 1, int(HEARTBEAT_S)):
        pulse = pulse.after(sign(now), now)
    return pulse


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (lambda now: SignOfLife(), ""),  # idle, or loading
        (lambda now: SignOfLife(busy=True, steps=int(now)), ""),
        (lambda now: SignOfLife(busy=True, steps=3, cpu=now), ""),  # a long batch
        (lambda now: SignOfLife(busy=True, steps=3), "did not get on for"),
        (lambda now: SignOfLife(busy=True, steps=3, cpu=now / 10), "did not get on for"),
    ],
)
def test_a_worker_that_says_what_it_does(sign: Callable[[float], SignOfLife], said: str) -> None:
    why = fed(1000, sign).why_stuck(1000, TIMEOUT)
    assert said in why
    assert bool(why) == bool(said)


def test_one_that_computes_without_end() -> None:
    end = int(TIMEOUT) * COMPUTING_FACTOR

    def sign(now: float) -> SignOfLife:
        return SignOfLife(busy=True, steps=3, cpu=4 * now)

    assert not fed(end - 10, sign).why_stuck(end - 10, TIMEOUT)
    assert "though it computes" in fed(end + 10, sign).why_stuck(end + 10, TIMEOUT)


def test_one_that_says_nothing() -> None:
    pulse = fed(10, lambda _: SignOfLife())
    assert not pulse.why_stuck(10 + TIMEOUT - 1, TIMEOUT)
    assert "no sign of life for 300 s" in pulse.why_stuck(10 + TIMEOUT, TIMEOUT)


signs = st.builds(SignOfLife, st.booleans(), st.integers(0, 3), st.floats(0, 1e6))


@given(st.lists(st.tuples(st.floats(0.01, 100), signs), max_size=20), st.floats(0.1, 1000), st.floats(0, 2000))
def test_nobody_is_stuck_before_it_is_due(
    history: list[tuple[float, SignOfLife]], timeout: float, later: float
) -> None:
    pulse, now = START, 0.0
    for delay, sign in history:
        now += delay
        pulse = pulse.after(sign, now)
    assert pulse.moved <= pulse.computed <= pulse.heard
    assert pulse.due(timeout) <= now + timeout
    looked = now + later
    if abs(looked - pulse.due(timeout)) > 1e-6:
        assert bool(pulse.why_stuck(looked, timeout)) == (looked > pulse.due(timeout))


def test_a_router_that_was_held_up_itself_blames_nobody() -> None:
    async def check() -> None:
        now, ended = 0.0, []
        dog: Watchdog[str] = Watchdog(10, lambda: now, lambda who, _: ended.append(who))
        dog.note("a", {})
        now = 500.0
        dog.check()
        dog.note("a", {})  # what lay in the pipe meanwhile
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

    run(check())


def test_too_short_a_time_is_made_long_enough() -> None:
    assert [least_timeout(seconds) for seconds in (0, 0.1, 300)] == [0, 3 * HEARTBEAT_S, 300]


def test_a_stopped_process_is_replaced() -> None:
    async def check() -> None:
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
            why = "it was ended because it was stuck: its process gave no sign of life"
            assert why in json.loads(last.removeprefix("data: "))["error"]["message"]
            refused = await waiting
            assert refused.status_code == 502
            assert why in error_of(refused)["message"]
            status = await g.status("m")
            assert status["failed"]
            assert why in status["error"]
            assert (await g.worker_of("m"))["pid"] != pid

    run(check())


def test_an_engine_that_does_not_get_on_is_replaced() -> None:
    async def check() -> None:
        async with gateway(preset("m", "beat=0.05,stuck"), worker_timeout=0.5) as g:
            refused = await g.chat("m")
            assert refused.status_code == 502
            assert "its requests did not get on" in error_of(refused)["message"]

    run(check())


@pytest.mark.parametrize(
    ("model", "timeout"),
    [("beat=0.05,load=1.5", 0.4), ("beat=0.05,think=1.5", 0.4), ("think=1.5", 0.4), ("beat=0.05,stuck", 0)],
)
def test_whoever_only_takes_long_is_left_alone(model: str, timeout: float) -> None:
    async def check() -> None:
        async with gateway(preset("m", model), worker_timeout=timeout) as g:
            if timeout:
                assert (await g.chat("m")).status_code == 200
                return
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await g.chat("m")
            assert (await g.status("m"))["value"] == "loaded"

    run(check())


def test_the_real_worker_stopped(start_gateway: Callable[..., Program]) -> None:
    presets = "[tiny]\nmodel = {models}/tiny-llama.gguf\nctx-size = 256\n"
    gateway = start_gateway("--worker-timeout", "6", presets=presets)
    ask = {"model": "tiny", "prompt": "a", "n_predict": 4}
    assert gateway.client.post("/completion", json=ask).status_code == 200
    (pid,) = {int(line.split("[")[1].split("/")[0]) for line in gateway.log_text.splitlines() if "/tiny] " in line}
    os.kill(pid, signal.SIGSTOP)
    refused = gateway.client.post("/completion", json=ask)
    assert refused.status_code == 502
    assert "no sign of life" in refused.json()["error"]["message"]
    wait_until(lambda: gateway.client.post("/completion", json=ask).status_code == 200, "its successor")
