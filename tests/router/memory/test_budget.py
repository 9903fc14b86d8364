"""Test placement by memory: which models are evicted or refused, with which numbers, and measured sizes."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_tools import GIB, LifecycleHarness, SizedBudget, router, settle
from llama_corral.common.base.errors import NoCapacity, ServerFault
from llama_corral.common.base.worker_reports import MemoryUsage, WorkerReport
from llama_corral.presets.options.values import AUTO_LIMIT, NO_LIMIT
from llama_corral.router.memory.budget import WorkerMemory
from llama_corral.router.placement.device_split import Need, Split
from llama_corral.router.placement.memory_amounts import Limit, Space
from llama_corral.router.placement.snapshot import PlacementRules
from llama_corral.router.reducer import sequence
from programs import Program, Programs
from router_http import gateway
from router_tools import preset, presets, until
from web_tools import error_of


async def use(r: LifecycleHarness, *names: str) -> None:
    """Load the models one after the other, each with a request that is then served."""
    for name in names:
        client = r.client(name)
        await settle()
        if not client.is_served:
            r.launcher[name].ready()
            await settle()
        await client.finish()


def alive(r: LifecycleHarness) -> set[str]:
    return {worker.name for worker in r.launcher.alive}


async def test_models_are_kept_as_long_as_memory_suffices() -> None:
    async with router("a", "b", "c", models_max=0, memory_budget=SizedBudget(10 * GIB, a=4, b=4, c=4)) as r:
        await use(r, "a", "b")
        client = r.client("c")
        await settle()
        assert alive(r) == {"a", "b"}
        assert r.launcher["a"].stop_asked, "it was used longest ago"
        assert not r.launcher["b"].stop_asked
        r.launcher["a"].leave()
        await settle()
        r.launcher["c"].ready()
        await client.finish()
        assert alive(r) == {"b", "c"}


async def test_one_large_model_is_evicted_rather_than_two_small_ones() -> None:
    sizes = SizedBudget(10 * GIB, a=2, b=2, c=5, d=6)
    async with router("a", "b", "c", "d", models_max=0, memory_budget=sizes) as r:
        await use(r, "a", "b", "c")
        client = r.client("d")
        await settle()
        assert [worker.name for worker in r.launcher.alive if worker.must_go] == ["c"]
        r.launcher["c"].leave()
        await settle()
        r.launcher["d"].ready()
        await client.finish()


async def test_no_model_is_evicted_if_that_does_not_help() -> None:
    """As long as a busy model uses the memory that is needed, idle models are kept."""

    async with router("a", "b", "c", models_max=0, memory_budget=SizedBudget(10 * GIB, a=7, b=2, c=8)) as r:
        await use(r, "b")
        busy = r.client("a")
        await settle()
        r.launcher["a"].ready()
        client = r.client("c")
        await settle()
        assert not any(worker.must_go for worker in r.launcher.alive)
        await busy.finish()
        await settle()
        assert {worker.name for worker in r.launcher.alive if worker.must_go} == {"a"}
        r.launcher["a"].leave()
        await settle()
        r.launcher["c"].ready()
        await client.finish()


async def test_a_model_that_never_fits_is_refused_immediately_with_the_numbers() -> None:
    async with router("a", "b", models_max=0, memory_budget=SizedBudget(10 * GIB, a=4, b=11)) as r:
        await use(r, "a")
        error = await r.client("b").refused()
        assert error.message == ("model 'b' cannot be loaded: it needs 11.0 GiB of memory, and models may use 10.0 GiB")
        assert error.status == 503
        assert alive(r) == {"a"}
        assert not r.launcher["a"].must_go
        with pytest.raises(NoCapacity, match=r"cannot be loaded: it needs 11\.0 GiB"):
            await r.lifecycle.load("b")


async def test_devices_are_counted_separately() -> None:
    half, large = Space(GIB, {"CUDA0": 5 * GIB}), Space(GIB, {"CUDA0": 9 * GIB})
    sizes = SizedBudget(10 * GIB, 8 * GIB, a=half, b=half, c=large)
    async with router("a", "b", "c", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        client = r.client("b")
        await settle()
        assert r.launcher["a"].must_go
        r.launcher["a"].leave()
        await settle()
        r.launcher["b"].ready()
        await client.finish()
        error = await r.client("c").refused()
        assert error.message.endswith("it needs 9.0 GiB on CUDA0, and models may use 8.0 GiB on CUDA0")


def on(*gib: int) -> Space:
    return Space(GIB, {f"CUDA{i}": size * GIB for i, size in enumerate(gib)})


TWO = {"CUDA0": 10 * GIB, "CUDA1": 8 * GIB}


async def test_only_a_model_on_the_full_device_is_evicted() -> None:
    sizes = SizedBudget(10 * GIB, TWO, a=on(0, 6), b=on(6), c=on(6, 1))
    async with router("a", "b", "c", models_max=0, memory_budget=sizes) as r:
        await use(r, "a", "b")
        client = r.client("c")
        await settle()
        assert [worker.name for worker in r.launcher.alive if worker.must_go] == ["b"], "a was used longest ago"
        r.launcher["b"].leave()
        await settle()
        r.launcher["c"].ready()
        await client.finish()


async def test_a_refusal_names_the_device_that_lacks_memory() -> None:
    sizes = SizedBudget(10 * GIB, TWO, a=on(1, 9), b=on(0, 3), c=on(1, 7))
    entries = presets(preset("a"), preset("b", pin=True), preset("c"))
    async with router(presets=entries, models_max=0, memory_budget=sizes) as r:
        error = await r.client("a").refused()
        assert error.message == (
            "model 'a' cannot be loaded: it needs 9.0 GiB on CUDA1, and models may use 8.0 GiB on CUDA1"
        )
        await use(r, "b")
        error = await r.client("c").refused()
        assert error.message.endswith(
            "it needs 7.0 GiB on CUDA1, and models may use 8.0 GiB on CUDA1, "
            "of which pinned models use 3.0 GiB on CUDA1: b"
        )


async def test_a_full_device_does_not_block_a_model_that_does_not_use_it() -> None:
    sizes = SizedBudget(10 * GIB, dict.fromkeys(TWO, AUTO_LIMIT), a=on(5), b=on(0, 5))
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        sizes.free_on = {"CUDA0": -GIB, "CUDA1": 8 * GIB}  # another program uses more than was free
        await use(r, "b")
        assert alive(r) == {"a", "b"}


async def test_layers_are_split_by_the_free_memory_at_the_start() -> None:
    """CUDA1 has the memory that CUDA0 lacks. Split in halves, b would not fit together with a."""

    both = Need(Space(GIB), (Split((GIB,) * 10, 0, ("CUDA0", "CUDA1")),))
    sizes = SizedBudget(10 * GIB, {"CUDA0": 10 * GIB, "CUDA1": 10 * GIB}, a=on(8), b=both, c=on(0, 3))
    async with router("a", "b", "c", models_max=0, memory_budget=sizes) as r:
        await use(r, "a", "b")
        assert alive(r) == {"a", "b"}
        view = r.lifecycle.view("b")
        assert view is not None
        assert view.expected == on(2, 8)
        client = r.client("c")
        await settle()
        assert [worker.name for worker in r.launcher.alive if worker.must_go] == ["b"]
        await client.leave()


async def test_a_start_waits_until_the_device_shows_its_memory_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "RECHECK_S", 0.01)
    sizes = SizedBudget(10 * GIB, TWO, a=on(6), b=on(6))
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        sizes.free_on["CUDA0"] = 2 * GIB
        client = r.client("b")
        await settle()
        r.launcher["a"].leave()
        await settle()
        assert alive(r) == set()
        sizes.free_on["CUDA0"] = 8 * GIB
        await until(lambda: alive(r) == {"b"})
        r.launcher["b"].ready()
        await client.finish()


async def test_memory_of_each_device_that_workers_report_counts() -> None:
    """With real pipes and HTTP: the measured size decides the next placement."""

    entries = [
        preset(name, f"takes={takes}")
        for name, takes in {"a": "CUDA1:6", "b": "CUDA0:6", "c": "CUDA0:5/CUDA1:1", "d": "CUDA1:9"}.items()
    ]
    async with gateway(*entries, memory_budget=SizedBudget(NO_LIMIT, TWO), models_max=0) as g:
        for name in ("d", "c"):
            assert (await g.chat(name)).status_code == 200, "its size is not known yet"
            await g.client.post("/models/unload", json={"model": name})
            await g.becomes(name, "unloaded")
        for name in ("a", "b", "c"):
            assert (await g.chat(name)).status_code == 200
        listed = {entry["id"]: entry for entry in (await g.client.get("/models")).json()["data"]}
        assert [listed[name]["status"]["value"] for name in "abc"] == ["loaded", "unloaded", "loaded"]
        measured = {"host": 1 << 20, "device": 6 * GIB, "devices": {"CUDA0": 5 * GIB, "CUDA1": GIB}}
        assert listed["c"]["memory"]["measured"] == measured
        assert listed["c"]["memory"]["expected"]["devices"] == measured["devices"]
        refused = await g.chat("d")
        assert refused.status_code == 503
        assert "it needs 9.0 GiB on CUDA1, and models may use 8.0 GiB on CUDA1" in error_of(refused)["message"]


async def test_a_load_by_command_evicts_or_is_refused_with_the_numbers() -> None:
    async with router("a", "b", "c", models_max=0, memory_budget=SizedBudget(10 * GIB, a=4, b=4, c=9)) as r:
        await use(r, "a", "b")
        command = asyncio.create_task(r.lifecycle.load("c"))
        await settle()
        assert all(worker.stop_asked for worker in r.launcher.alive)
        for worker in r.launcher.alive:
            worker.leave()
        await command
        r.launcher["c"].ready()
        busy = r.client("c")
        await settle()
        with pytest.raises(ServerFault, match=r"try again later: model 'a' needs 4\.0 GiB"):
            await r.lifecycle.load("a")
        await busy.finish()


async def test_a_start_waits_until_the_system_shows_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after a worker's end the system may not show its memory as free yet. The request is not refused then."""

    monkeypatch.setattr(sequence, "RECHECK_S", 0.01)
    sizes = SizedBudget(AUTO_LIMIT, a=6, b=6)
    sizes.free = 8 * GIB
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        sizes.free = 2 * GIB
        sizes.private = {1: 6 * GIB}
        client = r.client("b")
        await settle()
        r.launcher["a"].leave()
        await settle()
        assert not client.task.done()
        assert alive(r) == set()
        sizes.free = 8 * GIB
        await until(lambda: alive(r) == {"b"})
        r.launcher["b"].ready()
        await client.finish()


