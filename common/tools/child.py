"""The tool process: runs one call of a file tool and exits. Reads a JSON object from stdin, writes one to stdout.

A separate process does not block other requests, and it can be killed if a network drive hangs or a regular expression
runs without end. It imports only the standard library, so that it starts fast.
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
