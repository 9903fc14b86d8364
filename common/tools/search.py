"""The built-in tool `grep_search`: finds lines that match a regular expression, in a file or below a folder.

Called by `child`: an expression that runs without end blocks no other request, and its process is killed on timeout.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

from .errors import ToolFailed
from .file_tools import TRUNCATED, Answer, Arguments, matches_filters
from .files import Files

MAX_MATCHES = 100
MAX_LINE_LENGTH = 2000
"""Maximum characters shown of a line; in generated files the position is enough."""
MAX_OUTPUT = 256 * 1024
BINARY_PROBE = 8192
"""A file with a NUL in its first bytes counts as binary."""

_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "xdigit": "0-9A-Fa-f",
    "punct": r"!-/:-@\[-`{-~",
    "blank": r" \t",
}
"""Character classes of ECMAScript in C++ and of grep, which Python's regular expressions lack."""


def grep_search(files: Files, given: Arguments) -> Answer:
    pattern = _pattern(given)
    path = files.resolve(given["path"])
    if files.is_file(path):
        to_search = [(path, given["path"])]
    elif files.is_folder(path):
        entries = files.list(path, "file", 0, given["path"]).entries
        to_search = [(f"{path}/{entry.path}", entry.path) for entry in entries if matches_filters(entry, given)]
    else:
        raise ToolFailed(f"path does not exist: {given['path']}")
    around = max(0, given.get("context_lines", 0))
    is_numbered = given.get("return_line_numbers", False) or around > 0
    return {"plain_text_response": _report(_matches(files, to_search, pattern, around, is_numbered))}


def _pattern(given: Arguments) -> re.Pattern[str]:
    text = re.escape(given["pattern"]) if given.get("literal") else _translated(given["pattern"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(text, re.IGNORECASE if given.get("ignore_case") else 0)
    except (re.error, RecursionError, OverflowError) as error:
        raise ToolFailed(f"invalid regex: {error}") from None


def _translated(text: str) -> str:
    return re.sub(r"\[:(\w+):\]", lambda found: _CLASSES.get(found[1], found[0]), text)


def _matches(
    files: Files, to_search: list[tuple[str, str]], pattern: re.Pattern[str], around: int, is_numbered: bool
) -> Iterator[str]:
    """Yield one text for each match, with the lines around it."""
    for path, shown in to_search:
        lines = _lines(files, path, shown)
        for number, line in enumerate(lines):
            if pattern.search(line):
                yield "".join(_shown(lines, number, around, shown, is_numbered))


def _lines(files: Files, path: str, shown: str) -> list[str]:
    try:
        content = files.read(path, shown)
    except ToolFailed:  # unreadable or too large: continue with the other files
        return []
    if b"\0" in content[:BINARY_PROBE]:
        return []
    lines = content.decode("utf-8", "replace").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _shown(lines: list[str], number: int, around: int, path: str, is_numbered: bool) -> Iterator[str]:
    for place in range(max(0, number - around), min(len(lines), number + around + 1)):
        mark = ":" if place == number else "-"
        line = lines[place]
        cut = line[:MAX_LINE_LENGTH] + " [line truncated]" if len(line) > MAX_LINE_LENGTH else line
        yield f"{path}{mark}{place + 1}{mark}{cut}\n" if is_numbered else f"{path}{mark}{cut}\n"
    if around:
        yield "--\n"


def _report(matches: Iterator[str]) -> str:
    shown: list[str] = []
    size, note = 0, ""
    for text in matches:
        if len(shown) == MAX_MATCHES:
            note = f"[{MAX_MATCHES} matches limit reached: narrow the path, the pattern or include]\n"
            break
        size += len(text)
        if size > MAX_OUTPUT:
            note = TRUNCATED + "\n"
            break
        shown.append(text)
    return "".join(shown) + f"\n---\nTotal matches: {len(shown)}\n" + note
