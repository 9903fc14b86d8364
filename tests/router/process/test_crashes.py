"""Test the back-off of models whose workers keep failing, what resets it, and the reported exit causes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lifecycle_tools import settle
from llama_corral.common.base.errors import ApiError, ModelBackingOff, ServerFault
from llama_corral.common.web.application import error_response
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.models import exit_reasons
from llama_corral.router.models.backoff import MAX_PAUSE_S, RESET_AFTER_S, FailureBackoff, pause_after
from llama_corral.router.models.exit_reasons import exit_cause, kernel_oom_kills
from memory_workers import InProcessLauncher
from router_http import gateway
from router_tools import preset, presets


class Router:
    def __init__(self, *, models_max: int = 1) -> None:
        self.now = 100.0
        self.launcher = InProcessLauncher()
        entries = presets(preset("a"), preset("b"))
        self.lifecycle = Lifecycle(entries, self.launcher, models_max=models_max, autoload=True, clock=lambda: self.now)

    def ask(self, model: str = "a") -> asyncio.Task[None]:
        async def request() -> None:
            async with self.lifecycle.lease(model):
                pass

        return asyncio.create_task(request())

    def hold(self, model: str = "a") -> asyncio.Task[None]:
        """Start a request that is not answered."""

        async def request() -> None:
            async with self.lifecycle.lease(model):
                await asyncio.Event().wait()

        return asyncio.create_task(request())

    async def fail(self, *, ready: bool = False, idle: float = 0.0) -> ApiError | None:
        """Let one load attempt fail, and return the error of its request."""
        started = len(self.launcher.workers)
        request = self.ask() if not ready else None
        if ready:
            await self.lifecycle.load("a")
        await settle()
        assert len(self.launcher.workers) == started + 1
        if ready:
            self.launcher["a"].ready()
            await settle()
            self.now += idle
        self.launcher["a"].exit(-signal.SIGSEGV)
        await settle()
        return await told(request) if request else None

    @property
    def pause(self) -> float:
        view = self.lifecycle.view("a")
        assert view is not None
        return view.pause


async def told(request: asyncio.Task[None]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await request
    return caught.value


@asynccontextmanager
async def router(**given_options: int) -> AsyncIterator[Router]:
    made = Router(**given_options)
    yield made
    closing = asyncio.create_task(made.lifecycle.close())
    await settle()
    for worker in made.launcher.alive:
        worker.leave()
    await closing


async def test_the_second_failure_in_a_row_begins_a_pause_that_doubles() -> None:
    async with router() as r:
        for expected in (0, 1, 2, 4, 8, 16, 32, 60, 60):
            assert isinstance(await r.fail(), ServerFault)
            assert r.pause == expected
            if expected:
                error = await told(r.ask())
                assert isinstance(error, ModelBackingOff)
                assert (error.status, error.retry_after) == (503, expected)
                assert f"not loaded again for {expected} s" in error.message
                assert "SIGSEGV" in error.message
                assert error_response(error).headers["Retry-After"] == str(expected)
            r.now += expected


async def test_other_models_are_served_during_the_pause() -> None:
    async with router() as r:
        await r.fail()
        await r.fail()
        other = r.ask("b")
        await settle()
        r.launcher["b"].ready()
        await other


async def test_requests_for_the_next_attempt_are_refused_if_there_is_none() -> None:
    """The second request arrives after the start of the load that fails, so it would wait for the next attempt."""

    async with router() as r:
        await r.fail()
        first = r.ask()
        await settle()
        second = r.ask()
        await settle()
        r.launcher["a"].exit(1)
        assert {type(await told(request)) for request in (first, second)} == {ServerFault}
        assert r.lifecycle.views()[0].waiting == 0
        assert len(r.launcher.workers) == 2


async def test_an_answered_request_resets_the_back_off() -> None:
    async with router() as r:
        await r.fail()
        await r.fail()
        r.now += 1
        request = r.ask()
        await settle()
        r.launcher["a"].ready()
        await request
        assert r.lifecycle.views()[0].failures == 0
        r.launcher["a"].exit(1)
        assert (r.lifecycle.views()[0].failures, r.pause) == (1, 0)


async def test_a_request_whose_client_disconnected_does_not_reset_the_back_off() -> None:
    async with router() as r:
        for expected in (0, 1, 2):
            r.now += 2
            leaving = r.hold()
            await settle()
            r.launcher["a"].ready()
            await settle()
            leaving.cancel()
            await settle()
            r.launcher["a"].exit(-signal.SIGSEGV)
            await settle()
            assert r.pause == expected


async def test_each_refusal_in_a_pause_gives_the_remaining_time() -> None:
    async with router() as r:
        for pause in (0, 1, 2, 4):
            await r.fail()
            r.now += pause
        await r.fail()
        for passed, left in ((0, 8), (0.4, 8), (0.6, 7), (6.9, 1), (0.05, 1)):
            r.now += passed
            error = await told(r.ask())
            assert (error.retry_after, f"not loaded again for {left} s: " in error.message) == (left, True)
            assert "failed 5 times in a row" in error.message
            assert "SIGSEGV" in error.message
        r.now += 0.05
        assert r.pause < 1e-9
        attempt = [r.ask(), r.ask()]
        await settle()
        r.launcher["a"].exit(1)
        for request in attempt:
            assert isinstance(await told(request), ServerFault), "one attempt for all waiting requests"
        assert r.pause == 16


async def test_only_a_lasting_ready_state_resets_the_back_off() -> None:
    async with router() as r:
        await r.fail(ready=True)
        await r.fail(ready=True)
        assert r.pause == 1
        await r.fail(ready=True, idle=RESET_AFTER_S)
        assert (r.lifecycle.views()[0].failures, r.pause) == (1, 0)


async def test_only_a_changed_preset_resets_the_back_off_at_a_reload() -> None:
    async with router() as r:
        await r.fail()
        await r.fail()
        await r.lifecycle.reload(presets(preset("a"), preset("b", "other")))
        assert isinstance(await told(r.ask()), ModelBackingOff)
        await r.lifecycle.reload(presets(preset("a", "mended"), preset("b")))
        assert r.pause == 0
        request = r.ask()
        await settle()
        r.launcher["a"].ready()
        await request


async def test_a_load_by_command_ignores_the_back_off() -> None:
    async with router() as r:
        await r.fail()
        await r.fail()
        waiting = await told(r.ask())
        assert isinstance(waiting, ModelBackingOff)
        await r.lifecycle.load("a")
        request = r.ask()
        r.launcher["a"].ready()
        await request


async def test_an_unload_by_command_is_no_failure() -> None:
    async with router() as r:
        for _ in range(3):
            await r.lifecycle.load("a")
            await r.lifecycle.unload("a")
            r.launcher["a"].leave()
            await settle()
        assert (r.lifecycle.views()[0].failures, r.pause) == (0, 0)


async def test_a_process_that_cannot_be_created_counts_as_a_failure() -> None:
    async with router() as r:
        r.launcher.refusal = OSError(11, "no more processes")
        for _ in range(2):
            assert isinstance(await told(r.ask()), ServerFault)
        assert isinstance(await told(r.ask()), ModelBackingOff)


async def test_a_real_process_that_keeps_dying_is_not_restarted_immediately() -> None:
    async with gateway(preset("m", "die-loading"), preset("ok")) as g:
        statuses = [(await g.chat("m")).status_code for _ in range(3)]
        assert statuses == [500, 500, 503]
        response = await g.chat("m")
        assert "cannot go on: no reason" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "1"
        status = await g.status("m")
        assert (status["failed"], status["failures"]) == (True, 2)
        assert 0 < status["retry_in"] <= 1
        assert (await g.chat("ok")).status_code == 200


async def test_a_pause_is_reported_in_each_dialect_and_an_edit_ends_it() -> None:
    now = 100.0
    async with gateway(preset("m", "die-loading"), clock=lambda: now) as g:
        for pause in (0, 1, 2, 4):
            assert (await g.chat("m")).status_code == 500
            now += pause
        assert (await g.chat("m")).status_code == 500
        now += 0.7
        for path, code in (("/v1/chat/completions", 503), ("/v1/messages", 529), ("/api/chat", 503)):
            response = await g.client.post(path, json={"model": "m", "stream": True})
            assert (response.status_code, response.headers["retry-after"]) == (code, "8")
            assert "failed 5 times in a row and is not loaded again for 8 s: " in response.text
            assert "cannot go on: no reason" in response.text
            now += 0.1
        assert (await g.client.get("/props", params={"model": "m"})).status_code == 503
        status = await g.status("m")
        assert (status["value"], status["failed"], status["failures"]) == ("unloaded", True, 5)
        assert (status["retry_in"], "cannot go on: no reason" in status["error"]) == (7.0, True)
        g.sources["m"] = preset("m", "chunks=2")
        await g.client.get("/models?reload=1")
        assert "failed" not in await g.status("m")
        assert (await g.chat("m")).status_code == 200


async def test_a_worker_killed_by_the_oom_killer_is_reported_to_all_clients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "vmstat"
    file.write_text("oom_kill 1\n")
    monkeypatch.setattr(exit_reasons, "VMSTAT", file)

    async with gateway(preset("m", "die-streaming")) as g:
        assert (await g.chat("m")).status_code == 200
        file.write_text("oom_kill 2\n")
        told = (await g.events_of("m"))[-1]["error"]
        assert "out of memory: its process was ended by SIGKILL" in told["message"]
        status = await g.status("m")
        assert (status["failed"], status["exit_code"]) == (True, 1)
        assert "out of memory" in status["error"]
        assert (await g.chat("m")).status_code == 200, "the next request has a new one"


# -- pure parts ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_pauses_grow_up_to_a_limit(count: int) -> None:
    assert pause_after(count) <= pause_after(count + 1) <= MAX_PAUSE_S


@example([(0.0, None)] * 9 + [(241.48405463777166, None)])  # 60 s later minus now is more than 60 s
@given(st.lists(st.tuples(st.floats(0, 1000), st.none() | st.floats(0, 200))))
def test_a_pause_always_ends(steps: list[tuple[float, float | None]]) -> None:
    faults, now = FailureBackoff(), 0.0
    for passed, ready_for in steps:
        now += passed
        faults = faults.after_failure(now, ready_for)
        assert 0 <= faults.pause(now) <= MAX_PAUSE_S
        assert faults.pause(now + MAX_PAUSE_S) == 0
        assert faults.refusal("m", "why", now).retry_after == -(-faults.pause(now) // 1)


@pytest.mark.parametrize(
    ("code", "lines", "kills", "said"),
    [
        (-9, (), 1, "out of memory: its process was ended by SIGKILL"),
        (
            -9,
            (),
            0,
            "it was killed by someone, or by the kernel because memory ran out: its process was ended by SIGKILL",
        ),
        (-11, ("a",), 5, "it crashed: its process was ended by SIGSEGV; its last lines: a"),
        (-6, ("ggml_backend_cuda: CUDA error: out of memory", "x"), 0, "out of memory: "),
        (1, ("failed to allocate buffer of size 1",), 0, "out of memory: its process exited with code 1"),
        (-6, ("ggml.c:12: GGML_ASSERT(x) failed", "backtrace"), 0, "ggml.c:12: GGML_ASSERT(x) failed: its process"),
        (-4, (), 0, "llama.cpp was built for another processor, or by a compiler that breaks its AMX code"),
        (-77, (), 0, "its process was ended by signal 77"),
        (2, ("x",), 0, "its process exited with code 2; its last lines: x"),
    ],
)
def test_exit_causes(code: int, lines: tuple[str, ...], kills: int, said: str) -> None:
    assert exit_cause(code, lines, kills).startswith(said)


def test_the_kernels_counter_of_oom_kills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "vmstat"
    monkeypatch.setattr(exit_reasons, "VMSTAT", file)
    assert kernel_oom_kills() == 0
    file.write_text("nr_free_pages 1\noom_kill 12\nother_oom_kill 3\n")
    assert kernel_oom_kills() == 12
