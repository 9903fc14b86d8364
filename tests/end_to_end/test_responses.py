"""Stored Responses: continued, read, deleted; limited in number and size, and independent of their model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_corral.common.base import private_directory
from llama_corral.common.web.response_store import ResponseStore
from openai.types.responses import Response, ResponseItem
from programs import Program, Programs, wait_until
from pydantic import TypeAdapter

# -- the store -------------------------------------------------------------------------------------------------------


def named(n: int) -> str:
    return f"resp_{n:032d}"


def fill(store: ResponseStore, *numbers: int, size: int = 10) -> None:
    """Store Responses with increasing times of use, even if the file system's clock is coarse."""
    for n in numbers:
        store.put(named(n), {"text": "x" * size})
        os.utime(Path(store.open(), f"{named(n)}.json"), (n, n))


def left(store: ResponseStore, *numbers: int) -> list[int]:
    return [n for n in numbers if store.get(named(n)) is not None]


def test_the_least_recently_used_is_deleted_first(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), max_responses=3)
    fill(store, 1, 2, 3)
    assert store.get(named(1)) == {"text": "x" * 10}
    fill(store, 4)
    assert left(store, 1, 2, 3, 4) == [1, 3, 4]


def test_the_size_is_limited_but_the_newest_is_kept(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), max_bytes=1000)
    fill(store, 1, 2, size=600)
    assert left(store, 1, 2) == [2]
    fill(store, 3, size=5000)
    assert left(store, 1, 2, 3) == [3]


def test_only_valid_ids_are_looked_up(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path / "inside"))
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    for id in ("../secret", "resp_../secret", "", "resp_", named(1) + "\n", named(1) + "/.."):
        assert store.get(id) is None
        assert not store.delete(id)


def test_its_directory_is_removed_at_the_end_or_after_a_crash_by_the_next_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(private_directory, "_YOUNG_S", -1.0)
    living, abandoned = ResponseStore(), tmp_path / "corral-responses-dead"
    abandoned.mkdir()
    (abandoned / f"{named(1)}.json").write_text("{}")
    directory = Path(living.open())
    assert not abandoned.exists()
    assert directory.stat().st_mode & 0o777 == 0o700
    other = ResponseStore()
    other.open()
    assert directory.exists()
    shared = ResponseStore(str(directory))
    fill(shared, 5)
    shared.close()
    assert left(living, 5) == [5]
    living.close()
    assert not directory.exists()
    other.close()
    assert list(tmp_path.iterdir()) == []


# -- through the router ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    """Room for one model only."""
    return module_programs.gateway("--demo", "--models-max", "1")


