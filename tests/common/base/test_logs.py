"""The lines of a worker that its router relays: their form, and how the router reads their level."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_corral.common.base import logs
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.logs import read_relayed
from llama_corral.presets.options.settings import Settings


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("corral")
    before = (root.handlers[:], root.level, ours.level)
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, level, own_level = before
    root.setLevel(level)
    ours.setLevel(own_level)


@pytest.mark.parametrize("given", [{}, {"log_jsonl": True}, {"log_timestamps": True, "log_colors": "on"}])
def test_a_relayed_line_is_plain(given: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.set_up(Settings.of(**given, log_file=str(file)), relayed=True)
    log = logging.getLogger("corral.worker")
    log.info("loading")
    log.warning("slow")
    assert capsys.readouterr() == ("", "loading\nwarning: slow\n")
    first = file.read_text().splitlines()[0]
    assert first.startswith("{" if "log_jsonl" in given else "20"), "the worker's own file has what the options say"


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_the_level_of_a_relayed_line_is_read(prefix: bool, level: int, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Settings.of(log_prefix=prefix, log_verbosity=4), relayed=True)
    logging.getLogger("corral.worker").log(level, "text: of a line")
    read, text = read_relayed(capsys.readouterr().err.rstrip("\n"))
    assert (read, text.endswith("text: of a line")) == (level if prefix or level > logging.INFO else logging.INFO, True)
    assert text.startswith("text") is not prefix


@pytest.mark.parametrize("line", ["", "{}", "W", "warning", "D: drive", "I am a line: of a program", "errors: 3"])
def test_other_lines_are_information(line: str) -> None:
    assert read_relayed(line) == (logging.INFO, line)


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ('{"type":"log","time":1,"level":"warn","msg":"srv  slow\\n"}', logging.WARNING, "srv  slow"),
        ('{"type":"log","time":1,"level":"cont","msg":"more"}', logging.INFO, "more"),
        ('{"type":"log","time":1,"level":"info"}', logging.INFO, None),
        ('{"type":"log",', logging.INFO, None),
        ('{"event": "other"}', logging.INFO, None),
    ],
)
def test_a_json_line_of_llama_server_is_replaced_by_its_text(line: str, level: int, text: str | None) -> None:
    assert read_relayed(line) == (level, line if text is None else text)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none/log", "no such file"),
        ("directory", "this is a directory, not a file"),
        ("file/log", "no such file"),
    ],
)
def test_a_log_file_that_cannot_be_written(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError) as refusal:
        logs.set_up(Settings.of(log_file=str(tmp_path / name)))
    assert str(refusal.value) == f"--log-file {tmp_path / name}: {why}"
