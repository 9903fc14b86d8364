"""The tool process: does one call of a tool that works on files, and ends. A JSON object in, one out.

Started by `builtin` as a process of its own: whatever a model's path or pattern leads to, a dead network drive or an
expression that never ends, can be killed and holds up no other request. Imports the standard library only, to be
quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from .errors import RuntimeRefused, ToolFailed
from .file_tools import Answer, Arguments, edit_file, find_files, read_file, write_file
from .files import Files, LocalFiles
from .isolate import IsolateFiles
from .runtimes import parse_runtime
from .search import grep_search

FILE_TOOLS: dict[str, Callable[[Files, Arguments], Answer]] = {
    "read_file": read_file,
    "file_glob_search": find_files,
    "grep_search": grep_search,
    "write_file": write_file,
    "edit_file": edit_file,
}


def answer(call: dict[str, object]) -> Answer:
    try:
        isolate = parse_runtime(str(call["runtime"]))
        cwd, root = str(call["cwd"]), str(call["root"])
        files: Files = IsolateFiles(isolate, cwd) if isolate else LocalFiles(cwd, root)
        arguments = call["arguments"]
        assert isinstance(arguments, dict)
        return FILE_TOOLS[str(call["tool"])](files, arguments)
    except (ToolFailed, RuntimeRefused) as error:
        return {"error": str(error)}


def main() -> None:
    call = json.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(json.dumps(answer(call)).encode())


if __name__ == "__main__":
    main()