async def test_memory_for_a_loading_model_does_not_count_as_free() -> None:
    sizes = SizedBudget(10 * GIB, AUTO_LIMIT, a=on(5), b=on(5))
    sizes.free_on = {"CUDA0": 8 * GIB}
    async with router("a", "b", models_max=0, memory_budget=sizes, rules=PlacementRules(parallel_loads=2)) as r:
        first = r.client("a")
        await settle()
        second = r.client("b")
        await settle()
        assert alive(r) == {"a"}
        assert not second.task.done()
        sizes.free_on = {"CUDA0": 3 * GIB}
        r.launcher["a"].ready()
        await settle()
        assert alive(r) == {"a"}
        await first.finish()
        await settle()
        assert r.launcher["a"].must_go
        await second.leave()


async def test_a_sleeping_model_keeps_its_device_memory_reserved() -> None:
    sizes = SizedBudget(10 * GIB, AUTO_LIMIT, a=on(5), b=on(5))
    sizes.free_on = {"CUDA0": 8 * GIB}
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        r.launcher["a"]._callbacks.on_report(WorkerReport("sleeping"))
        client = r.client("b")
        await settle()
        assert r.launcher["a"].must_go, "both are not to be awake at once"
        await client.leave()


async def test_memory_of_other_programs_does_not_count_as_available() -> None:
    sizes = SizedBudget(AUTO_LIMIT, a=6, b=6)
    sizes.free = 7 * GIB
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        sizes.free, sizes.private = 1 * GIB, {1: 6 * GIB}
        client = r.client("b")
        await settle()
        assert r.launcher["a"].must_go
        await client.leave()


