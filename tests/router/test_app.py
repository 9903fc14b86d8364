"""Test the router's own endpoints: listing and managing models, events, properties, the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.options.settings import Settings
from llama_corral.router.handlers import read_ui_settings
from router_http import gateway
from router_tools import PATIENCE, preset, until
from web_tools import error_of


async def test_health_and_props() -> None:
    async with gateway(models_max=7, models_autoload=False, ui_config='{"theme": "dark"}') as g:
        for path in ("/health", "/v1/health"):
            assert (await g.client.get(path)).json() == {"status": "ok"}
        props = (await g.client.get("/props")).json()
        assert props["role"] == "router"
        assert (props["max_instances"], props["models_autoload"]) == (7, False)
        assert props["build_info"].startswith("b")
        assert props["ui_settings"] == {"theme": "dark"}
        assert props["default_generation_settings"] == {"params": None, "n_ctx": 0}


async def test_list_of_models_before_during_and_after_they_run() -> None:
    entries = [
        preset("zebra", "load=0.3", aliases=("z", "a"), tags=("t2", "t1")),
        preset("cached", source="cache"),
        preset("secret", hidden=True),
    ]

    async with gateway(*entries) as g:
        listed = (await g.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        cached, zebra = listed["data"]
        assert (cached["id"], cached["source"], cached["can_remove"], cached["in_cache"]) == (
            "cached",
            "cache",
            True,
            True,
        )
        assert (zebra["id"], zebra["aliases"], zebra["tags"]) == ("zebra", ["a", "z"], ["t1", "t2"])
        assert (zebra["object"], zebra["owned_by"], zebra["source"]) == ("model", "llamacpp", "preset")
        assert zebra["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
        assert (zebra["can_remove"], zebra["in_cache"], zebra["path"]) == (False, False, "load=0.3")
        status = zebra["status"]
        assert status["value"] == "unloaded"
        assert "--alias" in status["args"]
        assert status["preset"].startswith("[zebra]\n")
        assert "failed" not in status
        assert "meta" not in zebra

        await g.client.post("/models/load", json={"model": "z"})
        await g.becomes("zebra", "loaded")
        zebra = (await g.client.get("/v1/models/zebra")).json()
        assert zebra["meta"] == {"n_ctx": 512}
        assert zebra["aliases"] == ["a", "z"], "the router's own, not what the worker says"
        await g.client.post("/models/unload", json={"model": "zebra"})
        await g.becomes("zebra", "unloaded")
        assert "meta" not in (await g.client.get("/models/zebra")).json()


async def test_one_model_by_any_name() -> None:
    names = ["user/repo:Q4_K_M", "sse", "load", "with space", "a%b", "ünïcode", "hidden"]
    entries = [preset(name, hidden=name == "hidden", aliases=(f"{name}~",)) for name in names]

    async with gateway(*entries) as g:
        for name in names:
            if name == "sse":  # this path belongs to the event stream; only the alias can be used
                continue
            for spelled in (name, f"{name}~"):
                quoted = spelled.replace("%", "%25").replace("/", "%2F")
                assert (await g.client.get(f"/v1/models/{quoted}")).json()["id"] == name
        assert (await g.client.get("/v1/models/user/repo:Q4_K_M")).json()["id"] == "user/repo:Q4_K_M"
        response = await g.client.get("/v1/models/nobody")
        assert response.status_code == 404
        assert "nobody" in error_of(response)["message"]


async def test_load_and_unload_and_their_refusals() -> None:
    async with gateway(preset("m", aliases=("alias",)), preset("other"), models_max=1) as g:
        for body in ({"model": "nobody"}, {"model": 5}, {}):
            response = await g.client.post("/models/load", json=body)
            assert (response.status_code, error_of(response)["type"]) == (404, "not_found_error")
            assert error_of(response)["message"] == "model is not found"
        response = await g.client.post("/models/unload", json={"model": "nobody"})
        assert (response.status_code, error_of(response)["message"]) == (400, "model is not found")
        for path in ("/models/load", "/models/unload"):
            for broken in (b"{", b"[]", b""):
                assert (await g.client.post(path, content=broken)).status_code == 400
        response = await g.client.post("/models/unload", json={"model": "m"})
        assert (response.status_code, error_of(response)["message"]) == (400, "model is not running")

        assert (await g.client.post("/models/load", json={"model": "alias"})).json() == {"success": True}
        response = await g.client.post("/v1/models/load", json={"model": "m"})
        assert (response.status_code, error_of(response)["message"]) == (400, "model is already running")
        await g.becomes("m", "loaded")
        assert (await g.client.post("/models/load", json={"model": "other"})).json() == {"success": True}
        assert (await g.status("m"))["value"] == "unloaded"
        await g.becomes("other", "loaded")
        assert (await g.client.post("/models/unload", json={"model": "other"})).json() == {"success": True}
        await g.becomes("other", "unloaded")


async def test_failed_model_shows_the_reason() -> None:
    async with gateway(preset("m", "die-loading")) as g:
        await g.client.post("/models/load", json={"model": "m"})
        async with asyncio.timeout(PATIENCE), g.lifecycle.subscribe() as listener:
            while not (await g.status("m")).get("failed"):
                await listener.get()
        status = await g.status("m")
        assert (status["value"], status["failed"], status["exit_code"]) == ("unloaded", True, 3)
        assert status["log"][-1] == "cannot go on: no reason"
        assert "cannot go on" in status["error"]


async def test_unloading_a_loading_model_kills_it() -> None:
    async with gateway(preset("m", "never-ready")) as g:
        await g.client.post("/models/load", json={"model": "m"})
        assert (await g.client.post("/models/unload", json={"model": "m"})).json() == {"success": True}
        await until(lambda: not any(view.is_running for view in g.lifecycle.views()))
        status = await g.status("m")
        assert (status["failed"], status["exit_code"]) == (True, 1)


async def test_events() -> None:
    async with gateway(preset("m", "load=0.2")) as g, g.client.stream("GET", "/models/sse") as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        lines = response.aiter_lines()

        async def event() -> dict[str, Any]:
            async with asyncio.timeout(PATIENCE):
                line = await anext(lines)
                assert await anext(lines) == ""
            assert line.startswith("data: ")
            value: dict[str, Any] = json.loads(line[6:])
            return value

        assert await event() == {"model": "m", "event": "snapshot", "data": {"status": "unloaded"}}
        await g.client.post("/models/load", json={"model": "m"})
        assert await event() == {"model": "m", "event": "model_status", "data": {"status": "loading"}}
        seen = [await event()]
        while seen[-1]["data"]["status"] == "loading":
            seen.append(await event())
        assert {entry["event"] for entry in seen} == {"status_change"}
        assert seen[-2]["data"]["progress"]["value"] == 0.75
        assert seen[-1]["data"]["status"] == "loaded"
        assert seen[-1]["data"]["info"]["meta"] == {"n_ctx": 512}
        await g.client.post("/models/unload", json={"model": "m"})
        assert (await event())["data"] == {"status": "unloaded", "exit_code": 0}
        await g.client.get("/models?reload=1")
        assert await event() == {"model": "*", "event": "models_reload"}


async def test_events_begin_with_the_state_of_all_models() -> None:
    entries = [preset("a"), preset("b", "load=60"), preset("c", "fail-load=no such file"), preset("d", hidden=True)]
    async with gateway(*entries) as g:
        assert (await g.chat("a")).status_code == 200
        assert (await g.chat("c")).status_code == 500
        await g.client.post("/models/load", json={"model": "b"})
        async with g.client.stream("GET", "/models/sse") as response:
            told = [json.loads(line[6:]) async for line in limited(response.aiter_lines(), 5) if line]
        assert {entry["event"] for entry in told} == {"snapshot"}, "clients of llama-server expect only changes"
        assert [entry["model"] for entry in told] == ["a", "b", "c"], "hidden models are hidden"
        a, b, c = (entry["data"] for entry in told)
        assert (a["status"], a["info"]["meta"]) == ("loaded", {"n_ctx": 512})
        assert b["status"] == "loading"
        assert c == {"status": "unloaded", "exit_code": 1}


async def limited(lines: AsyncIterator[str], number: int) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        if not (number := number - 1):
            return


async def test_comments_keep_a_silent_event_stream_open() -> None:
    async with (
        gateway(preset("m"), sse_ping_interval=1) as g,
        g.client.stream("GET", "/models/sse") as response,
    ):
        lines = [line async for line in limited(response.aiter_lines(), 5) if line]
    assert [line[:1] for line in lines] == ["d", ":", ":"]


async def test_event_stream_ends_with_the_router() -> None:
    async with gateway(preset("m")) as g, g.client.stream("GET", "/models/sse") as response:
        await g.lifecycle.close()
        async with asyncio.timeout(PATIENCE):
            lines = [line async for line in response.aiter_lines()]
        assert [json.loads(line[6:])["event"] for line in lines if line] == ["snapshot"]


async def test_reload() -> None:
    async with gateway(preset("a"), preset("b")) as g:
        del g.sources["a"]
        g.sources["c"] = preset("c")
        assert [entry["id"] for entry in (await g.client.get("/models")).json()["data"]] == ["a", "b"]
        assert [entry["id"] for entry in (await g.client.get("/models?reload=")).json()["data"]] == ["a", "b"]
        assert [entry["id"] for entry in (await g.client.get("/models?reload=1")).json()["data"]] == ["b", "c"]


async def test_sources_that_cannot_be_read_change_nothing() -> None:
    async with gateway(preset("a")) as g:
        g.source_error = ConfigError("presets.ini:3: unknown key")
        response = await g.client.get("/models?reload=1")
        assert (response.status_code, error_of(response)["message"]) == (500, "presets.ini:3: unknown key")
        assert len((await g.client.get("/models")).json()["data"]) == 1


async def test_unknown_routes_and_disabled_features_are_refused() -> None:
    async with gateway(preset("m")) as g:
        for method in ("GET", "POST"):
            for path in ("/tools", "/cors-proxy?url=http://a"):
                response = await g.client.request(method, path)
                assert response.status_code == 403
                assert response.json()["error"]["type"] == "feature_disabled"
        for method, path in (("GET", "/nothing"), ("GET", "/tokenize"), ("POST", "/health"), ("PUT", "/models")):
            response = await g.client.request(method, path)
            assert (response.status_code, error_of(response)["type"]) == (404, "not_found_error")


async def test_api_keys_protect_everything_but_health_and_page() -> None:
    async with gateway(preset("m"), api_key=("sk-1",)) as g:
        guarded = [("GET", "/models"), ("GET", "/v1/models"), ("GET", "/props"), ("POST", "/models/load")]
        guarded += [("GET", "/models/sse"), ("POST", "/v1/chat/completions"), ("GET", "/slots?model=m")]
        for method, path in guarded:
            response = await g.client.request(method, path)
            assert (response.status_code, error_of(response)["type"]) == (401, "authentication_error"), path
        for path in ("/health", "/v1/health", "/"):
            assert (await g.client.get(path)).status_code == 200
        g.client.headers["X-Api-Key"] = "sk-1"
        assert (await g.chat("m")).status_code == 200


async def test_page() -> None:
    async with gateway() as g:
        response = await g.client.get("/")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.text.startswith("<!doctype html>")
        assert "://" not in response.text.replace("http://www.w3.org/2000/svg", ""), "no foreign resources"
        assert (await g.client.head("/")).status_code == 200
    async with gateway(ui=False) as g:
        assert (await g.client.get("/")).status_code == 404


async def test_prefix_reaches_the_worker_too() -> None:
    async with gateway(preset("m"), api_prefix="/llm") as g:
        assert (await g.client.get("/models")).status_code == 404
        assert (await g.client.get("/llm/models")).status_code == 200
        assert (await g.client.post("/llm/props", json={"model": "m"})).json()["target"] == "/llm/props"


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_ui_config_must_be_a_json_object(text: str, tmp_path: Any) -> None:
    file = tmp_path / "ui.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="ui-config"):
        read_ui_settings(Settings.of(ui_config_file=str(file)))
    with pytest.raises(ConfigError, match="nowhere"):
        read_ui_settings(Settings.of(ui_config_file="/nowhere"))
