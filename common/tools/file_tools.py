"""The built-in file tools: read, write, edit, find. `grep_search` is in another module.

Called by `child` with arguments that were checked against the catalogue. Answers and limits are llama-server's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

from .edits import Edit, apply_edits
from .errors import ToolFailed
from .files import DirectoryEntry, DirectoryListing, Files, Kind
from .globs import Glob

Arguments = dict[str, Any]
Answer = dict[str, Any]

MAX_READ_LENGTH = 16 * 1024
"""Maximum bytes of text in one answer."""
MAX_BASE64 = 32 << 20
MAX_FOUND = 100
TRUNCATED = "[output truncated]"


def read_file(files: Files, given: Arguments) -> Answer:
    shown = given["path"]
    path = files.resolve(shown)
    size = files.size(path, shown)
    if given.get("as_base64"):
        if size > MAX_BASE64:
            raise ToolFailed(f"file too large ({size} bytes, max {MAX_BASE64})")
        content = files.read(path, shown)
        return {"base64": base64.b64encode(content).decode("ascii"), "size_bytes": len(content)}
    last = given.get("end_line", -1)
    if size > MAX_READ_LENGTH and last == -1:
        raise ToolFailed(
            f"file too large ({size} bytes, max {MAX_READ_LENGTH}): read a part of it with start_line and end_line"
        )
    lines = _lines_between(files.read(path, shown), given.get("start_line", 1), last)
    return {"plain_text_response": "".join(_within_limit(lines, is_numbered=given.get("append_loc", False)))}


def _lines_between(content: bytes, first: int, last: int) -> Iterator[tuple[int, str]]:
    """Yield the lines from `first` to `last` with their numbers, from 1; `last` -1: to the end."""
    for number, line in enumerate(io.BytesIO(content), start=1):
        if last != -1 and number > last:
            return
        if number >= first:
            yield number, line.decode("utf-8", "replace").removesuffix("\n")


def _within_limit(lines: Iterator[tuple[int, str]], *, is_numbered: bool) -> Iterator[str]:
    size = 0
    for number, line in lines:
        text = f"{number}→{line}\n" if is_numbered else f"{line}\n"
        size += len(text.encode())
        if size > MAX_READ_LENGTH:
            yield TRUNCATED
            return
        yield text


def write_file(files: Files, given: Arguments) -> Answer:
    content = given["content"].encode("utf-8", "surrogatepass")
    files.write(files.resolve(given["path"]), content, given["path"])
    return {"result": "file written successfully", "path": given["path"], "bytes": len(content)}


def edit_file(files: Files, given: Arguments) -> Answer:
    shown = given["path"]
    edits = [_edit(number, entry) for number, entry in enumerate(given["edits"])]
    if not edits:
        raise ToolFailed("edits must be a non-empty array")
    path = files.resolve(shown)
    before = files.read(path, shown).decode("utf-8", "surrogateescape")
    files.write(path, apply_edits(before, edits, shown).encode("utf-8", "surrogateescape"), shown)
    return {"result": "file edited successfully", "path": shown, "edits_applied": len(edits)}


def _edit(number: int, entry: object) -> Edit:
    old, new = (entry.get("old_text"), entry.get("new_text")) if isinstance(entry, dict) else (None, None)
    if not isinstance(old, str) or not isinstance(new, str):
        raise ToolFailed(f"edits[{number}] must have the texts old_text and new_text")
    if not old:
        raise ToolFailed(f"edits[{number}].old_text must not be empty")
    return Edit(old, new)


def find_files(files: Files, given: Arguments) -> Answer:
    kind: Kind = given.get("type", "file")
    if kind not in ("file", "dir", "all"):
        raise ToolFailed(f"invalid type: {kind} (expected file, dir or all)")
    wanted = given.get("limit", MAX_FOUND)
    if wanted < 1:
        raise ToolFailed(f"invalid limit: {wanted} (expected 1 or more)")
    base = files.resolve(given["path"])
    listing = files.list(base, kind, max(0, given.get("max_depth", 0)), given["path"])
    found = [entry for entry in listing.entries if matches_filters(entry, given)]
    shown = found[: min(wanted, MAX_FOUND)]
    return {
        "plain_text_response": _found_text(shown, len(found), listing),
        "entries": [{"path": entry.path, "type": "dir" if entry.is_folder else "file"} for entry in shown],
        "base": base,
    }


def matches_filters(entry: DirectoryEntry, given: Arguments) -> bool:
    """Return True if an entry passes the arguments `include` and `exclude`."""
    exclude = given.get("exclude", "")
    return Glob(given.get("include", "**"))(entry.path) and not (exclude and Glob(exclude)(entry.path))


def _found_text(shown: list[DirectoryEntry], total: int, listing: DirectoryListing) -> str:
    lines = [entry.path + ("/" if entry.is_folder else "") for entry in shown]
    lines += ["", "---", f"Total matches: {total}"]
    if total > len(shown):
        lines.append(f"[{len(shown)} results limit reached ({total} total matches): narrow the pattern]")
    if not listing.is_complete:
        lines.append("[results truncated: not all folders could be searched]")
    return "\n".join(lines) + "\n"