async def test_the_measured_size_replaces_the_estimate() -> None:
    sizes = SizedBudget(10 * GIB, a=4, b=5)
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        client = r.client("a")
        await settle()
        worker = r.launcher["a"]
        worker._callbacks.on_report(WorkerReport("ready", {"id": "a"}, MemoryUsage(6 * GIB)))
        await client.finish()
        view = r.lifecycle.view("a")
        assert view is not None
        assert view.measured == MemoryUsage(6 * GIB)
        assert view.expected is not None
        assert view.expected.host > 6 * GIB
        second = r.client("b")
        await settle()
        assert worker.must_go, "with 4 GiB it could have stayed"
        await second.leave()


async def test_the_growth_of_a_worker_counts() -> None:
    sizes = SizedBudget(10 * GIB, a=4, b=5)
    sizes.private = {1: GIB}
    async with router("a", "b", models_max=0, memory_budget=sizes) as r:
        await use(r, "a")
        sizes.private = {1: 3 * GIB}  # its prompt cache
        client = r.client("b")
        await settle()
        assert r.launcher["a"].must_go
        await client.leave()


def test_the_limit_is_free_memory_plus_that_of_our_workers() -> None:
    sizes = SizedBudget(AUTO_LIMIT, AUTO_LIMIT)
    sizes.free, sizes.free_on, sizes.private = 5 * GIB, {"CUDA0": 3 * GIB}, {7: 2 * GIB}
    workers = [
        WorkerMemory(7, Space(9, {"CUDA0": GIB})),
        WorkerMemory(None, Space(1, {"CUDA0": 1})),
        WorkerMemory(None, Space(1, {"CUDA0": GIB}), is_loaded=False),
    ]
    assert sizes.limit(workers) == Limit(7 * GIB, {"CUDA0": 4 * GIB + 1})
    assert SizedBudget(NO_LIMIT, NO_LIMIT).limit([]) == Limit()


