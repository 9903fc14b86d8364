"""Files and directories that options name: every way in which they can be wrong is described in plain words."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from certificates import make_certificate
from llama_corral.common.base.errors import ConfigError, ModelFilesError
from llama_corral.common.base.user_files import directory_of, read_text_of, why_unreadable
from llama_corral.common.hub.resolve import list_cached, resolve_files
from llama_corral.common.tools.mcp_config import read_servers
from llama_corral.common.tools.server import ToolServer
from llama_corral.common.web.auth import read_api_keys
from llama_corral.common.web.listen import listen
from llama_corral.common.web.pages import add_pages
from llama_corral.common.web.ui_settings import read_ui_settings
from llama_corral.presets.abilities import template_source
from llama_corral.presets.ini import read_presets
from llama_corral.presets.models_dir import scan
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.request.defaults import completion_defaults

NO_FILE, DIRECTORY, NOT_TEXT = "no such file", "this is a directory, not a file", "line 2 is not UTF-8 text"
NO_DIRECTORY, FILE = "no such directory", "no such directory: this is a file"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "latin").write_bytes(b"one\nm\xfcde\n")
    return tmp_path


async def _serve(settings: Settings) -> None:
    async with listen(web.Application(), settings):
        pass


def _tls(option: str) -> Callable[[str], Any]:
    def read(path: str) -> Any:
        import asyncio

        other = {"ssl_key_file", "ssl_cert_file"} - {option}
        return asyncio.run(_serve(Settings.of(port=0, **{option: path, other.pop(): __file__})))

    return read


TEXTS: dict[str, Callable[[str], Any]] = {
    "--api-key-file": lambda path: read_api_keys(Settings.of(api_key_file=path), may_wait=True),
    "--ui-config-file": lambda path: read_ui_settings(Settings.of(ui_config_file=path)),
    "--mcp-servers-config": lambda path: read_servers(Settings.of(mcp_servers_config=path)),
    "--grammar-file": lambda path: completion_defaults(Settings.of(grammar_file=path), {}),
    "--json-schema-file": lambda path: completion_defaults(Settings.of(json_schema_file=path), {}),
    "--chat-template-file": lambda path: template_source(Settings.of(chat_template_file=path), None),
}
BINARIES: dict[str, Callable[[str], Any]] = {
    "--ssl-key-file": _tls("ssl_key_file"),
    "--ssl-cert-file": _tls("ssl_cert_file"),
}
DIRECTORIES: dict[str, Callable[[str], Any]] = {
    "--models-dir": lambda path: scan(Path(path)),
    "--path": lambda path: add_pages(web.Application(), Settings.of(path=path), "page"),
    "--tools-root": lambda path: ToolServer(Settings.of(tools=("read_file",), tools_root=path), {}),
}


@pytest.mark.parametrize("option", [*TEXTS, *BINARIES])
@pytest.mark.parametrize(("name", "why"), [("none", NO_FILE), ("file/below", NO_FILE), ("directory", DIRECTORY)])
def test_a_file_that_cannot_be_opened(place: Path, option: str, name: str, why: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        {**TEXTS, **BINARIES}[option](str(place / name))
    assert str(refusal.value) == f"{option} {place / name}: {why}"


@pytest.mark.parametrize("option", TEXTS)
def test_a_file_that_is_not_text(place: Path, option: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        TEXTS[option](str(place / "latin"))
    assert str(refusal.value) == f"{option} {place / 'latin'}: {NOT_TEXT}"


@pytest.mark.parametrize("option", DIRECTORIES)
@pytest.mark.parametrize(("name", "why"), [("none", NO_DIRECTORY), ("file/below", NO_DIRECTORY), ("file", FILE)])
def test_a_directory_that_is_none(place: Path, option: str, name: str, why: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        DIRECTORIES[option](str(place / name))
    assert str(refusal.value) == f"{option} {place / name}: {why}"


def test_files_of_tls_that_do_not_fit_together(place: Path) -> None:
    with pytest.raises(ConfigError, match="one of them is not a PEM file of its kind"):
        BINARIES["--ssl-key-file"](str(place / "file"))


async def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    one, other = (make_certificate(tmp_path / name) for name in ("one", "other"))
    with pytest.raises(ConfigError) as refusal:
        await _serve(Settings.of(port=0, ssl_key_file=str(other.key), ssl_cert_file=str(one.chain)))
    assert str(refusal.value) == (
        f"--ssl-cert-file {one.chain}, --ssl-key-file {other.key}: the key does not belong to the certificate"
    )


@pytest.mark.parametrize(("name", "why"), [("none", "no such file"), ("directory", "this is a directory")])
def test_a_model_that_is_no_file(place: Path, name: str, why: str) -> None:
    with pytest.raises(ModelFilesError, match=f"{name}: {why}"):
        resolve_files(Settings.of(model=str(place / name)), {})


def test_other_reasons() -> None:
    """Opening a file that only another user may read is not tested with a file: root may read everything."""
    assert why_unreadable(PermissionError(errno.EACCES, "Permission denied", "/x")) == "no permission to open it"
    assert why_unreadable(OSError(errno.EIO, os.strerror(errno.EIO), "/x")) == os.strerror(errno.EIO)
    with pytest.raises(ConfigError, match="--x a\0b: no such file"):
        read_text_of("--x", "a\0b")


def test_what_is_right_is_read(place: Path) -> None:
    (place / "marked").write_bytes(b"\xef\xbb\xbfkey\n")
    assert read_text_of("--x", str(place / "marked")) == "key\n", "without the byte order mark of some editors"
    assert directory_of("--x", str(place / "directory")) == place / "directory"


NOT_REGULAR = "this is not a regular file"
AGAIN: dict[str, Callable[[str], Any]] = {
    "--api-key-file": lambda path: read_api_keys(Settings.of(api_key_file=path), may_wait=False),
    "--grammar-file": TEXTS["--grammar-file"],
    "--json-schema-file": TEXTS["--json-schema-file"],
    "--chat-template-file": TEXTS["--chat-template-file"],
    "": read_presets,
}
"""How files are read while the program runs."""


@pytest.mark.parametrize("option", AGAIN)
@pytest.mark.parametrize("kind", ["pipe", "device", "large", "link to a device"])
def test_what_is_read_while_the_program_runs_is_a_regular_file(place: Path, option: str, kind: str) -> None:
    path = place / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(300 << 20)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError) as refusal:
        AGAIN[option](str(path))
    why = "this file has more than 8 MiB" if kind == "large" else NOT_REGULAR
    assert str(refusal.value) == f"{option} {path}: {why}".strip()


def test_a_starting_program_reads_pipes_but_no_endless_device(place: Path) -> None:
    os.mkfifo(path := place / "pipe")
    writer = threading.Thread(target=path.write_text, args=("one\ntwo\n",))
    writer.start()
    assert read_api_keys(Settings.of(api_key_file=str(path)), may_wait=True) == ("one", "two")
    writer.join()
    with pytest.raises(ConfigError, match="this file has more than 8 MiB"):
        read_api_keys(Settings.of(api_key_file="/dev/zero"), may_wait=True)


def test_a_pipe_in_the_cache_is_no_branch(place: Path) -> None:
    refs = place / "hub" / "models--user--repo" / "refs"
    refs.mkdir(parents=True)
    os.mkfifo(refs / "main")
    assert list_cached({"HF_HUB_CACHE": str(place / "hub")}) == []
