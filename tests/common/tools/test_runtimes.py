"""Tools in containers and over ssh, with fake engines that run the commands here and record their arguments."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.tools.errors import RuntimeRefused
from llama_corral.common.tools.runtimes import Container, Remote, parse_option, parse_runtime
from router_tools import is_alive, until
from tools_http import tools

FAKE_ENGINE = """#!/bin/sh
# run: a "container" that lives until its input ends; exec: the command, here, if the container lives
printf '%s\\n' "$*" >> "$FAKE_LOG"
verb=$1; shift
case $verb in
run)
  while [ $# -gt 2 ]; do [ "$1" = --cidfile ] && cidfile=$2; shift; done
  [ "$1" = no-such-image ] && { echo "Unable to find image" >&2; exit 125; }
  printf '%s' "$$" > "$cidfile"
  exec "$2"
  ;;
exec)
  [ "$1" = -i ] && shift || exec < /dev/null
  [ "$1" = gone ] && { echo "No such container: gone" >&2; exit 1; }
  shift
  exec "$@"
  ;;
esac
"""
FAKE_SSH = """#!/bin/sh
printf '%s\\n' "$*" >> "$FAKE_LOG"
while [ "$1" = -o ]; do shift 2; done
[ "$1" = -n ] && { shift; exec < /dev/null; }
shift
exec sh -c "$*"
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Replace the engines by fakes; return a function that lists their recorded calls."""
    programs, log = tmp_path / "bin", tmp_path / "asked"
    programs.mkdir()
    for name, text in (("docker", FAKE_ENGINE), ("podman", FAKE_ENGINE), ("ssh", FAKE_SSH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    log.touch()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(log))
    return lambda: log.read_text().splitlines()


@pytest.mark.parametrize("runtime", ["docker-container:c1", "podman-container:c1", "ssh:me@host"])
async def test_every_tool_in_each_runtime(runtime: str, asked: Callable[[], list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "it's a; $(touch pwned)"
    (folder / "build").mkdir(parents=True)
    (folder / "build" / "x.o").touch()

    async with tools(tools=("all",)) as t:
        there = {"x-tool-runtime": runtime, "x-tool-cwd": str(folder)}
        content = "one 'two' $HOME\n`three`\n"
        await t.call("write_file", there, path="sub dir/-f", content=content)
        assert (folder / "sub dir" / "-f").read_text() == content
        assert await t.text("read_file", there, path="sub dir/-f") == content
        await t.call("edit_file", there, path="sub dir/-f", edits=[{"old_text": "one", "new_text": "1"}])
        assert await t.text("grep_search", there, path=".", pattern="1 '") == (
            "sub dir/-f:1 'two' $HOME\n\n---\nTotal matches: 1\n"
        )
        answer = await t.call("file_glob_search", there, path=".", type="all")
        found = {entry["path"]: entry["type"] for entry in answer["entries"]}
        assert found == {"build": "dir", "sub dir": "dir", "sub dir/-f": "file"}
        command = "cat 'sub dir/-f' | head -1; exit 4"
        assert await t.text("exec_shell_command", there, command=command) == "1 'two' $HOME\n\n[exit code: 4]"
        assert (await t.call("get_info", there))["cwd"] == str(folder)
        assert "error" in await t.call("read_file", there, path="missing")
        assert "does not exist" in await t.error("file_glob_search", there, path="missing")
    assert not list(tmp_path.rglob("pwned"))
    target = runtime.partition(":")[2]
    assert all(target in line for line in asked() if line.startswith(("exec", "-o")))


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ("fake:x", "unknown tool runtime: fake:x"),
        ("host", "unknown tool runtime"),
        ("ssh:-oProxyCommand=touch pwned", "invalid ssh target"),
        ("ssh:", "invalid ssh target"),
        ("ssh:host command", "invalid ssh target"),
        ("docker-container:--privileged", "invalid container id"),
        ("podman-container:a b", "invalid container id"),
        ("docker-container:", "invalid container id"),
        ("docker:alpine", "not an image"),
    ],
)
async def test_an_invalid_runtime_never_falls_back_to_this_machine(
    runtime: str, said: str, asked: Callable[[], list[str]]
) -> None:
    async with tools(tools=("all",)) as t:
        calls = [
            ("exec_shell_command", {"command": "true"}),
            ("read_file", {"path": "/etc/hosts"}),
            ("get_info", {}),
        ]
        for tool, params in calls:
            for stream in (False, True) if tool == "exec_shell_command" else (False,):
                response = await t.post(tool, params, {"x-tool-runtime": runtime}, stream=stream)
                assert response.status_code == 500
                assert said in response.json()["message"]
    assert asked() == []


async def test_an_error_of_the_engine_is_reported(asked: Callable[[], list[str]]) -> None:
    async with tools(tools=("all",)) as t:
        gone = {"x-tool-runtime": "docker-container:gone"}
        assert "No such container" in await t.error("read_file", gone, path="/x")
        assert "No such container" in await t.text("exec_shell_command", gone, command="ls")


async def test_the_servers_container_ends_with_the_server(asked: Callable[[], list[str]]) -> None:
    async with tools(tools=("all",), tools_runtime="docker:alpine") as t:
        assert await t.text("exec_shell_command", command="echo hi") == "hi\n\n[exit code: 0]"
        pid = int(asked()[-1].split()[2])
        assert is_alive(pid)
        for wish in ("ssh:elsewhere", "docker-container:other"):
            response = await t.post("get_info", {}, {"x-tool-runtime": wish})
            assert response.status_code == 500
            assert "may not choose" in response.text
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_alive(pid))
        assert await t.text("exec_shell_command", command="echo again") == "again\n\n[exit code: 0]"
        second = int(asked()[-1].split()[2])
        assert second != pid
    await until(lambda: not is_alive(second))


async def test_startup_fails_if_the_container_cannot_be_started(asked: Callable[[], list[str]]) -> None:
    with pytest.raises(ConfigError, match="Unable to find image"):
        async with tools(tools=("all",), tools_runtime="podman:no-such-image"):
            pass


@given(st.text(max_size=30))
def test_no_name_becomes_an_option(text: str) -> None:
    for prefix in ("ssh:", "docker-container:", "podman-container:", "docker:", ""):
        try:
            runtime = parse_option(prefix + text)
        except RuntimeRefused:
            continue
        if isinstance(runtime, Container | Remote):
            name = runtime.identifier if isinstance(runtime, Container) else runtime.target
            assert not name.startswith("-")
            assert not set(name) & set(" \t\n;|&$'\"\\/")


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_arguments_survive_the_remote_shell(words: list[str]) -> None:
    remote = parse_runtime("ssh:host")
    assert remote is not None
    assert shlex.split(remote.command(words)[-1]) == words
