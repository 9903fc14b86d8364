"""Parse answers with messages to several recipients: gpt-oss channels, Muse, Functionary's `>>>`. Used by `parser`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..formats.channel_marks import (
    ANALYSIS,
    CALL,
    CHANNEL,
    END,
    EOM,
    EOT,
    EVERYONE,
    MESSAGE,
    RECIPIENT,
    RETURN,
    START,
    TURN,
)
from ..messages import Message
from ..tools import FunctionTool
from .calls import CallsReader
from .deltas import DeltaWriter
from .reader import Emit, Parsing, TextReader
from .trimmed import TrimmedText

_RECIPIENT = re.compile(r"\sto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTIONS = "functions."


def harmony(
    tools: Mapping[str, FunctionTool], separate_reasoning: bool, reader: TextReader, writer: DeltaWriter
) -> Parsing[None]:
    """Parse gpt-oss: reasoning is a channel, a function is a recipient. Messages to other recipients are dropped."""
    while True:
        header, mark = yield from reader.text_until([MESSAGE])
        if mark is None:
            writer.content("" if _is_header(header, reader) else header)
            return
        reader.skip(len(mark))
        channel = (_CHANNEL.findall(header) or ["final"])[-1]
        recipient = next((to for to in _RECIPIENT.findall(header) if to != "assistant"), "")
        emit, behind = writer.content, ""
        if recipient:
            name = recipient.removeprefix(_FUNCTIONS)
            emit = _discard
            if name in tools and recipient != name:
                writer.call(name)
                yield from _arguments((END, CALL, RETURN, START), reader, writer)
        elif channel == "analysis":
            if separate_reasoning:
                emit = writer.reasoning
            else:
                writer.content(ANALYSIS)
                behind = END
        mark = yield from reader.until([END, CALL, RETURN, START], emit)
        writer.content(behind if mark else "")
        if mark and mark != START:
            reader.skip(len(mark))


def with_thinking(message: Message) -> Message:
    """Copy reasoning to `thinking`, the name in gpt-oss' template; drop content if there is a call, too."""
    if "reasoning_content" not in message:
        return message
    shown = {**message, "thinking": message["reasoning_content"]}
    if shown.get("tool_calls"):
        del shown["content"]
    return shown


def _arguments(ends: Sequence[str], reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    """Read the arguments of a call and close it: they end with the JSON object, or at the message's end."""
    yield from reader.skip_space()
    if (yield from reader.peek()) == "{":
        is_whole = yield from reader.json(writer.arguments)
    else:
        text, mark = yield from reader.text_until(ends)
        writer.arguments(text.rstrip())
        is_whole = mark is not None or not reader.truncated
    if is_whole:
        writer.close_call()


def _is_header(text: str, reader: TextReader) -> bool:
    """Return True if the text before the end of an answer is a message's header, or may be the beginning of one."""
    begun = text.strip().removeprefix(TURN).strip()
    may_be = reader.truncated and any(start.startswith(begun) for start in (TURN, CHANNEL, "to="))
    return not begun or may_be or CHANNEL in text or "to=" in text


def _discard(text: str) -> None:
    pass


def addressed(
    calls: CallsReader | None, separate_reasoning: bool, reader: TextReader, writer: DeltaWriter
) -> Parsing[None]:
    """Parse Muse: messages to itself are reasoning, to the user content, to a function calls."""
    while True:
        header, mark = yield from reader.text_until([MESSAGE])
        if mark is None:
            writer.content("" if _is_header(header, reader) else header.strip().removeprefix(TURN))
            return
        reader.skip(len(mark))
        recipient = (_RECIPIENT.findall(header) or ["user"])[-1]
        emit: Emit = writer.content
        behind = ""
        if recipient == "self" and separate_reasoning:
            emit = writer.reasoning
        elif recipient == "self":
            writer.content(f" to=self{MESSAGE}")
            behind = EOM
        reads = calls if recipient not in ("self", "user") else None
        if reads:
            emit = TrimmedText(writer.content)
        while (
            mark := (yield from reader.until([EOM, EOT, START, *([reads.mark] if reads else [])], emit))
        ) is not None:
            if reads is None or mark != reads.mark:
                break
            reader.mark()
            if not (yield from reads.read()):
                emit(reader.rest[:1])
                reader.skip(1)
            yield from reader.skip_space()
        writer.content(behind if mark else "")
        if mark and mark != START:
            reader.skip(len(mark))


def recipients(tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    """Parse Functionary 3.2: a line with `all` or a function's name, then content or arguments, then `>>>`."""
    while True:
        yield from reader.skip_space()
        name, mark = yield from reader.text_until(["\n"])
        if mark is None:
            is_header = reader.truncated and any(known.startswith(name) for known in (EVERYONE, *tools))
            writer.content("" if is_header else name)
            return
        reader.skip(1)
        if name in tools:
            writer.call(name)
            yield from _arguments((RECIPIENT,), reader, writer)
            yield from reader.until([RECIPIENT], _discard)
        else:
            writer.content("" if name == EVERYONE else f"{name}\n")
            yield from reader.until([RECIPIENT] if tools else [], writer.content)
        if not (yield from reader.literal(RECIPIENT)):
            return
