"""Test that large stored responses cost little to store, to read and to list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from llama_corral.common.base.errors import ApiError
from llama_corral.common.web.application import add_routes, application
from llama_corral.common.web.listen import listen
from llama_corral.common.web.response_store import MAX_RECORD, ResponseStore
from llama_corral.common.web.stored_responses import RESPONSES, ROUTES
from web_tools import settings

ID = "resp_" + "a" * 32


def items(count: int) -> list[dict[str, Any]]:
    return [{"type": "message", "id": f"msg_{at}", "content": [[]] * 20} for at in range(count)]


def test_a_response_that_is_too_large_is_not_stored(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), max_record=1000)
    store.put(ID, {"response": {}, "input": items(1)})
    with pytest.raises(OSError, match=r"it has \d+ bytes, and at most 1000 are stored"):
        store.put("resp_" + "b" * 32, {"response": {}, "input": items(100)})
    assert [path.name for path in tmp_path.iterdir()] == [f"{ID}.json"]


async def test_only_the_items_of_a_page_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResponseStore(str(tmp_path))
    given = items(50_000)
    response = {"id": ID, "output": given[:3]}
    store.put(ID, {"response": response, "input": given})
    assert (tmp_path / f"{ID}.json").stat().st_size < MAX_RECORD

    def whole(*_: object) -> None:
        raise ApiError("the whole record was built")

    monkeypatch.setattr(store, "get", whole)
    app = application(settings())
    app[RESPONSES] = store
    add_routes(app, settings(), ROUTES)
    async with listen(app, settings()) as listening, httpx.AsyncClient(base_url=listening.addresses[0]) as client:
        assert (await client.get(f"/responses/{ID}")).json() == response
        pages = {
            "": [49_999, 49_998],
            "order=asc": [0, 1],
            "order=asc&after=msg_49997": [49_998, 49_999],
            "after=msg_2": [1, 0],
            "after=msg_0": [],
        }
        for query, expected in pages.items():
            page = (await client.get(f"/responses/{ID}/input_items?limit=2&{query}")).json()
            assert page["data"] == [given[at] for at in expected], query
            assert page["has_more"] == (query in ("", "order=asc"))
            assert [page["first_id"], page["last_id"]] == (
                [f"msg_{expected[0]}", f"msg_{expected[-1]}"] if expected else [None, None]
            )
        refused = await client.get(f"/responses/{ID}/input_items?after=msg_x")
        assert (refused.status_code, "there is no item 'msg_x'" in refused.text) == (400, True)
        assert (await client.post(f"/responses/{ID}/cancel")).status_code == 400
        assert (await client.get("/responses/resp_x")).status_code == web.HTTPNotFound.status_code
