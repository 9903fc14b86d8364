"""MCP servers, built with the official package, through /tools: correct ones and faulty ones."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.tools import mcp_servers
from llama_corral.common.tools.mcp_config import McpServer, parse_servers
from llama_corral.common.tools.mcp_connection import MAX_MESSAGE, _LineSplitter
from llama_corral.common.tools.mcp_servers import read_result
from router_tools import is_alive, until
from tools_http import ToolClient, fake_mcp, mcp_json, tools


async def pid_of(t: ToolClient, server: str = "f") -> int:
    return int(await t.text(f"{server}_pid"))


async def test_a_server_made_with_the_official_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "sk-secret")
    monkeypatch.setenv("FROM_US", "ours")

    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("official", env={"TOKEN": "theirs"}))) as t:
        listed = {tool["tool"]: tool for tool in (await t.client.get("/tools")).json()}
        assert set(listed) == {"f_echo", "f_add", "f_slow", "f_fail", "f_environment"}
        echo = listed["f_echo"]
        assert (echo["type"], echo["uses_cwd"], echo["permissions"]) == ("mcp", False, {"write": False})
        function = echo["definition"]["function"]
        assert (function["name"], function["description"]) == ("f_echo", "Says it again.")
        assert function["parameters"]["required"] == ["message"]
        assert await t.text("f_echo", message="hällo\n") == "echo: hällo\n"
        assert await t.text("f_add", a=3, b=5) == "8"
        assert "fail" in await t.error("f_fail")
        assert "error" in await t.call("f_add", a="x")
        environment = [await t.text("f_environment", name=name) for name in ("TOKEN", "FROM_US", "LLAMA_API_KEY")]
        assert environment == ["theirs", "ours", "not set"]
        began = time.monotonic()
        slow = [asyncio.create_task(t.text("f_slow", seconds=1)) for _ in range(8)]
        assert await t.text("f_echo", message="side by side") == "echo: side by side"
        assert [await task for task in slow] == ["slept"] * 8
        assert time.monotonic() - began < 8


async def test_a_server_is_started_for_the_list_and_for_the_first_call(tmp_path: Path) -> None:
    starts = tmp_path / "starts"

    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("quick", str(starts)))) as t:
        assert "f_echo" in await t.names()
        assert starts.read_text() == "started\n"
        for _ in range(3):
            assert await t.text("f_echo", message="x") == "echo: x"
        assert starts.read_text() == "started\nstarted\n"
        assert (await t.post("f_echo", {"message": "x"}, stream=True)).status_code == 404
        assert (await t.post("f_nothing", {})).status_code == 404
        assert await t.text("f_echo", {"x-tool-runtime": "nonsense", "x-tool-cwd": "/"}, message="x") == "echo: x"


async def test_other_output_is_not_an_answer() -> None:
    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("quick"), pages=fake_mcp("pages"))) as t:
        assert await t.text("f_chatter", message="it") == "echo: it"
        assert {"pages_one", "pages_two"} <= set(await t.names())
        assert await t.text("pages_two") == "a text\n[image: image/png]\nits text"


async def test_changed_tools_are_listed() -> None:
    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("quick"))) as t:
        assert "f_extra" not in await t.names()
        await t.call("f_grow")
        assert "f_extra" in await t.names()
        assert await t.text("f_extra", message="x") == "echo: x"


async def test_a_server_that_dies_is_restarted() -> None:
    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("quick"))) as t:
        first = await pid_of(t)
        said = await t.error("f_die")
        assert "ended with code 7" in said
        assert "the end is near" in said
        assert await pid_of(t) != first


async def test_a_slow_tool_times_out_but_its_server_keeps_running() -> None:
    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("quick", timeout_ms=1500))) as t:
        first = await pid_of(t)
        assert "timed out after 1.5 s" in await t.error("f_silent")
        assert await pid_of(t) == first


async def test_a_server_that_hangs_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_corral.common.tools.mcp_connection.PING_S", 0.3)

    async with tools(mcp_servers_json=mcp_json(f=fake_mcp("quick", timeout_ms=1500))) as t:
        first = await pid_of(t)
        assert "timed out" in await t.error("f_hang")
        assert await pid_of(t) != first
        await until(lambda: not is_alive(first))


async def test_bad_servers_do_not_affect_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_servers, "COOLDOWN_S", 60)
    bad = {
        "missing": {"command": "no-such-program-4711"},
        "dying": fake_mcp("die"),
        "mute": fake_mcp("mute", timeout_ms=300),
        "garbage": fake_mcp("garbage", timeout_ms=300),
        "nowhere": fake_mcp("quick", cwd="/no/where"),
    }

    async with tools(tools=("get_info",), mcp_servers_json=mcp_json(**bad, good=fake_mcp("quick"))) as t:
        names = await t.names()
        assert "good_echo" in names
        assert [name for name in names if name.split("_")[0] in bad] == []
        assert await t.text("good_echo", message="x") == "echo: x"


async def test_a_server_that_cannot_be_started_reports_why_and_has_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_servers, "COOLDOWN_S", 0.2)
    starts, script = tmp_path / "starts", tmp_path / "server"
    configuration = fake_mcp("quick", str(starts))
    script.write_text(f"#!/bin/sh\nexec {configuration['command']} {' '.join(configuration['args'])}\n")
    script.chmod(0o755)

    async with tools(mcp_servers_json=mcp_json(f={"command": str(script)})) as t:
        assert "f_echo" in await t.names()
        good = script.read_text()
        script.write_text(f"#!/bin/sh\necho started >> {starts}; echo no luck >&2; exit 5\n")
        answers = [await t.error("f_echo", message="x") for _ in range(3)]
        assert "code 5" in answers[0]
        assert "no luck" in answers[0]
        script.write_text(good)
        async with asyncio.timeout(20):
            while (answer := await t.call("f_echo", message="x")) != {"plain_text_response": "echo: x"}:
                assert "unavailable" in answer["error"]
                await asyncio.sleep(0.05)


async def test_a_slow_server_appears_in_a_later_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_servers, "COOLDOWN_S", 0)
    script = tmp_path / "server"

    async with tools(mcp_servers_json=mcp_json(f={"command": str(script)})) as t:
        assert await t.names() == []
        configuration = fake_mcp("quick")
        script.write_text(f"#!/bin/sh\nexec {configuration['command']} {' '.join(configuration['args'])}\n")
        script.chmod(0o755)
        async with asyncio.timeout(20):
            while "f_echo" not in await t.names():  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("mode", ["quick", "stubborn", "mute", "garbage"])
async def test_shutdown_does_not_wait_for_servers(mode: str) -> None:
    async def check() -> float:
        async with tools(mcp_servers_json=mcp_json(f=fake_mcp(mode))) as t:
            if mode == "quick":
                await pid_of(t)
            began = time.monotonic()
        return time.monotonic() - began

    assert await check() < 3


async def test_a_built_in_tool_cannot_be_replaced() -> None:
    servers = mcp_json(get=fake_mcp("quick"), f=fake_mcp("quick"))
    async with tools(tools=("get_info",), mcp_servers_json=servers) as t:
        names = await t.names()
        assert len(names) == len(set(names))
        assert "os" in await t.call("get_info")


# -- pure parts ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=8)), st.data())
def test_lines_are_split_at_any_chunk_boundary(lines: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    reader = _LineSplitter()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        found += reader.feed(sent[start:end])
    assert found == [line for line in sent.split(b"\n") if line.strip()]


def test_a_line_without_end_is_dropped_up_to_its_end() -> None:
    reader = _LineSplitter()
    for _ in range(10):
        assert reader.feed(b"x" * (MAX_MESSAGE // 4)) == []
    assert reader.feed(b'x\n{"a": 1}\n') == [b'{"a": 1}']


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "not JSON"),
        ("[]", "mcpServers"),
        ('{"mcpServers": []}', "mcpServers"),
        ('{"mcpServers": {"a": 1}}', "a: expected an object"),
        ('{"mcpServers": {"a": {"command": 1}}}', "a: command must be a string"),
        ('{"mcpServers": {"a": {"command": "x", "args": [1]}}}', "a: args"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"b": 1}}}}', "a: env"),
        ('{"mcpServers": {"a": {"command": "x", "timeout_ms": 0}}}', "a: timeout_ms"),
    ],
)
def test_an_invalid_configuration_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_servers(text, "here")


def test_a_configuration() -> None:
    config: dict[str, Any] = {
        "a": {"command": "x", "args": ["-y"], "env": {"K": "v"}, "cwd": "/c", "timeout_ms": 1500, "other": 1},
        "off": {"command": "x", "disabled": True},
        "remote": {"url": "http://x"},
    }
    expected = [McpServer("a", "x", ("-y",), {"K": "v"}, "/c", 1.5)]
    assert parse_servers(json.dumps({"mcpServers": config}), "here") == expected
    assert parse_servers("{}", "here") == []


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_any_result_is_an_answer(value: Any) -> None:
    for result in ({"content": value}, {"content": [value], "isError": True}, {"content": [{"resource": value}]}):
        assert len(read_result(result)) == 1
