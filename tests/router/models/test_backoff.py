"""The lifecycle with real processes that fail in several ways."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from llama_corral.common.base.errors import ServerFault
from llama_corral.presets.preset import Preset
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from router_tools import KINDS, TESTS, Kind, fake_launcher, is_alive, preset, presets, until

every_kind = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def lifecycle(kind: Kind, *entries: Preset, models_max: int = 1) -> AsyncIterator[Lifecycle]:
    made = Lifecycle(presets(*entries), fake_launcher(kind), models_max=models_max, autoload=True)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def post(endpoint: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(endpoint)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    try:
        writer.write(head.encode() + content)
        answer = await reader.read()
    finally:
        writer.close()
    value: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return value


@every_kind
async def test_worker_that_exits_while_loading(kind: Kind) -> None:
    async with lifecycle(kind, preset("a", "die-loading"), preset("b")) as made:
        with pytest.raises(ServerFault, match=r"failed to load: its process exited with code 3; .*cannot go on"):
            async with made.lease("a"):
                pass
        view = made.view("a")
        assert view is not None
        assert (view.status, view.is_failed, view.exit_code) == ("unloaded", True, 3)
        assert "about to fall" in view.last_lines
        async with made.lease("b") as lease:
            assert (await post(lease.endpoint, "/tokenize", {"content": "hi"}))["tokens"] == [104, 105]


@every_kind
async def test_worker_that_ignores_exit_is_killed_with_its_group(kind: Kind) -> None:
    stubborn = preset("a", "ignore-exit,grandchild", stop_timeout=0.2)
    async with lifecycle(kind, stubborn, preset("b")) as made:
        async with made.lease("a"):
            pid = pid_of(made, "a")
        async with made.lease("b"):
            assert not is_alive(pid)
        view = made.view("a")
        assert view is not None
        assert (view.is_failed, view.exit_code) == (True, 1)
        grandchild = next(int(line.split()[1]) for line in view.last_lines if line.startswith("grandchild"))
        await until(lambda: not is_alive(grandchild))


@every_kind
async def test_worker_that_floods_its_log_delays_no_other(kind: Kind) -> None:
    async with lifecycle(kind, preset("a", "flood=20000"), preset("b"), models_max=2) as made:

        async def ask(model: str) -> None:
            async with made.lease(model) as lease:
                assert "tokens" in await post(lease.endpoint, "/tokenize", {"content": "x"})

        await asyncio.gather(ask("a"), ask("b"))


@every_kind
async def test_hundred_clients_for_three_models_with_room_for_one(kind: Kind) -> None:
    async with lifecycle(kind, *(preset(name) for name in "abc")) as made:

        async def ask(number: int) -> str:
            model = "abc"[number % 3]
            async with made.lease(model) as lease:
                answer = await post(lease.endpoint, "/echo", {"number": number})
                assert answer["worker"]["name"] == model
                return str(json.loads(answer["body"])["number"])

        answers = await asyncio.gather(*(ask(number) for number in range(100)))
        assert answers == [str(number) for number in range(100)]
        assert sum(view.is_running for view in made.views()) == 1


@every_kind
async def test_clients_that_disconnect_leave_nothing_behind(kind: Kind) -> None:
    async with lifecycle(kind, *(preset(name, "load=0.05") for name in "abc")) as made:

        async def ask(number: int) -> None:
            async with asyncio.timeout(0.02 * (number % 10)), made.lease("abc"[number % 3]) as lease:
                await post(lease.endpoint, "/echo", {})

        await asyncio.gather(*(ask(number) for number in range(60)), return_exceptions=True)
        assert all(view.leases == view.waiting == 0 for view in made.views())
        async with made.lease("c"):
            pass


def pid_of(made: Lifecycle, model: str) -> int:
    view = made.view(model)
    assert view is not None
    assert view.pid is not None
    return view.pid


# -- the router is killed ----------------------------------------------------------------------------------------------

SMALL_ROUTER = """
import asyncio, sys
from router_tools import fake_launcher, preset, presets
from llama_corral.router.lifecycle.lifecycle import Lifecycle

async def main():
    entries = presets(preset("a", "ignore-exit"), preset("b", "never-ready"))
    lifecycle = Lifecycle(entries, fake_launcher(sys.argv[1]), models_max=0, autoload=True)
    await lifecycle.start()
    await lifecycle.load("b")
    async with lifecycle.lease("a"):
        while any(view.pid is None for view in lifecycle.views()):
            await asyncio.sleep(0.01)
        print(*(view.pid for view in lifecycle.views()), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@every_kind
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a worker that loads notices later")
async def test_no_worker_outlives_a_killed_router(kind: Kind) -> None:
    command = [sys.executable, "-c", SMALL_ROUTER, kind]
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ) as router:
        assert router.stdout is not None
        workers = [int(pid) for pid in router.stdout.readline().split()]
        assert len(workers) == 2
        assert all(is_alive(pid) for pid in workers)
        family = workers + children_of(router.pid)
        router.send_signal(signal.SIGKILL)
        router.wait()

    await until(lambda: not any(is_alive(pid) for pid in family))


def children_of(pid: int) -> list[int]:
    """Return the child processes: the zygote, if there is one."""
    return [process.pid for process in psutil.Process(pid).children()]
