"""Configures logging from the `--log-*` options; the mains of router and worker call it once.

All modules log through `logging` under names that begin with `corral.`. Lines go to stderr, or as JSON to stdout; with
`--log-file` also to that file. A worker that was started by a router writes plain lines, without time, colours and
JSON, because the router writes each of them into its own log (`read_relayed`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from .errors import ConfigError
from .json_encoding import encode_json
from .log_handlers import LineHandler
from .user_files import why_unreadable

if TYPE_CHECKING:
    from .common_settings import LogSettings

LEVELS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""Levels for `--verbosity` 0 to 4; 5 and above also show the debug lines of third-party libraries."""
_COLOURS = {
    logging.WARNING: "\033[33m",
    logging.ERROR: "\033[31m",
    logging.CRITICAL: "\033[31m",
    logging.DEBUG: "\033[2m",
}
_RESET = "\033[0m"
_NEXT_LINE = "\n    "
MAX_TEXT = 500
"""Characters that `one_line` keeps of a text."""


def one_line(text: str) -> str:
    """Return text that a client sent as it may appear in the log: at most MAX_TEXT characters, no control characters.

    Otherwise a client could write log lines of its choice, or send control sequences to a terminal.
    """
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def harmless(text: str) -> str:
    """Return a log message of one or more lines without control characters, and all lines but the first indented.

    So text of clients or programs can neither control a terminal nor look like a line of the log.
    """
    if text.isprintable():
        return text
    return _NEXT_LINE.join("".join(_printable(c) for c in line) for line in text.split("\n"))


def _printable(character: str) -> str:
    is_shown = character.isprintable() or character == "\t"
    return character if is_shown else character.encode("unicode_escape").decode("ascii")


def set_up(settings: LogSettings, *, relayed: bool = False) -> None:
    """Replace all handlers by those of the options. Raise ConfigError if the log file cannot be written.

    `relayed`: True in a worker whose router relays the lines.
    """
    # no line shows these; leaving them out saves time for each line
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        root.removeHandler(handler)
        handler.close()
    verbosity = settings.log.log_verbosity
    level = LEVELS[min(verbosity, len(LEVELS) - 1)]
    is_deep = verbosity >= len(LEVELS)
    root.setLevel(logging.DEBUG if is_deep else max(level, logging.WARNING))
    logging.getLogger("corral").setLevel(level)
    if settings.log.log_disable:
        root.addHandler(logging.NullHandler())
        return
    for handler in _handlers(settings, relayed):
        root.addHandler(handler)


def _handlers(settings: LogSettings, relayed: bool) -> list[logging.Handler]:
    stream = sys.stdout if settings.log.log_jsonl and not relayed else sys.stderr
    screen = LineHandler(stream)
    if relayed:
        screen.setFormatter(LineFormatter(timestamps=False, prefix=settings.log.log_prefix, colours=False))
    else:
        screen.setFormatter(_formatter(settings, colours=_wants_colours(settings.log.log_colors, stream)))
    if not settings.log.log_file:
        return [screen]
    try:
        opened = Path(settings.log.log_file).open("a", encoding="utf-8", errors="replace")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"--log-file {settings.log.log_file}: {why_unreadable(error)}") from None
    file = LineHandler(opened, closes=True)
    file.setFormatter(_formatter(settings, colours=False))
    return [screen, file]


def _formatter(settings: LogSettings, *, colours: bool) -> logging.Formatter:
    if settings.log.log_jsonl:
        return JsonLineFormatter()
    return LineFormatter(timestamps=settings.log.log_timestamps, prefix=settings.log.log_prefix, colours=colours)


def _wants_colours(choice: str, stream: TextIO) -> bool:
    if choice == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "on"


class LineFormatter(logging.Formatter):
    """Formats `2026-01-31 12:00:00.123 W router: message`; without prefix only warnings and errors show their level."""

    def __init__(self, *, timestamps: bool, prefix: bool, colours: bool) -> None:
        super().__init__()
        self._timestamps = timestamps
        self._prefix = prefix
        self._colours = colours
        self._second = (0, "")
        """The second of the last line, and its text: most lines of a busy server have the same."""

    def format(self, record: logging.LogRecord) -> str:
        line = self._head(record) + harmless(_message(self, record))
        colour = _COLOURS.get(record.levelno) if self._colours else None
        line = f"{colour}{line}{_RESET}" if colour else line
        return f"{self._time(record)} {line}" if self._timestamps else line

    def _head(self, record: logging.LogRecord) -> str:
        if self._prefix:
            return f"{record.levelname[0]} {record.name.removeprefix('corral.')}: "
        return f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""

    def _time(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second)))
        return f"{self._second[1]}.{int(record.msecs):03d}"


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the message and its traceback, without the work of `logging.Formatter` for a line that has none."""
    if record.exc_info or record.exc_text or record.stack_info:
        return logging.Formatter.format(formatter, record)
    return record.getMessage()


class JsonLineFormatter(logging.Formatter):
    """Formats one JSON object per line, with llama-server's keys plus the logger's name."""

    def format(self, record: logging.LogRecord) -> str:
        shown = {
            "type": "log",
            "time": int(record.created * 1e6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": _message(self, record),
        }
        return encode_json(shown).decode()


_TERMINAL_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RELAYED_LEVEL = re.compile(r"(warning|error|critical): |([DIWEC]) [a-z][\w.]*: ")
_LETTERS = {logging.getLevelName(level)[0]: level for level in LEVELS}


class _JsonLine(msgspec.Struct):
    level: str
    msg: str


_JSON_LINE = '{"type":"log",'


def read_relayed(line: str) -> tuple[int, str]:
    """Return the level of a worker's line, and its text without the level; INFO for lines that name none.

    A line of llama-server's `--log-jsonl`, which another program may write, is replaced by its text. Of
    a line that overwrites itself on a terminal the last state is kept, without colours.
    """
    if not line.isprintable():
        line = _TERMINAL_COLOUR.sub("", line.rpartition("\r")[2])
    if line.startswith(_JSON_LINE):
        with contextlib.suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(line, type=_JsonLine)
            return logging.getLevelNamesMapping().get(entry.level.upper(), logging.INFO), entry.msg.rstrip("\n")
    found = _RELAYED_LEVEL.match(line)
    if found is None:
        return logging.INFO, line
    if found[1]:
        return logging.getLevelNamesMapping()[found[1].upper()], line[found.end() :]
    return _LETTERS[found[2]], line
