"""The built-in tools as data: names, descriptions, parameters. Used by `builtin`, and listed by `/tools`.

Names, parameters and limits are llama-server's, so that its pages and agents work with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from ..base.errors import InvalidRequest

Type = Literal["string", "integer", "boolean", "array"]

MAX_COMMAND_S, DEFAULT_COMMAND_S = 60, 10
MAX_OUTPUT = 16 * 1024
"""Maximum bytes of a command's output that a model gets."""


class ToolParameter(Struct, frozen=True):
    name: str
    type: Type
    description: str
    is_required: bool = False
    items: Mapping[str, Any] | None = None

    def schema(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"type": self.type, "description": self.description}
        return {**shown, "items": self.items} if self.items else shown

    def value(self, given: object) -> object:
        """Return the checked argument. Accept common mistakes of models: numbers and booleans in quotes, 3.0 for 3.

        Raise InvalidRequest for a wrong type.
        """
        if self.type == "integer" and isinstance(given, str | float) and not isinstance(given, bool):
            with contextlib.suppress(ValueError, OverflowError):
                given = int(given) if isinstance(given, str) or given.is_integer() else given
        if self.type == "boolean" and given in ("true", "false"):
            given = given == "true"
        types: dict[Type, type] = {"string": str, "integer": int, "boolean": bool, "array": list}
        if not isinstance(given, types[self.type]) or (self.type == "integer" and isinstance(given, bool)):
            raise InvalidRequest(f"params.{self.name} must be of type {self.type}")
        return given


class CatalogEntry(Struct, frozen=True):
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
        """Return the checked arguments; null means absent, and unknown ones are left out. Raise InvalidRequest."""
        known = {p.name: p.value(given[p.name]) for p in self.parameters if given.get(p.name) is not None}
        for parameter in self.parameters:
            if parameter.is_required and parameter.name not in known:
                raise InvalidRequest(f"params.{parameter.name} is missing: {self.name} requires it")
        return known


def function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's definition in the format of a chat request's `tools`."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": dict(parameters)},
    }


_SKIPS = (
    "In a git repository, files listed in .gitignore are skipped; elsewhere, folders such as .git, node_modules or "
    "build are not searched. "
)
_GLOBS = "A pattern without / is matched against the file name, a pattern with / against the end of the path."

_INCLUDE = ToolParameter("include", "string", "Glob pattern of paths to include: *.py or src/**/*.c (default: **)")
_EXCLUDE = ToolParameter("exclude", "string", "Glob pattern of paths to exclude")

_EDIT_ITEMS = {
    "type": "object",
    "properties": {
        "old_text": {"type": "string", "description": "Exact text in the file; must occur exactly once"},
        "new_text": {"type": "string", "description": "Text that replaces it"},
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
            ToolParameter("end_line", "integer", "Last line, inclusive (default: the file's last line)"),
            ToolParameter("append_loc", "boolean", "Start each line with its number and →"),
        ),
    ),
    CatalogEntry(
        "file_glob_search",
        "File search",
        f"Find files in a folder and its subfolders by a glob pattern. {_SKIPS}{_GLOBS}",
        (
            ToolParameter("path", "string", "Folder to search", is_required=True),
            _INCLUDE,
            _EXCLUDE,
            ToolParameter("type", "string", 'What to find: "file" (default), "dir" or "all"; folders end with /'),
            ToolParameter("max_depth", "integer", "Folder levels to search: 1 is the folder only, 0 is all (default)"),
            ToolParameter("limit", "integer", "Maximum number of results, up to 100 (default: 100)"),
        ),
    ),
    CatalogEntry(
        "grep_search",
        "Grep search",
        f"Find lines that match a pattern, in a file or in all files of a folder and its subfolders. {_SKIPS}{_GLOBS}",
        (
            ToolParameter("path", "string", "File or folder to search", is_required=True),
            ToolParameter("pattern", "string", "Regular expression; with literal: plain text", is_required=True),
            _INCLUDE,
            _EXCLUDE,
            ToolParameter("return_line_numbers", "boolean", "Show line numbers"),
            ToolParameter("literal", "boolean", "The pattern is plain text, not a regular expression"),
            ToolParameter("ignore_case", "boolean", "Ignore upper and lower case"),
            ToolParameter("context_lines", "integer", "Lines to show before and after each match (default: 0)"),
        ),
    ),
    CatalogEntry(
        "exec_shell_command",
        "Execute shell command",
        "Run a shell command and return its output, including errors. Its background processes are ended with it.",
        (
            ToolParameter("command", "string", "Command for sh -c", is_required=True),
            ToolParameter("timeout", "integer", f"Time limit in seconds, at most {MAX_COMMAND_S} (default: 10)"),
            ToolParameter("max_output_size", "integer", f"Bytes of output to return, at most {MAX_OUTPUT} (default)"),
        ),
        writes=True,
        streams=True,
    ),
    CatalogEntry(
        "write_file",
        "Write file",
        "Create or replace a text file; missing folders are created. Use edit_file for small changes.",
        (
            ToolParameter("path", "string", "Path of the file", is_required=True),
            ToolParameter("content", "string", "Complete new content of the file", is_required=True),
        ),
        writes=True,
    ),
    CatalogEntry(
        "edit_file",
        "Edit file",
        "Replace texts in a file. Each old_text must occur exactly once in the file as it is before all edits. Edits "
        "must not overlap: combine adjacent changes into one edit.",
        (
            ToolParameter("path", "string", "Path of the file", is_required=True),
            ToolParameter("edits", "array", "The replacements", is_required=True, items=_EDIT_ITEMS),
        ),
        writes=True,
    ),
    CatalogEntry("get_info", "Get Runtime Info", "Return the operating system and the working directory."),
)
