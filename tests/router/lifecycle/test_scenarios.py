"""Known failures of similar programs, tested on the router with fake workers. SCENARIOS.md lists them."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from lifecycle_tools import router, settle
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.web import listen
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.sources import load_presets
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.memory.host import private_bytes
from llama_corral.router.process.launcher import Launcher, LaunchSpec
from router_http import Gateway, gateway
from router_tools import KINDS, PATIENCE, Kind, Recorder, fake_launcher, is_alive, preset, until
from web_tools import error_of

every_kind = pytest.mark.parametrize("kind", KINDS)
ROUTER = Path(inspect.getfile(Lifecycle)).parent


# -- lifecycle races ---------------------------------------------------------------------------------------------------


async def test_a_request_at_the_moment_its_idle_model_is_unloaded() -> None:
    """The worker was just asked to exit, has perhaps exited already, or will soon be asked: a new one serves."""

    async with gateway(preset("m")) as g:
        pids = set()
        for turn in range(20):
            pids.add((await g.worker_of("m"))["pid"])
            g.lifecycle.unload_when_idle("m")
            for _ in range(turn):
                await asyncio.sleep(0)
            assert (await g.chat("m")).status_code == 200
        assert len(pids) == 20


async def test_two_models_that_wait_for_one_victim() -> None:
    """The first gets the place of the victim, the second gets the next free place."""

    async with router("idle", "busy", "first", "second", models_max=2) as r:
        await r.up("idle", "busy")
        holder = r.client("busy")
        await settle()
        first, second = r.client("first"), r.client("second")
        await settle()
        assert r.launcher["idle"].must_go
        r.launcher["idle"].leave()
        await settle()
        r.launcher["first"].ready()
        await settle()
        assert first.is_served
        assert r.status("second") == "unloaded"
        assert not r.launcher["busy"].must_go
        await first.finish()
        await settle()
        assert r.launcher["first"].must_go, "the idle one, and no longer the first victim"
        r.launcher["first"].leave()
        await settle()
        r.launcher["second"].ready()
        await settle()
        assert second.is_served
        await second.finish()
        await holder.finish()


async def test_an_unload_ends_streams_of_a_worker_that_hangs() -> None:
    """The unload takes no longer than the stop-timeout, and the stream ends with an error that has the reason."""

    stuck = preset("m", "ignore-exit,chunks=1000,pause=100", stop_timeout=0.2)
    async with gateway(stuck) as g:
        stream = asyncio.create_task(g.events_of("m"))
        await until(lambda: any(view.leases for view in g.lifecycle.views()))
        async with asyncio.timeout(PATIENCE):
            assert (await g.client.post("/models/unload", json={"model": "m"})).status_code == 200
            assert "in the middle of its answer" in (await stream)[-1]["error"]["message"]
        await g.becomes("m", "unloaded")


# -- processes ---------------------------------------------------------------------------------------------------------


@every_kind
async def test_a_grandchild_that_keeps_the_log_open_blocks_nothing(kind: Kind) -> None:
    """It has left the worker's process group, so it outlives the worker and keeps its end of the pipe open."""

    launcher = fake_launcher(kind)
    recorder = Recorder()
    worker = launcher.launch(LaunchSpec("m", ("--model", "stray", "--alias", "m")), recorder.callbacks)
    await recorder.state("ready")
    await until(lambda: any("stray" in line for line in worker.last_lines))
    stray = int(next(line for line in worker.last_lines if "stray" in line).split()[1])
    try:
        worker.stop()
        assert await recorder.exited() == 0
        assert is_alive(stray)
        await launcher.close()
    finally:
        os.kill(stray, 9)


@every_kind
async def test_sixty_workers_leak_no_resources(kind: Kind) -> None:
    async def cycle(launcher: Launcher, count: int) -> None:
        for number in range(count):
            recorder = Recorder()
            flags = "" if number % 3 else "never-ready"
            worker = launcher.launch(LaunchSpec("m", ("--model", flags, "--alias", "m")), recorder.callbacks)
            if flags:
                worker.kill()
            else:
                await recorder.state("ready")
                worker.stop()
            await recorder.exited()

    def counts() -> tuple[int, int, list[str]]:
        me = psutil.Process()
        zombies = [child.name() for child in me.children(True) if child.status() == psutil.STATUS_ZOMBIE]
        return me.num_fds(), threading.active_count(), zombies

    n_threads = max(2, threading.active_count())  # earlier tests of this process may have left threads that go on
    launcher = fake_launcher(kind)
    launcher.start()
    await cycle(launcher, 3)
    await until(lambda: threading.active_count() <= n_threads)
    before, memory = counts(), private_bytes(os.getpid())
    await cycle(launcher, 30 if kind == "spawn" else 60)
    await until(lambda: counts() == before)
    assert private_bytes(os.getpid()) - memory < 8 << 20
    await launcher.close()


