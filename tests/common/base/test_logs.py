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


FORGED = "a\n2026-01-31 12:00:00.123 stopping\r\x1b[31m\x9b0m\x00\u2028é"


@pytest.mark.parametrize("with_traceback", [False, True])
def test_text_in_a_message_neither_forges_lines_nor_controls_a_terminal(
    with_traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(Settings.of(log_timestamps=False))
    log = logging.getLogger("corral.worker")
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        log.error("failed: %s", error, exc_info=with_traceback)
    written = capsys.readouterr().err
    assert written.startswith(
        "error: failed: a\n    2026-01-31 12:00:00.123 stopping\\r\\x1b[31m\\x9b0m\\x00\\u2028é\n"
    )
    assert ("ValueError: a" in written) is with_traceback
    first, *others = written.splitlines()
    assert all(line.startswith("    ") for line in others)
    assert "".join([first, *others]).isprintable()


def test_a_relayed_line_that_overwrites_itself_is_its_last_state_without_colours() -> None:
    assert read_relayed("10 %\r90 %\r\x1b[32mdone\x1b[0m") == (logging.INFO, "done")
    assert read_relayed("\x1b[1;33mwarning: slow\x1b[m") == (logging.WARNING, "slow")
