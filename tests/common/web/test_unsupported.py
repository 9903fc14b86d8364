"""Endpoints of newer versions of llama-server: 501 with a reason, from the router and from a worker."""

from __future__ import annotations

import pytest
from llama_corral.common.web.unsupported import UNSUPPORTED
from programs import Program
from router_http import gateway
from web_tools import error_of

ENDPOINTS = [("POST", "/tts"), ("POST", "/v1/audio/speech"), ("GET", "/v1/realtime"), ("POST", "/v1/systemone")]
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "eA==",
}


def test_all_are_listed() -> None:
    assert [route[:2] for route in UNSUPPORTED] == ENDPOINTS


async def test_the_router_refuses_with_the_reason() -> None:
    async with gateway(api_prefix="/llm") as g:
        for method, path in ENDPOINTS:
            response = await g.client.request(method, "/llm" + path, json={"model": "nope", "input": "a"})
            assert response.status_code == 501
            error = error_of(response)
            assert error["type"] == "not_supported_error"
            assert "not supported" in error["message"]
        assert (await g.client.get("/llm/v1/realtime", headers=WEBSOCKET)).status_code == 501


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_a_worker_refuses_with_the_reason(worker: Program, method: str, path: str) -> None:
    response = worker.client.request(method, path, json={})
    assert response.status_code == 501
    assert "not supported" in response.json()["error"]["message"]