def test_the_router_loads_no_device_library() -> None:
    """A driver's context uses hundreds of megabytes of the device, and a process with one cannot be forked."""
    program = "import sys, llama_corral.router.cli, llama_corral.router.service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "llama_corral.router.app" in loaded
    assert not {"llama_cpp", "numpy", "torch"} & loaded


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_idle_connections_outlive_those_of_client_pools() -> None:
    """OpenAI's and Anthropic's clients close idle connections after 5 s; if we closed first, a request could fail."""
    assert listen.KEEPALIVE_S > 5


async def test_a_client_that_is_gone_without_closing_its_connection() -> None:
    """The connection is open on our side but is not read: writing times out, and the lease ends."""

    async with gateway(preset("m", "chunks=100000"), timeout=1) as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port, limit=1024)
        body = json.dumps({"model": "m", "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: any(view.leases for view in g.lifecycle.views()))
        await until(lambda: not any(view.leases for view in g.lifecycle.views()))
        await g.has_cancelled("m")
        writer.close()


async def exchange(port: int, request: bytes) -> tuple[bytes, dict[str, object]]:
    """Return the bytes before the last response head, and the body of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    head, _, rest = answer.rpartition(b"\r\n\r\n")
    value: dict[str, object] = json.loads(rest)
    return head, value


async def test_chunked_compressed_and_announced_bodies_reach_the_worker_complete() -> None:
    async with gateway(preset("m")) as g:
        whole = b'{"model": "m", "content": "' + b"x" * 100_000 + b'"}'
        zipped = gzip.compress(whole)
        start = b"POST /props HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (whole[:7], whole[7:50_000], whole[50_000:]))
        asked = [
            start + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n",
            start + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(zipped) + zipped,
            start + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole,
        ]
        for request in asked:
            head, seen = await exchange(g.port, request)
            assert seen["body"] == whole.decode()
            headers = seen["headers"]
            assert isinstance(headers, dict)
            assert headers["content-length"] == str(len(whole))
            assert not {"transfer-encoding", "content-encoding", "expect"} & set(headers)
            assert (b"100 Continue" in head) == (b"Expect" in request)


async def test_an_encoding_that_is_not_known_reaches_the_worker_with_its_body() -> None:
    """The router forwards such a body as it is, so its receiver has to know."""
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
    start = b"POST /props HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n" % len(form)
    kind = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Encoding: x-own\r\n\r\n"
    async with gateway(preset("m")) as g:
        _, seen = await exchange(g.port, start + kind + form)
        assert seen["body"] == form.decode()
        assert dict(seen["headers"])["content-encoding"] == "x-own"  # type: ignore[call-overload]


async def test_a_path_with_a_model_name_that_has_slashes() -> None:
    names = ["user/repo:Q4_K_M", "with space", "ünïcode", "100%"]
    async with gateway(*(preset(name) for name in names)) as g:
        for name in names:
            escaped = "".join(f"%{byte:02X}" for byte in name.encode())
            for path in (f"/models/{quote(name)}", f"/v1/models/{escaped}"):
                assert (await g.client.get(path)).json()["id"] == name


@pytest.mark.parametrize("flags", ["", ",fail-load=no memory"])
async def test_five_hundred_clients_of_one_loading_model(flags: str, tmp_path: Path) -> None:
    """They share one queue entry, all get a response, and no state of them remains."""
    gate = tmp_path / "gate"

    async def all_at_once(g: Gateway) -> None:
        body = b'{"model": "m", "content": "x"}'
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        asked = [asyncio.create_task(exchange(g.port, head + body)) for _ in range(500)]
        await until(lambda: sum(view.waiting for view in g.lifecycle.views()) == 500)
        gate.touch()
        for answer_head, answer in await asyncio.gather(*asked):
            status, wanted = (b" 500 ", "no memory") if "fail" in flags else (b" 200 ", "tokens")
            assert status in answer_head
            assert wanted in str(answer)
        assert all(view.leases == view.waiting == 0 for view in g.lifecycle.views())
        gate.unlink()

    async with gateway(preset("m", f"gate={gate}{flags}")) as g:
        await all_at_once(g)
        before = private_bytes(os.getpid())
        await _unloaded(g)
        await all_at_once(g)
        assert private_bytes(os.getpid()) - before < 16 << 20


async def _unloaded(g: Gateway) -> None:
    if (await g.status("m"))["value"] != "unloaded":
        await g.client.post("/models/unload", json={"model": "m"})
    await g.becomes("m", "unloaded")


# -- configuration and operation ---------------------------------------------------------------------------------------


async def test_a_busy_model_is_edited_renamed_and_its_alias_taken() -> None:
    async with gateway(preset("m", "chunks=200,pause=0.01", aliases=("a",)), preset("n")) as g:
        stream = asyncio.create_task(g.events_of("m"))
        await until(lambda: any(view.leases for view in g.lifecycle.views()))
        g.sources["m"] = preset("m", "chunks=1", aliases=("a",))
        await g.client.get("/models?reload=1")
        del g.sources["m"]
        g.sources["renamed"] = preset("renamed", "chunks=2", aliases=("a",))
        await g.client.get("/models?reload=1")
        g.source_error = ConfigError("the alias 'a' stands for two models")
        assert (await g.client.get("/models?reload=1")).status_code == 500
        g.source_error = None
        assert len(await stream) == 201, "what ran goes on to its end"
        answer = (await g.client.post("/props", json={"model": "a"})).json()
        assert answer["worker"]["name"] == "renamed"
        assert (await g.chat("m")).status_code == 400
        assert (await g.client.post("/models/unload", json={"model": "renamed"})).status_code == 200
        await g.becomes("renamed", "unloaded")
        shown = (await g.client.get("/models")).json()["data"]
        assert {entry["id"]: entry["status"]["value"] for entry in shown} == {
            "n": "unloaded",
            "renamed": "unloaded",
        }


async def test_a_change_of_the_system_clock_affects_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle times, back-offs and deadlines use a monotonic clock."""
    for path in ROUTER.glob("*.py"):
        for line in path.read_text().splitlines():
            shown = "int(time.time())" in line or "expiry_text(time.time()" in line
            assert "time.time" not in line or shown, f"{path.name}: only for dates that clients are shown"

    async with gateway(preset("m", ttl=3600.0)) as g:
        assert (await g.chat("m")).status_code == 200
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 7 * 86400)
        g.lifecycle.unload_expired()
        view = g.lifecycle.view("m")
        assert view is not None
        assert view.status == "loaded"
        assert view.expires_in is not None
        assert 3500 < view.expires_in <= 3600


def test_a_models_directory_with_ten_thousand_files_and_circular_links(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for number in range(10_000):
        (models / f"m{number}.gguf").touch()
    (models / "circle").symlink_to(models)
    (models / "self").symlink_to(models / "self")
    (models / "dangling.gguf").symlink_to(tmp_path / "nowhere.gguf")
    began = time.monotonic()
    found = load_presets(Settings.of(models_dir=str(models)), {}, {"LLAMA_CACHE": str(tmp_path / "cache")})
    assert time.monotonic() - began < 60
    assert len([name for name in found if name.startswith("m")]) == 10_000
    assert "dangling" not in found


def test_a_presets_file_of_five_hundred_sections(tmp_path: Path) -> None:
    path = tmp_path / "presets.ini"
    path.write_text("".join(f"[m{n}]\nmodel = m.gguf\nalias = a{n}\nctx-size = {n}\n" for n in range(500)))
    found = load_presets(Settings.of(models_preset=str(path)), {}, {"LLAMA_CACHE": str(tmp_path / "cache")})
    assert len(found) == 500
    assert found["m499"].aliases == ("a499",)


async def test_a_worker_that_never_becomes_ready_can_be_unloaded() -> None:
    async with gateway(preset("m", "never-ready")) as g:
        waiting = asyncio.create_task(g.chat("m"))
        await until(lambda: any(view.waiting for view in g.lifecycle.views()))
        await g.becomes("m", "loading")
        assert (await g.client.post("/models/unload", json={"model": "m"})).status_code == 200
        answer = await waiting
        assert answer.status_code in (500, 503)
        assert "m" in error_of(answer)["message"]
