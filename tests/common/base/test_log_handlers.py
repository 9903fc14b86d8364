"""The lines of the access log are written in groups, and no line is lost or out of order."""

import asyncio
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_corral.common.base.log_handlers import MAY_WAIT, LineHandler

from ...support.router_tools import until

access = logging.getLogger("corral.access")
LATER = {MAY_WAIT: True}
other = logging.getLogger("corral.router")


class _Stream(io.StringIO):
    """Counts how often it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


@pytest.fixture
def stream() -> Iterator[_Stream]:
    stream = _Stream()
    yield from _with_handler(LineHandler(stream), stream)


def _with_handler(handler: LineHandler, stream: _Stream) -> Iterator[_Stream]:
    root = logging.getLogger("corral")
    before, root.propagate = root.level, False
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        root.propagate = True


async def test_lines_of_the_access_log_are_written_together(stream: _Stream) -> None:
    for number in range(100):
        access.info("%d", number, extra=LATER)
    assert stream.writes == 0
    await until(lambda: stream.writes > 0)
    assert stream.getvalue().split() == [str(number) for number in range(100)]
    assert stream.writes == 1
    access.info("again", extra=LATER)
    await until(lambda: stream.writes == 2)


async def test_any_other_line_is_written_at_once_and_after_those_that_wait(stream: _Stream) -> None:
    access.info("first", extra=LATER)
    other.info("second")
    assert stream.getvalue() == "first\nsecond\n"


def test_without_an_event_loop_no_line_waits(stream: _Stream) -> None:
    access.info("written", extra=LATER)
    assert stream.getvalue() == "written\n"


def test_lines_of_a_loop_that_ended_are_written_with_the_next(stream: _Stream) -> None:
    async def log_a_line(text: str) -> None:
        access.info(text, extra=LATER)

    asyncio.run(log_a_line("first"))

    async def log_and_wait() -> None:
        access.info("second", extra=LATER)
        await until(lambda: stream.writes > 0)

    asyncio.run(log_and_wait())
    assert stream.getvalue() == "first\nsecond\n"


async def test_closing_the_handler_writes_the_waiting_lines_and_closes_a_file(tmp_path: Path) -> None:
    file = (tmp_path / "router.log").open("a")
    handler = LineHandler(file, closes=True)
    access.addHandler(handler)
    access.warning("last", extra=LATER)
    access.removeHandler(handler)
    handler.close()
    assert file.closed
    assert (tmp_path / "router.log").read_text() == "last\n"


async def test_a_stream_that_cannot_be_written_is_reported_and_logging_goes_on(
    stream: _Stream, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> int:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "write", refuse)
        other.warning("lost")
        access.info("lost too", extra=LATER)
        for handler in logging.getLogger("corral").handlers:
            handler.flush()
    assert capsys.readouterr().err.count("OSError: disk full") == 2
    other.warning("kept")
    assert stream.getvalue() == "kept\n"