def create(program: Program, text: Any, **fields: Any) -> Response:
    answer = program.client.post("/v1/responses", json={"input": text, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=True)


def test_a_conversation_continues_after_an_eviction(gateway: Program) -> None:
    first = create(gateway, "My name is Clara.", model="demo-chat", instructions="Be kind.")
    create(gateway, "Tell me a story.", model="demo-story", max_output_tokens=3)
    assert gateway.status("demo-chat") == "unloaded"
    second = create(gateway, "What is my name?", model="demo-chat", previous_response_id=first.id)
    assert "Clara" in second.output_text
    assert (second.previous_response_id, second.instructions) == (first.id, None)
    third = create(gateway, "Tell me a story.", model="demo-story", previous_response_id=second.id, max_output_tokens=3)
    assert third.usage is not None
    assert second.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens


def test_responses_are_read_and_deleted_without_their_model(gateway: Program) -> None:
    first = create(gateway, "Hello!", model="demo-chat")
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Count to 5."}]}]
    second = create(gateway, items, model="demo-chat", previous_response_id=first.id)
    gateway.client.post("/models/unload", json={"model": "demo-chat"}).raise_for_status()
    gateway.wait_for_status("demo-chat", "unloaded")
    read = gateway.client.get(f"/v1/responses/{second.id}").raise_for_status().json()
    assert Response.model_validate(read, strict=True) == second

    def page(**query: Any) -> Any:
        return gateway.client.get(f"/responses/{second.id}/input_items", params=query).raise_for_status().json()

    everything = page(order="asc")
    for item in everything["data"]:
        TypeAdapter(ResponseItem).validate_python(item, strict=True)
    texts = [item["content"][0]["text"] for item in everything["data"]]
    assert texts == ["Hello!", first.output_text, "Count to 5."]
    assert (everything["object"], everything["has_more"]) == ("list", False)
    newest = page(limit=1)
    assert (newest["data"], newest["has_more"]) == (everything["data"][-1:], True)
    assert page(after=newest["last_id"])["data"] == everything["data"][-2::-1]
    assert page(after=everything["first_id"])["first_id"] is None
    for wrong in ({"order": "up"}, {"limit": 0}, {"limit": "many"}, {"after": "msg_unknown"}):
        assert gateway.client.get(f"/responses/{second.id}/input_items", params=wrong).status_code == 400

    deleted = gateway.client.delete(f"/v1/responses/{second.id}").raise_for_status().json()
    assert deleted == {"id": second.id, "object": "response", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        gone = gateway.client.request(method, f"/v1/responses/{second.id}{path}")
        assert (gone.status_code, gone.json()["error"]["type"]) == (404, "invalid_request_error")
    assert gateway.status("demo-chat") == "unloaded"


def test_a_response_that_is_not_stored_cannot_be_continued(gateway: Program) -> None:
    asked = {"model": "demo-chat", "input": "Hello!", "store": False}
    id = gateway.client.post("/v1/responses", json=asked).json()["id"]
    assert gateway.client.get(f"/v1/responses/{id}").status_code == 404
    refused = gateway.client.post("/v1/responses", json={**asked, "previous_response_id": id})
    error = refused.json()["error"]
    assert refused.status_code == 400
    assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
    assert id in error["message"]


def test_items_are_referred_to_by_their_ids(gateway: Program) -> None:
    first = create(gateway, "My name is Clara.", model="demo-chat")
    asked = {"type": "item_reference", "id": first.output[0].id}
    said = {"role": "user", "content": "My name is Clara."}
    again = create(gateway, [said, asked, {"role": "user", "content": "What is my name?"}], model="demo-chat")
    assert "Clara" in again.output_text
    body = {"model": "demo-chat", "input": [{"type": "item_reference", "id": "msg_nowhere"}]}
    assert gateway.client.post("/v1/responses", json=body).status_code == 400


def test_a_running_response_cannot_be_cancelled_by_its_id(gateway: Program) -> None:
    done = create(gateway, "Hello!", model="demo-chat")
    refused = gateway.client.post(f"/v1/responses/{done.id}/cancel")
    assert refused.status_code == 400
    assert "background" in refused.json()["error"]["message"]
    assert gateway.client.get(f"/v1/responses/{done.id}", params={"stream": "true"}).status_code == 400


def test_counting_through_the_router(gateway: Program) -> None:
    first = create(gateway, "Hello!", model="demo-chat")
    body = {"model": "demo-chat", "input": "Hello!"}
    one = gateway.client.post("/v1/responses/input_tokens", json=body).json()["input_tokens"]
    two = gateway.client.post("/responses/input_tokens", json={**body, "previous_response_id": first.id}).json()
    assert one > 0
    assert two["input_tokens"] > 2 * one


def test_a_resumable_stream_is_stored_too(gateway: Program) -> None:
    body = {"model": "demo-chat", "input": "Hello!", "stream": True}
    data = gateway.client.post("/v1/responses", json=body, headers={"X-Conversation-Id": "c1"}).content
    assert gateway.client.get("/v1/stream", params={"conv_id": "c1"}).content == data
    id = data.decode().partition('"id":"')[2].partition('"')[0]
    assert gateway.client.get(f"/v1/responses/{id}").json()["status"] == "completed"


def test_a_worker_alone_keeps_responses_while_it_sleeps(start_worker: Callable[..., Program]) -> None:
    sleeper = start_worker("--sleep-idle-seconds", "1", "--ctx-size", "512", "--threads", "1")
    first = create(sleeper, "Hello!", max_output_tokens=3)
    wait_until(lambda: sleeper.client.get("/props").json()["is_sleeping"], "the worker to sleep")
    assert sleeper.client.get(f"/v1/responses/{first.id}").json()["id"] == first.id
    assert sleeper.client.get("/props").json()["is_sleeping"]
    assert create(sleeper, "And?", max_output_tokens=3, previous_response_id=first.id).output


def test_no_directory_remains_after_the_exit(start_worker: Callable[..., Program], tmp_path: Path) -> None:
    program = start_worker("--ctx-size", "512", "--threads", "1", env={"TMPDIR": str(tmp_path)})
    create(program, "Hello!", max_output_tokens=3)
    assert list(tmp_path.glob("corral-responses-*"))
    program.stop()
    assert list(tmp_path.iterdir()) == []
