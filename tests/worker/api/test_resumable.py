"""Streams that continue without their client: resumed, stopped, replaced, dropped."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.api.answers.stream_sessions import OffsetLost, StreamSession, StreamSessions
from programs import Program, Programs, wait_until
from router_tools import until

ENDLESS = {"prompt": "Once upon a time", "n_predict": -1, "ignore_eos": True, "stream": True}


# -- sessions --------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(1, 40), st.integers(0, 300))
async def test_a_session_keeps_exactly_the_last_bytes(chunks: list[bytes], max_bytes: int, offset: int) -> None:
    session = StreamSession("c", max_bytes)
    for chunk in chunks:
        session.append(chunk)
    session.finish()
    everything = b"".join(chunks)
    assert session.total_bytes == len(everything)
    assert session.n_kept == min(max_bytes, len(everything))
    if offset < session.n_dropped:
        with pytest.raises(OffsetLost):
            await session.read(offset)
    else:
        assert await session.read(offset) == everything[offset:]


async def wait_without_end(session: StreamSession) -> None:
    session.begun.set()
    session.append(b"x" * 10)
    await asyncio.Event().wait()


async def end_at_once(session: StreamSession) -> None:
    session.begun.set()
    session.append(b"y" * 10)


async def fail_early(session: StreamSession) -> None:
    raise ValueError("no such thing")


async def fail_late(session: StreamSession) -> None:
    session.begun.set()
    raise ValueError("half-way")


async def ended(session: StreamSession) -> StreamSession:
    if session.producer is not None:
        await asyncio.wait({session.producer})
    await asyncio.sleep(0)
    return session


async def test_readers_can_read_a_running_session_to_its_end() -> None:
    sessions = StreamSessions()
    session = sessions.open("c", wait_without_end)
    await session.begun.wait()
    assert await session.read(0) == b"x" * 10
    late = asyncio.ensure_future(session.read(10))
    ahead = asyncio.ensure_future(session.read(12))
    await asyncio.sleep(0)
    session.append(b"abc")
    assert await late == b"abc"
    assert await ahead == b"c"
    end = asyncio.ensure_future(session.read(13))
    sessions.stop("c")
    assert await end == b""
    assert sessions.get("c") is None
    assert session.producer is not None
    with suppress(asyncio.CancelledError):
        await session.producer


async def test_a_conversation_has_one_session() -> None:
    sessions = StreamSessions()
    first = sessions.open("c", wait_without_end)
    await first.begun.wait()
    second = sessions.open("c", wait_without_end)
    await ended(first)
    assert first.is_done
    assert sessions.get("c") is second
    assert not second.is_done
    await sessions.close()
    assert sessions.get("c") is None
    assert second.producer is None


async def test_a_failure_before_the_stream_begins_drops_the_session(caplog: pytest.LogCaptureFixture) -> None:
    sessions = StreamSessions()
    session = await ended(sessions.open("c", fail_early))
    assert session.is_done
    assert sessions.get("c") is None
    assert not caplog.records
    await ended(sessions.open("c", fail_late))
    kept = sessions.get("c")
    assert kept is not None
    assert kept.is_done
    assert "half-way" in caplog.text


async def test_ended_sessions_are_dropped_after_a_time_or_above_the_size_limit() -> None:
    sessions = StreamSessions(kept_s=0.02)
    await ended(sessions.open("c", end_at_once))
    assert sessions.get("c") is not None
    await until(lambda: sessions.get("c") is None)
    crowded = StreamSessions(max_ended_bytes=25)
    live = crowded.open("live", wait_without_end)
    await live.begun.wait()
    for name in "abc":
        session = await ended(crowded.open(name, end_at_once))
        session.completed_at -= 10 - ord(name) % 10
    assert [name for name in "abc" if crowded.get(name)] == ["b", "c"]
    assert crowded.get("live") is live, "what still flows is not counted"
    await crowded.close()


async def test_a_lookup_finds_only_a_conversation_and_its_variants() -> None:
    sessions = StreamSessions()
    for name in ("a", "a::m", "a::n", "ab", "b"):
        await ended(sessions.open(name, end_at_once))
    assert [session.conversation for session in sessions.matching(["a"])] == ["a", "a::m", "a::n"]
    assert [session.conversation for session in sessions.matching(["b", "a::m", "c"])] == ["b", "a::m"]
    assert sessions.matching([]) == []


# -- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(module_programs: Programs) -> Program:
    return module_programs.worker("--alias", "tiny", "--ctx-size", "16384", "--parallel", "2", "--threads", "1")


def leave_midway(program: Program, conversation: str, body: dict[str, Any]) -> bytes:
    """Send the request, read the first bytes of the stream and disconnect."""
    content = json.dumps(body).encode()
    head = (
        f"POST /completion HTTP/1.1\r\nHost: x\r\nx-conversation-id: {conversation}\r\nContent-Length: {len(content)}"
    )
    with socket.create_connection(("127.0.0.1", int(program.address)), timeout=20) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + content)
        return client.recv(100)


def lookup(program: Program, *conversations: str) -> list[dict[str, Any]]:
    shown = program.client.post("/v1/streams/lookup", json={"conversation_ids": list(conversations)})
    found: list[dict[str, Any]] = shown.raise_for_status().json()
    return found


def is_idle(program: Program) -> bool:
    return not any(slot["is_processing"] for slot in program.client.get("/slots").json())


def replay(program: Program, conversation: str, offset: int = 0) -> bytes:
    response = program.client.get(f"/v1/stream?conv_id={quote(conversation, safe='')}&from={offset}")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream"
    return response.content


def test_a_stream_can_be_read_again_from_any_byte(server: Program) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "stream": True}
    headers = {"X-Conversation-Id": "chat::user/repo:Q8_0"}
    sent = server.client.post("/v1/chat/completions", json=body, headers=headers)
    assert sent.status_code == 200
    assert sent.content.endswith(b"data: [DONE]\n\n")
    assert replay(server, "chat::user/repo:Q8_0") == sent.content
    assert replay(server, "chat::user/repo:Q8_0", 30) == sent.content[30:]
    assert replay(server, "chat::user/repo:Q8_0", len(sent.content)) == b""
    (entry,) = lookup(server, "chat", "other")
    assert entry["conversation_id"] == "chat::user/repo:Q8_0"
    assert entry["is_done"] is True
    assert entry["total_bytes"] == len(sent.content)
    assert entry["completed_at"] >= entry["started_at"] > 1_600_000_000


def test_generation_continues_after_a_disconnect(server: Program) -> None:
    assert leave_midway(server, "left", {**ENDLESS, "n_predict": 200}).startswith(b"HTTP/1.1 200 OK")
    whole = replay(server, "left")  # reads to the end
    last = json.loads(whole.strip().splitlines()[-1].removeprefix(b"data: "))
    assert last["stop"] is True
    assert last["tokens_predicted"] == 200
    (entry,) = lookup(server, "left")
    assert (entry["is_done"], entry["total_bytes"]) == (True, len(whole))


def test_a_stop_ends_the_generation_and_drops_its_session(server: Program) -> None:
    leave_midway(server, "stopped", ENDLESS)
    assert [entry["is_done"] for entry in lookup(server, "stopped")] == [False]
    assert not is_idle(server)
    for _ in range(2):
        gone = server.client.delete("/v1/stream?conv_id=stopped")
        assert (gone.status_code, gone.content) == (204, b"")
    wait_until(lambda: is_idle(server), "the slot to be free")
    assert server.client.get("/v1/stream?conv_id=stopped").status_code == 404
    assert lookup(server, "stopped") == []


def test_a_new_request_replaces_the_conversations_old_one(server: Program) -> None:
    leave_midway(server, "again", ENDLESS)
    body = {"prompt": "Something else", "n_predict": 3, "stream": True}
    sent = server.client.post("/completion", json=body, headers={"X-Conversation-Id": "again"})
    assert replay(server, "again") == sent.content
    wait_until(lambda: is_idle(server), "the replaced request to end")


def test_an_answer_that_is_not_streamed_has_no_session(server: Program) -> None:
    headers = {"X-Conversation-Id": "plain"}
    whole = server.client.post("/completion", json={"prompt": "a", "n_predict": 2}, headers=headers)
    assert whole.json()["tokens_predicted"] == 2
    assert lookup(server, "plain") == []
    wrong = server.client.post("/completion", json={"prompt": "a", "stream": True, "top_k": "x"}, headers=headers)
    assert wrong.status_code == 400
    assert server.client.get("/v1/stream?conv_id=plain").status_code == 404


def test_a_disconnect_cancels_an_answer_that_is_not_streamed(server: Program) -> None:
    """Such an answer cannot be read again."""
    content = json.dumps({**ENDLESS, "stream": False}).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nX-Conversation-Id: w\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.address)), timeout=20) as client:
        client.sendall(head.encode() + content)
        wait_until(lambda: not is_idle(server), "the request to run")
    wait_until(lambda: is_idle(server), "the slot to be free")


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "Missing conversation id in path"),
        ("conv_id=nobody", 404, "Stream not found or expired"),
        ("conv_id=errors&from=x", 400, "Invalid 'from' offset"),
        ("conv_id=errors&from=-1", 400, "Invalid 'from' offset"),
    ],
)
def test_errors(server: Program, query: str, status: int, message: str) -> None:
    body = {"prompt": "a", "n_predict": 1, "stream": True}
    server.client.post("/completion", json=body, headers={"X-Conversation-Id": "errors"})
    error = server.client.get(f"/v1/stream?{query}").json()["error"]
    assert (error["code"], error["message"]) == (status, message)
    assert server.client.delete("/v1/stream").status_code == 400
    assert server.client.post("/v1/streams/lookup", content=b"{").status_code == 400
    for nothing in ({"conversation_ids": "errors"}, {"conversation_ids": [7]}, {}, []):
        assert server.client.post("/v1/streams/lookup", json=nothing).json() == []


def test_the_first_bytes_of_a_very_long_stream_are_dropped(server: Program) -> None:
    probs = {"n_probs": 500, "n_predict": 250, "ignore_eos": True, "prompt": "a", "stream": True}
    sent = server.client.post("/completion", json=probs, headers={"X-Conversation-Id": "long"})
    assert len(sent.content) > 4 << 20
    error = server.client.get("/v1/stream?conv_id=long").json()["error"]
    assert (error["code"], error["message"]) == (400, "Stream offset lost, please restart")
    assert replay(server, "long", len(sent.content) - 5000) == sent.content[-5000:]


def test_a_stopping_worker_does_not_wait_for_streams_without_a_client(programs: Programs) -> None:
    program = programs.worker("--ctx-size", "65536", "--threads", "1", "--parallel", "1")
    leave_midway(program, "left", ENDLESS)
    assert lookup(program, "left")[0]["is_done"] is False
    assert program.stop() == 0
    assert "Traceback" not in program.log_text
    assert "never retrieved" not in program.log_text