# -- real programs -----------------------------------------------------------------------------------------------------

PRESETS = """
[*]
ctx-size = 2048
[one]
model = {models}/tiny-llama.gguf
[two]
model = {models}/tiny-llama-b.gguf
[huge]
model = {models}/tiny-llama.gguf
ctx-size = 4000000
"""


@pytest.fixture(scope="module")
def real(module_programs: Programs) -> Program:
    return module_programs.gateway("--models-max", "0", "--models-memory", "100M", presets=PRESETS)


def test_real_models_are_loaded_and_evicted_by_their_size(real: Program) -> None:
    def ask(model: str) -> int:
        answer = real.client.post("/completion", json={"model": model, "prompt": "a", "n_predict": 2})
        assert answer.status_code == 200, answer.text
        return answer.status_code

    def models() -> dict[str, dict[str, object]]:
        return {entry["id"]: entry for entry in real.client.get("/models").json()["data"]}

    ask("one")
    ask("two")
    shown = models()
    assert [shown[name]["status"]["value"] for name in ("one", "two")] == ["unloaded", "loaded"]  # type: ignore[index]
    memory = shown["two"]["memory"]
    assert isinstance(memory, dict)
    assert memory["measured"]["host"] > 1 << 20
    assert memory["expected"]["host"] > memory["measured"]["host"]
    refused = real.client.post("/completion", json={"model": "huge", "prompt": "a"})
    assert refused.status_code == 503
    assert "it needs" in refused.json()["error"]["message"]
    assert "models may use 100 MiB" in refused.json()["error"]["message"]
