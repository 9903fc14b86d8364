"""Runs the built-in tools.

Tools that read or write files run in a separate process, the tool process; commands are started directly. `server`
creates the tools that the operator allows.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from msgspec import Struct

from ..base.errors import ServerFault, Unavailable
from .catalog import CATALOG, DEFAULT_COMMAND_S, MAX_COMMAND_S, MAX_OUTPUT, CatalogEntry
from .errors import RuntimeRefused, ToolFailed
from .files import LocalFiles
from .process import CommandResult, Processes
from .runtimes import Isolate, in_directory, parse_runtime
from .tool import Answer, ServerTool, ToolListing, ToolRequest

CHILD = (sys.executable, "-P", "-m", "llama_corral.common.tools.child")
FILE_TOOL_S = 60.0
"""Time limit of one call of a file tool. Listings have a shorter limit and then return an incomplete list."""
MAX_ANSWER = 64 << 20
"""Maximum bytes of a tool process's answer; a 32 MiB file as Base64 fits."""
ISOLATE_GRACE_S = 5.0
"""Extra time for commands in a runtime, which have a time limit there: killing our side would not end them."""
INFO_S = 5.0
TRUNCATION_NOTE = "\n[output truncated]"


class ToolRunner(Struct, frozen=True):
    """Starts the processes of all built-in tools."""

    processes: Processes
    root: str = ""
    """The folder that file tools may not leave; "": no limit."""

    async def run(
        self,
        inner: Sequence[str],
        call: ToolRequest,
        seconds: float,
        limit: int,
        on_output: Callable[[bytes], None] | None,
    ) -> CommandResult:
        """Run a command here or in the call's runtime.

        Raise ToolFailed if it cannot be started, ApiError if it may not run.
        """
        isolate = isolate_of(call)
        if isolate:
            bounded = in_directory(call.cwd, ("timeout", f"{seconds:.0f}s", *inner))
            command, cwd = isolate.command(bounded, with_input=True), None
            seconds += ISOLATE_GRACE_S
        else:
            command, cwd = list(inner), self.directory(call)
        try:
            outcome = await self.processes.run(
                command, seconds=seconds, limit=limit, cwd=cwd, merge_errors=True, on_output=on_output
            )
        except (OSError, ValueError) as error:
            raise ToolFailed(f"cannot run the command: {getattr(error, 'strerror', None) or error}") from None
        if self.processes.is_closed:
            raise Unavailable("the server is stopping")
        return outcome

    def directory(self, call: ToolRequest) -> str:
        cwd = LocalFiles(call.cwd, self.root).resolve(".")
        if not os.path.isdir(cwd):
            raise ToolFailed(f"no such directory: {call.cwd}")
        return cwd


def isolate_of(call: ToolRequest) -> Isolate | None:
    """Return the call's runtime; None: this machine. Raise ServerFault for an invalid one, as llama-server does."""
    try:
        return parse_runtime(call.runtime)
    except RuntimeRefused as error:
        raise ServerFault(str(error)) from None


class _Builtin:
    def __init__(self, entry: CatalogEntry, place: ToolRunner) -> None:
        self._entry = entry
        self._place = place
        self.shown = ToolListing(
            entry.name, entry.title, entry.definition(), writes=entry.writes, streams=entry.streams
        )

    async def run(self, call: ToolRequest) -> Answer:
        raise NotImplementedError

    def stream(self, call: ToolRequest) -> AsyncGenerator[str, None]:
        raise NotImplementedError


class FileTool(_Builtin):
    async def run(self, call: ToolRequest) -> Answer:
        arguments = self._entry.arguments(call.arguments)
        isolate_of(call)
        if call.as_base64 and self._entry.name == "read_file":
            arguments["as_base64"] = True
        order = {
            "tool": self._entry.name,
            "arguments": arguments,
            "cwd": call.cwd,
            "runtime": call.runtime,
            "root": self._place.root,
        }
        try:
            done = await self._place.processes.run(
                CHILD, seconds=FILE_TOOL_S, limit=MAX_ANSWER, stdin=json.dumps(order).encode()
            )
        except OSError as error:
            return {"error": f"cannot start {self._entry.name}: {error.strerror}"}
        return self._answer(done)

    def _answer(self, done: CommandResult) -> Answer:
        if self._place.processes.is_closed:
            raise Unavailable("the server is stopping")
        if done.timed_out:
            return {"error": f"{self._entry.name} timed out after {FILE_TOOL_S:.0f} s"}
        if done.exit_code != 0 or done.is_cut:
            why = done.errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise ServerFault(f"{self._entry.name} failed with exit code {done.exit_code}: {' '.join(why)}")
        return done.output


class ShellTool(_Builtin):
    async def run(self, call: ToolRequest) -> Answer:
        try:
            done = await self._execute(call, self._given(call), None)
        except ToolFailed as error:
            return {"error": str(error)}
        text = done.output.decode("utf-8", "replace")
        return {"plain_text_response": text + (TRUNCATION_NOTE if done.is_cut else "") + _ending(done)}

    def stream(self, call: ToolRequest) -> AsyncGenerator[str, None]:
        return self._pieces(call, self._given(call))

    async def _pieces(self, call: ToolRequest, given: dict[str, Any]) -> AsyncGenerator[str, None]:
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        work = asyncio.create_task(self._execute(call, given, pieces.put_nowait))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while (piece := await pieces.get()) is not None:
                if text := decoder.decode(piece):
                    yield text
            done = await work
            yield decoder.decode(b"", final=True) + (TRUNCATION_NOTE if done.is_cut else "") + _ending(done)
        finally:
            work.cancel()
            await asyncio.wait({work})

    def _given(self, call: ToolRequest) -> dict[str, Any]:
        """Return the checked arguments. Called before a stream begins, so that errors can still set the status."""
        isolate_of(call)
        return self._entry.arguments(call.arguments)

    async def _execute(
        self, call: ToolRequest, given: dict[str, Any], on_output: Callable[[bytes], None] | None
    ) -> CommandResult:
        seconds = given.get("timeout", DEFAULT_COMMAND_S)
        limit = given.get("max_output_size", MAX_OUTPUT)
        if seconds < 1 or limit < 1:
            raise ToolFailed("timeout and max_output_size must be 1 or more")
        inner = ("sh", "-c", given["command"])
        return await self._place.run(inner, call, min(seconds, MAX_COMMAND_S), min(limit, MAX_OUTPUT), on_output)


def _ending(done: CommandResult) -> str:
    return f"\n[exit code: {done.exit_code}]" + (" [exit due to timed out]" if done.timed_out else "")


class InfoTool(_Builtin):
    async def run(self, call: ToolRequest) -> Answer:
        try:
            system = await self._info_text(call, "uname", "-a")
            return {"os": system, "cwd": await self._info_text(call, "pwd")}
        except ToolFailed as error:
            return {"error": str(error)}

    async def _info_text(self, call: ToolRequest, *command: str) -> str:
        done = await self._place.run(command, call, INFO_S, 4096, None)
        text = done.output.decode("utf-8", "replace").strip()
        return text if done.exit_code == 0 and not done.timed_out else "unknown"


def builtin_tools(names: Sequence[str], place: ToolRunner) -> list[ServerTool]:
    """Return the tools with these names, or all for the name `all`. Unknown names were rejected before."""
    kinds: dict[str, type[_Builtin]] = {"exec_shell_command": ShellTool, "get_info": InfoTool}
    chosen = [entry for entry in CATALOG if entry.name in names or "all" in names]
    return [kinds.get(entry.name, FileTool)(entry, place) for entry in chosen]
