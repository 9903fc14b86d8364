"""The built-in tools through /tools, with valid, unusual and hostile arguments."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from router_tools import is_alive, until
from tools_http import tools

ALL = ("all",)


async def test_the_list_fits_into_a_chat_request() -> None:
    async with tools(tools=ALL) as t:
        listed = (await t.client.get("/tools")).json()
        expected = ["read_file", "file_glob_search", "grep_search", "exec_shell_command", "write_file", "edit_file"]
        assert [tool["tool"] for tool in listed] == [*expected, "get_info"]
        for tool in listed:
            assert set(tool) == {"display_name", "tool", "type", "permissions", "uses_cwd", "definition"}
            function = tool["definition"]["function"]
            assert function["name"] == tool["tool"]
            assert function["parameters"]["type"] == "object"
            assert set(function["parameters"].get("required", [])) <= set(function["parameters"]["properties"])
        assert {tool["tool"] for tool in listed if tool["permissions"]["write"]} == {
            *("exec_shell_command", "write_file", "edit_file")
        }
    async with tools(tools=("get_info", "read_file")) as t:
        assert await t.names() == ["read_file", "get_info"]
        assert (await t.post("write_file", {"path": "x", "content": ""})).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"tool": "nothing"}, 404, 'unknown tool "nothing"'),
        ({"params": {}}, 400, "tool is missing"),
        ({"tool": ["read_file"]}, 400, "tool is missing"),
        ({"tool": "read_file", "params": []}, 400, "params.path is missing"),
        ({"tool": "read_file", "params": "x"}, 400, "params must be an object"),
        ({"tool": "read_file", "params": {"path": None}}, 400, "params.path is missing"),
        ({"tool": "read_file", "params": {"path": 3}}, 400, "params.path must be of type string"),
        ({"tool": "read_file", "params": {"path": "x", "start_line": "one"}}, 400, "params.start_line"),
        ({"tool": "read_file", "params": {"path": "x", "append_loc": 1}}, 400, "params.append_loc"),
        ({"tool": "edit_file", "params": {"path": "x", "edits": {}}}, 400, "params.edits"),
        ({"tool": "read_file", "params": {"path": "x"}, "stream": True}, 404, "does not support stream"),
        ({"tool": "read_file", "params": {"path": "x"}, "stream": 1}, 400, "stream must be true or false"),
        ({"tool": "exec_shell_command", "params": {}, "stream": True}, 400, "params.command is missing"),
        ([], 400, "object"),
    ],
)
async def test_an_invalid_call_is_refused(body: Any, status: int, said: str) -> None:
    async with tools(tools=ALL) as t:
        response = await t.client.post("/tools", json=body)
        assert response.status_code == status
        assert said in response.json()["message"]
        assert response.json()["error"]["message"] == response.json()["message"]


async def test_reading(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(b"one\ntwo\nthr\xffe\nfour")
    (tmp_path / "big").write_text("".join(f"line {n}\n" for n in range(10_000)))
    (tmp_path / "-rf").write_text("harmless\n")
    (tmp_path / "empty").touch()

    async with tools(tools=ALL) as t:
        cwd = {"x-tool-cwd": str(tmp_path)}
        assert await t.text("read_file", cwd, path="f.txt") == "one\ntwo\nthr\ufffde\nfour\n"
        assert await t.text("read_file", cwd, path="f.txt", start_line=2, end_line="3") == "two\nthr\ufffde\n"
        assert await t.text("read_file", cwd, path="f.txt", start_line=4.0, append_loc="true") == "4→four\n"
        assert await t.text("read_file", cwd, path="f.txt", start_line=9) == ""
        assert await t.text("read_file", cwd, path="empty") == ""
        assert await t.text("read_file", cwd, path="-rf") == "harmless\n"
        assert "start_line" in await t.error("read_file", cwd, path="big")
        cut = await t.text("read_file", cwd, path="big", end_line=9_999)
        assert cut.endswith("[output truncated]")
        assert len(cut) <= 16 * 1024 + 20
        answer = await t.call("read_file", {**cwd, "x-resp-type": "base64"}, path="f.txt")
        assert base64.b64decode(answer["base64"]) == (tmp_path / "f.txt").read_bytes()
        assert answer["size_bytes"] == 18
        assert "base64" not in await t.call("read_file", cwd, path="f.txt", as_base64=True)


async def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async with tools(tools=ALL) as t:
        cwd = {"x-tool-cwd": str(tmp_path)}
        for path in ("pipe", ".", "/dev/zero", "/dev/stdin"):
            assert "not a regular file" in await t.error("read_file", cwd, path=path), path
        for path in ("pipe", "/dev/null"):
            assert "failed to write file" in await t.error("write_file", cwd, path=path, content="x")
        assert "stat" in await t.error("read_file", cwd, path="missing")
        assert "NUL" in await t.error("read_file", cwd, path="a\0b")
        assert "File name too long" in await t.error("read_file", cwd, path="x" * 10_000)


async def test_writing_and_editing(tmp_path: Path) -> None:
    async with tools(tools=ALL) as t:
        cwd = {"x-tool-cwd": str(tmp_path)}
        answer = await t.call("write_file", cwd, path="new/dir/f.txt", content="grüße\n\0end\n")
        assert answer == {"result": "file written successfully", "path": "new/dir/f.txt", "bytes": 13}
        file = tmp_path / "new" / "dir" / "f.txt"
        assert file.read_bytes() == "grüße\n\0end\n".encode()
        file.chmod(0o754)
        edits = [{"old_text": "end", "new_text": "END"}, {"old_text": "grüße", "new_text": "hallo"}]
        answer = await t.call("edit_file", cwd, path="new/dir/f.txt", edits=edits)
        assert answer["edits_applied"] == 2
        assert file.read_bytes() == b"hallo\n\0END\n"
        assert file.stat().st_mode & 0o777 == 0o754
        file.write_bytes(b"caf\xe9 old\n")
        await t.call("edit_file", cwd, path=str(file), edits=[{"old_text": "old", "new_text": "new"}])
        assert file.read_bytes() == b"caf\xe9 new\n"
        for bad in ([], [{}], ["x"], [{"old_text": "", "new_text": "x"}], [{"old_text": "x", "new_text": 1}]):
            assert "edits" in await t.error("edit_file", cwd, path=str(file), edits=bad)
        assert file.read_bytes() == b"caf\xe9 new\n"


def make_tree(folder: Path) -> None:
    for name in ("src/main.py", "src/deep/er/util.py", "build/out.py", ".git/config", "a b.txt", "new\nline.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"needle in {path.name}\n")
    (folder / "loop").symlink_to(folder)


async def test_finding_files(tmp_path: Path) -> None:
    make_tree(tmp_path)

    async with tools(tools=ALL) as t:

        async def paths(**given: Any) -> list[str]:
            answer = await t.call("file_glob_search", path=str(tmp_path), **given)
            assert answer["base"] == str(tmp_path)
            return [entry["path"] + ("/" if entry["type"] == "dir" else "") for entry in answer["entries"]]

        assert await paths() == ["a b.txt", "new\nline.py", "src/main.py", "src/deep/er/util.py"]
        assert await paths(include="*.py", exclude="deep/**") == ["new\nline.py", "src/main.py"]
        assert await paths(type="dir", max_depth=1) == [".git/", "build/", "loop/", "src/"]
        assert await paths(type="all", include="src/*") == ["src/deep/", "src/main.py"]
        assert await paths(limit=1) == ["a b.txt"]
        text = await t.text("file_glob_search", path=str(tmp_path), limit=1)
        assert "Total matches: 4\n[1 results limit reached (4 total matches)" in text
        assert "invalid limit" in await t.error("file_glob_search", path=str(tmp_path), limit=0)
        assert "invalid type" in await t.error("file_glob_search", path=str(tmp_path), type="link")
        assert "does not exist" in await t.error("file_glob_search", path=str(tmp_path / "a b.txt"))


async def test_gitignore_is_respected_and_no_program_is_started(tmp_path: Path) -> None:
    repository = tmp_path / "-C"
    make_tree(repository)
    shutil.rmtree(repository / ".git")
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (repository / ".gitignore").write_text("*.txt\n")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
    hook.chmod(0o755)
    with (repository / ".git" / "config").open("a") as config:
        config.write(f"[core]\n\tfsmonitor = {hook}\n\thooksPath = {tmp_path}\n")

    async with tools(tools=ALL) as t:
        answer = await t.call("file_glob_search", {"x-tool-cwd": str(tmp_path)}, path="-C")
        names = {entry["path"] for entry in answer["entries"]}
        assert names == {".gitignore", "build/out.py", "new\nline.py", "src/main.py", "src/deep/er/util.py"}
        assert "Total matches: 4" in await t.text("grep_search", path=str(repository), pattern="needle")
        assert not (tmp_path / "pwned").exists()


async def test_searching(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\ntwo (2)\nthree\nTWO\n")
    (tmp_path / "binary").write_bytes(b"two\0")
    (tmp_path / "long.txt").write_text("x" * 100_000 + "two")

    async with tools(tools=ALL) as t:
        cwd = {"x-tool-cwd": str(tmp_path)}
        found = await t.text("grep_search", cwd, path="a.txt", pattern="t[[:alpha:]]o")
        assert found == "a.txt:two (2)\n\n---\nTotal matches: 1\n"
        found = await t.text("grep_search", cwd, path=".", pattern="^two$", ignore_case=True, context_lines=1)
        assert found.startswith("a.txt-3-three\na.txt:4:TWO\n--\n\n---\n")
        found = await t.text("grep_search", cwd, path=".", pattern="(2)", literal=True, return_line_numbers=True)
        assert found.startswith("a.txt:2:two (2)\n")
        found = await t.text("grep_search", cwd, path=".", pattern="two", include="long*")
        assert "[line truncated]" in found
        assert len(found) < 3000
        assert "Total matches: 2" in await t.text("grep_search", cwd, path=".", pattern="two")
        assert "invalid regex" in await t.error("grep_search", cwd, path=".", pattern="(")
        assert "does not exist" in await t.error("grep_search", cwd, path="nowhere", pattern="x")


async def test_long_results_are_truncated(tmp_path: Path) -> None:
    (tmp_path / "many").write_text("match\n" * 500)
    (tmp_path / "wide").write_text(("match " + "y" * 1_900 + "\n") * 90)

    async with tools(tools=ALL) as t:
        cwd = {"x-tool-cwd": str(tmp_path)}
        found = await t.text("grep_search", cwd, path="many", pattern="match")
        assert "Total matches: 100\n[100 matches limit reached" in found
        found = await t.text("grep_search", cwd, path="wide", pattern="match", context_lines=1)
        assert "[output truncated]" in found
        assert len(found) < 300_000


async def test_an_endless_expression_blocks_no_other_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("a" * 60 + "b\n")
    monkeypatch.setattr("llama_corral.common.tools.builtin.FILE_TOOL_S", 0.5)

    async with tools(tools=ALL) as t:
        said = await t.error("grep_search", path=str(tmp_path), pattern="(a|aa)+$")
        assert "timed out after" in said


async def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "sk-secret")

    async with tools(tools=ALL) as t:
        cwd = {"x-tool-cwd": str(tmp_path)}
        assert await t.text("exec_shell_command", cwd, command="pwd; exit 3") == f"{tmp_path}\n\n[exit code: 3]"
        assert await t.text("exec_shell_command", command="echo $LLAMA_API_KEY") == "\n\n[exit code: 0]"
        assert await t.text("exec_shell_command", command="read x; echo got $x") == "got\n\n[exit code: 0]"
        late = await t.text("exec_shell_command", command="echo a; sleep 100", timeout=1)
        assert late == "a\n\n[exit code: 137] [exit due to timed out]"
        cut = await t.text("exec_shell_command", command="yes", timeout=1, max_output_size=10)
        assert cut.startswith("y\ny\ny\ny\ny\n\n[output truncated]\n[exit code: ")
        assert "NUL" in await t.error("exec_shell_command", command="echo \0")
        assert "1 or more" in await t.error("exec_shell_command", command="true", timeout=0)
        assert "no such directory" in await t.error("exec_shell_command", {"x-tool-cwd": "/no/where"}, command="ls")
        info = await t.call("get_info", cwd)
        assert info["cwd"] == str(tmp_path)
        assert os.uname().sysname in info["os"]


async def test_a_stream_is_sent_immediately_and_in_whole_characters() -> None:
    async with tools(tools=ALL) as t:
        command = r"printf 'gr\303'; sleep 0.1; printf '\274\303\237e\377'"
        events = await t.events("exec_shell_command", command=command)
        assert events[-1] == {"done": True}
        assert len(events) >= 3
        assert "".join(event["chunk"] for event in events[:-1]) == "grüße\ufffd\n[exit code: 0]"
        events = await t.events("exec_shell_command", command="x", timeout=-1)
        assert events == [{"done": True, "error": "timeout and max_output_size must be 1 or more"}]


async def test_a_disconnect_ends_the_command(tmp_path: Path) -> None:
    async with tools(tools=ALL) as t:
        body = {"tool": "exec_shell_command", "params": {"command": "echo $$; exec sleep 60"}, "stream": True}
        async with t.client.stream("POST", "/tools", json=body) as response:
            line = await anext(response.aiter_lines())
        pid = int(line.split('"')[3].removesuffix("\\n"))
        await until(lambda: not is_alive(pid))
