"""Paths in calls of tools: how they are resolved, and that none leads out of --tools-root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.tools.errors import ToolFailed
from llama_corral.common.tools.files import LocalFiles
from llama_corral.common.tools.server import ToolServer
from llama_corral.presets.options.settings import Settings
from tools_http import tools

SECRET = "the secret"
FILE_TOOLS = ("read_file", "file_glob_search", "grep_search", "write_file", "edit_file", "get_info")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """The parent of `root`, which contains links, and of a file outside it that must stay unreachable."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "secret").write_text(SECRET)
        root = folder / "root"
        (root / "sub").mkdir(parents=True)
        (root / "inside").write_text("inside")
        (root / "out").symlink_to(folder)
        (root / "out-file").symlink_to(folder / "secret")
        (root / "dangling").symlink_to(folder / "to-be-made")
        (root / "back").symlink_to(root / "sub")
        (folder / "root-two").mkdir()
        (folder / "root-two" / "secret").write_text(SECRET)
        yield folder


PIECES = (
    "..",
    ".",
    "sub",
    "out",
    "back",
    "secret",
    "out-file",
    "inside",
    "root",
    "root-two",
    "dangling",
    "~",
    "",
    "-rf",
)
PATHS = st.lists(st.sampled_from(PIECES), max_size=8).map("/".join)


@given(path=PATHS, is_absolute=st.booleans(), cwd=PATHS)
def test_no_path_leads_out_of_the_root(place: Path, path: str, is_absolute: bool, cwd: str) -> None:
    root = os.path.realpath(place / "root")
    try:
        files = LocalFiles(cwd, root)
        found = files.resolve(("/" if is_absolute else "") + path)
    except ToolFailed:
        return
    assert found == root or found.startswith(root + "/")
    assert os.path.realpath(found) == found


@given(st.text(max_size=30))
def test_any_text_is_a_path_or_refused(place: Path, path: str) -> None:
    for root in ("", str(place / "root")):
        try:
            found = LocalFiles(str(place), "").resolve(path) if not root else LocalFiles("", root).resolve(path)
        except ToolFailed:
            continue
        assert found.startswith("/")


def test_without_a_root_paths_are_only_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    files = LocalFiles("/base")
    expected = {
        "a/./b/../c": "/base/a/c",
        "/x/": "/x",
        "~": "/home/someone",
        "~/f": "/home/someone/f",
        "~root": "/base/~root",
        "..": "/",
        "-rf": "/base/-rf",
    }
    assert {path: files.resolve(path) for path in expected} == expected


async def test_the_root_applies_to_every_tool(place: Path) -> None:
    real = os.path.realpath(place / "root")

    async with tools(tools=FILE_TOOLS, tools_root=str(place / "root")) as t:
        assert await t.text("read_file", path="inside") == "inside\n"
        assert await t.text("read_file", path=str(place / "root" / "inside")) == "inside\n"
        for path in (
            "../secret",
            "out/secret",
            "out-file",
            str(place / "secret"),
            "../root-two/secret",
            "/etc/passwd",
        ):
            assert "outside of" in await t.error("read_file", path=path), path
            assert "outside of" in await t.error("grep_search", path=path, pattern="secret"), path
            assert "outside of" in await t.error("write_file", path=path, content="x"), path
            edits = [{"old_text": "the", "new_text": "no"}]
            assert "outside of" in await t.error("edit_file", path=path, edits=edits), path
        assert "outside of" in await t.error("write_file", path="dangling", content="x")
        assert not (place / "to-be-made").exists()
        assert "outside of" in await t.error("file_glob_search", path="out")
        assert "outside of" in await t.error("read_file", {"x-tool-cwd": "/etc"}, path="passwd")
        assert "secret" not in await t.text("grep_search", path=".", pattern="secret")
        for header in ("ssh:localhost", "docker-container:abc"):
            response = await t.post("read_file", {"path": "inside"}, {"x-tool-runtime": header})
            assert response.status_code == 500
            assert "may not choose" in response.text
        await t.call("write_file", path="back/made", content="x")
        assert (place / "root" / "sub" / "made").read_text() == "x"
        assert (await t.call("get_info"))["cwd"] == real
    assert (place / "secret").read_text() == SECRET


@pytest.mark.parametrize(
    ("given_options", "said"),
    [
        ({"tools": ("read_file", "no_such_tool")}, "unknown tool 'no_such_tool'"),
        ({"tools": ("all",), "tools_root": "/"}, "exec_shell_command"),
        ({"tools": ("exec_shell_command",), "tools_root": "/"}, "exec_shell_command"),
        ({"tools": ("read_file",), "tools_root": "/no/where"}, "no such directory"),
        ({"tools": ("read_file",), "tools_root": "/", "tools_runtime": "ssh:host"}, "--tools-runtime"),
        ({"tools": ("read_file",), "tools_runtime": "ssh:-oProxyCommand=x"}, "invalid ssh target"),
        ({"tools": ("read_file",), "tools_runtime": "docker:--privileged"}, "invalid image name"),
        ({"tools": ("read_file",), "tools_runtime": "docker:"}, "invalid image name"),
        ({"tools": ("read_file",), "tools_runtime": "lxc:x"}, "unknown tool runtime"),
    ],
)
def test_invalid_options_are_refused(given_options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ToolServer(Settings(**given_options), {})  # type: ignore[arg-type]
