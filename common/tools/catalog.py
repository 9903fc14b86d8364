"""The built-in tools as data: their names, what they are for, what they take. Read by `builtin` and shown by `/tools`.

Names, arguments and limits are llama-server's, so that its pages and agents made for it find what they expect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..base.errors import InvalidRequest

Type = Literal["string", "integer", "boolean", "array"]

MAX_COMMAND_S, DEFAULT_COMMAND_S = 60, 10
MAX_OUTPUT = 16 * 1024
"""Bytes of a command's output that a model is given."""


@dataclass(frozen=True)
class ToolParameter:
    name: str
    type: Type
    description: str
    is_required: bool = False
    items: Mapping[str, Any] | None = None

    def schema(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"type": self.type, "description": self.description}
        return {**shown, "items": self.items} if self.items else shown

    def value(self, given: object) -> object:
        """Forgives what models confuse: a number or a truth in quotes, 3.0 for 3. Raises InvalidRequest."""
        if self.type == "integer" and isinstance(given, str | float) and not isinstance(given, bool):
            with contextlib.suppress(ValueError, OverflowError):
                given = int(given) if isinstance(given, str) or given.is_integer() else given
        if self.type == "boolean" and given in ("true", "false"):
            given = given == "true"
        types: dict[Type, type] = {"string": str, "integer": int, "boolean": bool, "array": list}
        if not isinstance(given, types[self.type]) or (self.type == "integer" and isinstance(given, bool)):
            raise InvalidRequest(f"params.{self.name} must be of type {self.type}")
        return given


@dataclass(frozen=True)
class CatalogEntry:
    name: str
    title: str
    description: str
    parameters: tuple[ToolParameter, ...] = ()
    writes: bool = False
    streams: bool = False

    def definition(self) -> dict[str, Any]:
        properties = {parameter.name: parameter.schema() for parameter in self.parameters}
        required = [parameter.name for parameter in self.parameters if parameter.is_required]
        schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
        return function(self.name, self.description, schema)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is given, checked; null is nothing, and what is not known is left out. Raises InvalidRequest."""
        known = {p.name: p.value(given[p.name]) for p in self.parameters if given.get(p.name) is not None}
        for parameter in self.parameters:
            if parameter.is_required and parameter.name not in known:
                raise InvalidRequest(f"params.{parameter.name} is missing: {self.name} needs it")
        return known


def function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As a chat request has it in `tools`."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": dict(parameters)},
    }


_SKIPS = (
    "Files that .gitignore names are left out in a git repository; elsewhere folders like .git, node_modules or build "
    "are not entered. "
)
_GLOBS = "A pattern without / is matched against the name, one with / against the end of the path."

_INCLUDE = ToolParameter("include", "string", "Glob pattern of what to look at, like *.py or src/**/*.c (default: **)")
_EXCLUDE = ToolParameter("exclude", "string", "Glob pattern of what to leave out")

_EDIT_ITEMS = {
    "type": "object",
    "properties": {
        "old_text": {"type": "string", "description": "Text as it is in the file; must be there exactly once"},
        "new_text": {"type": "string", "description": "Text to put in its place"},
    },
    "required": ["old_text", "new_text"],
}

CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        "read_file",
        "Read file",
        "Read a text file, or some of its lines.",
        (
            ToolParameter("path", "string", "Path of the file", is_required=True),
            ToolParameter("start_line", "integer", "First line, counted from 1 (default: 1)"),
            ToolParameter("end_line", "integer", "Last line, included (default: the last of the file)"),
            ToolParameter("append_loc", "boolean", "Begin each line with its number and →"),
        ),
    ),
    CatalogEntry(
        "file_glob_search",
        "File search",
        f"Find files below a folder by a glob pattern. {_SKIPS}{_GLOBS}",
        (
            ToolParameter("path", "string", "Folder to search", is_required=True),
            _INCLUDE,
            _EXCLUDE,
            ToolParameter("type", "string", 'What to find: "file" (default), "dir" or "all"; folders end with /'),
            ToolParameter("max_depth", "integer", "Levels to go down: 1 is the folder itself, 0 is all (default)"),
            ToolParameter("limit", "integer", "Most results to return, 100 at most (default: 100)"),
        ),
    ),
    CatalogEntry(
        "grep_search",
        "Grep search",
        f"Find lines that match a pattern, in a file or in all files below a folder. {_SKIPS}{_GLOBS}",
        (
            ToolParameter("path", "string", "File or folder to search", is_required=True),
            ToolParameter("pattern", "string", "Regular expression, or with literal a text", is_required=True),
            _INCLUDE,
            _EXCLUDE,
            ToolParameter("return_line_numbers", "boolean", "Show the numbers of lines"),
            ToolParameter("literal", "boolean", "The pattern is a text and no expression"),
            ToolParameter("ignore_case", "boolean", "Upper and lower case are the same"),
            ToolParameter("context_lines", "integer", "Lines to show before and after each match (default: 0)"),
        ),
    ),
    CatalogEntry(
        "exec_shell_command",
        "Execute shell command",
        "Run a shell command and return what it writes, errors included. What it leaves running is ended with it.",
        (
            ToolParameter("command", "string", "Command for sh -c", is_required=True),
            ToolParameter("timeout", "integer", f"Seconds it may take, at most {MAX_COMMAND_S} (default: 10)"),
            ToolParameter("max_output_size", "integer", f"Bytes of output to return, at most {MAX_OUTPUT} (default)"),
        ),
        writes=True,
        streams=True,
    ),
    CatalogEntry(
        "write_file",
        "Write file",
        "Write a text to a file, which is made or replaced, with the folders it needs. edit_file is for small changes.",
        (
            ToolParameter("path", "string", "Path of the file", is_required=True),
            ToolParameter("content", "string", "All that the file shall hold", is_required=True),
        ),
        writes=True,
    ),
    CatalogEntry(
        "edit_file",
        "Edit file",
        "Replace texts in a file. Each old_text must be in the file exactly once, as the file is before any of the "
        "edits, and edits must not overlap: make neighbours one edit.",
        (
            ToolParameter("path", "string", "Path of the file", is_required=True),
            ToolParameter("edits", "array", "The replacements", is_required=True, items=_EDIT_ITEMS),
        ),
        writes=True,
    ),
    CatalogEntry("get_info", "Get Runtime Info", "Tell the operating system and the working directory."),
)
