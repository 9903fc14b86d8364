"""Foreign pages at the router: no page of another site loads, unloads, downloads, deletes or reads sources again."""

from __future__ import annotations

import pytest
from llama_corral.common.web.foreign_pages import ENDING, INFERENCE
from llama_corral.presets.options.settings import Settings
from llama_corral.router import app
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from router_http import gateway
from router_tools import fake_launcher, preset

EVIL = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
REBOUND = {"Host": "evil.example:8080"}
CHANGES = (
    ("POST", "/models/load", '{"model": "m"}'),
    ("POST", "/v1/models/load", '{"model": "m"}'),
    ("POST", "/models/unload", '{"model": "m"}'),
    ("POST", "/models", '{"model": "user/repo"}'),
    ("DELETE", "/models?model=m", ""),
    ("POST", "/api/pull", '{"model": "user/repo"}'),
    ("DELETE", "/api/delete", '{"model": "m"}'),
    ("POST", "/props?model=m", "{}"),
    ("POST", "/lora-adapters?model=m", "[]"),
    ("POST", "/slots/0?action=erase&model=m", "{}"),
    ("DELETE", "/v1/stream?conv_id=x", ""),
    ("DELETE", "/responses/resp_1", ""),
)
ENDS = ("POST", "DELETE")
LOADING = ("/props?model=m", "/slots?model=m", "/metrics?model=m&autoload=1", "/lora-adapters?model=m")


@pytest.mark.parametrize("headers", [EVIL, IMAGE, REBOUND])
async def test_a_foreign_page_changes_nothing(headers: dict[str, str]) -> None:
    async with gateway(preset("m")) as g:
        for method, path, body in (*CHANGES, *(("GET", path, "") for path in (*LOADING, "/models?reload=1"))):
            answer = await g.client.request(method, path, content=body or None, headers=headers)
            assert (answer.status_code, path) == (403, path)
            assert "require a key (--api-key)" in answer.text
        assert (await g.client.get("/models/m")).json()["status"]["value"] == "unloaded"


async def test_a_foreign_page_reads_a_loaded_model_and_generates_but_does_not_unload_it() -> None:
    async with gateway(preset("m")) as g:
        await g.client.post("/models/load", json={"model": "m"})
        await g.becomes("m", "loaded")
        assert (await g.client.get("/props?model=m", headers=EVIL)).status_code == 200
        assert (await g.client.post("/completion", content='{"model": "m"}', headers=EVIL)).status_code == 200
        unload = await g.client.post("/api/generate", content='{"model": "m", "keep_alive": 0}', headers=EVIL)
        assert unload.status_code == 403
        own = {"Origin": f"http://127.0.0.1:{g.port}", "Sec-Fetch-Site": "same-origin"}
        assert (await g.client.post("/models/unload", json={"model": "m"}, headers=own)).status_code == 200


async def test_the_own_page_under_a_public_name_stops_its_stream_but_changes_no_model() -> None:
    page = {"Origin": "https://ai.example", "Host": "ai.example", "Sec-Fetch-Site": "same-origin"}
    async with gateway(preset("m")) as g:
        for method, path, status in (
            ("DELETE", "/v1/stream?conv_id=x", 204),
            ("DELETE", "/v1/responses/resp_1", 404),
            ("POST", "/v1/responses/resp_1/cancel", 404),
            ("POST", "/models/unload", 403),
        ):
            answer = await g.client.request(method, path, headers=page)
            assert (answer.status_code, path) == (status, path)


async def test_every_route_of_the_router_is_for_own_pages_unless_it_is_listed() -> None:
    lifecycle = Lifecycle({}, fake_launcher("spawn"), models_max=1, autoload=True)
    try:
        routes = app.build(Settings.of(), lifecycle, dict).router.routes()
        posts = {route.resource.canonical for route in routes if route.method == "POST" and route.resource}
        assert {route.resource.canonical for route in routes if route.method in ENDS and route.resource} >= ENDING
        changing = {path.removeprefix("/v1") for path in posts - INFERENCE}
        assert {"/models", "/models/load", "/models/unload", "/api/pull", "/props", "/lora-adapters"} <= changing
        assert posts >= INFERENCE, "a path that is listed exists"
        assert set(app.BY_BODY) - INFERENCE == {"/props", "/lora-adapters", "/slots/{id_slot}"}
    finally:
        await lifecycle.close()
