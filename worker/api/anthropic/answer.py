"""Anthropic's messages dialect: renders an answer as content blocks, as one message or as named events. Pure.

The blocks (reasoning, text, tool calls) are in the order in which the model writes them. The whole message is built
from the same events, so both forms agree. Only a call that was cut off differs: a stream has sent its beginning, a
whole message leaves it out, because `input` is an object and an incomplete one would look like a complete one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import EVENT_STREAM_TYPE, error_event
from llama_corral.common.web.envelopes import ANTHROPIC
from pydantic_core import from_json

from ...chat.parsing.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallBegun, ToolCallCut
from ...engine.messages import Begun, Finished, Piece, Progress
from ..answers.dialect import AnswerInfo
from ..answers.results import last_deltas

JSON = dict[str, Any]


class AnthropicMessages:
    content_type = EVENT_STREAM_TYPE
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, answer: AnswerInfo, stops: Sequence[str] = ()) -> None:
        """`stops`: the stop sequences of the request; the server may have others."""
        self._answer = answer
        self._stops = stops
        self._reply = answer.params.reply
        self._parser = self._reply.parser()
        self._blocks = ContentBlocks()
        self._begun = False

    def full_body(self, results: Sequence[Finished]) -> object:
        (result,) = results
        message = self._message(usage_json(result.n_prompt, result.timings.cache_n, result.n_decoded))
        blocks = block_list(self._events(result.text, result))
        content = [block for index, block in enumerate(blocks) if index not in self._blocks.cut_off]
        message |= {"content": content, **self._stop(result)}
        return message

    def begun(self, index: int, event: Begun) -> bytes:
        return self._begin(event.n_prompt, event.n_cached)

    def piece(self, index: int, event: Piece) -> bytes:
        return self._begin(event.n_prompt, 0) + b"".join(map(sse, self._events(event.text)))

    def progress(self, index: int, event: Progress) -> bytes:
        return b""

    def finished(self, index: int, event: Finished) -> bytes:
        begun = self._begin(event.n_prompt, event.timings.cache_n)
        rest = b"".join(map(sse, self._events("", event)))
        usage = usage_json(event.n_prompt, event.timings.cache_n, event.n_decoded)
        end = sse({"type": "message_delta", "delta": self._stop(event), "usage": usage})
        return begun + rest + end + sse({"type": "message_stop"})

    def end(self) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        return error_event(error, ANTHROPIC)

    def _begin(self, n_prompt: int, n_cached: int) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return sse({"type": "message_start", "message": self._message(usage_json(n_prompt, n_cached, 0))})

    def _message(self, usage: JSON) -> JSON:
        return {
            "id": self._answer.id,
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _events(self, text: str, result: Finished | None = None) -> Iterator[JSON]:
        """Yield the events for more text and, if `result` is given, for the end of the answer."""
        if self._parser.opened:
            opened, self._parser.opened = self._parser.opened, []
            if self._reply.shows_opening:
                yield from self._blocks.add(opened)
        if text:
            yield from self._blocks.add(self._parser.add(text))
        if result is not None:
            yield from self._blocks.add(last_deltas(self._parser, result))
            yield from self._blocks.close()

    def _stop(self, result: Finished) -> JSON:
        """Return the stop reason. Unlike llama-server, which reports `end_turn`, name the request's stop sequence."""
        word = result.stopping_word if result.stopping_word in self._stops else None
        if result.stop_type == "limit":
            reason = "max_tokens"
        elif word:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if self._parser.is_called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": word}


class ContentBlocks:
    """Converts deltas to the events of content blocks. At most one block is open at a time."""

    def __init__(self) -> None:
        self.cut_off: set[int] = set()
        """The indices of the blocks with calls that were not written to their end."""
        self._index = -1
        self._kind = ""  # of the open block

    def add(self, deltas: Iterable[Delta]) -> Iterator[JSON]:
        for delta in deltas:
            match delta:
                case ContentDelta(text):
                    yield from self._text("text", text)
                case ReasoningDelta(text):
                    yield from self._text("thinking", text)
                case ToolCallBegun(_, id, name):
                    yield from self._open("tool_use", {"id": id, "name": name, "input": {}})
                case ToolCallArguments(_, text):
                    yield self._delta({"type": "input_json_delta", "partial_json": text})
                case ToolCallCut():
                    self.cut_off.add(self._index)

    def close(self) -> Iterator[JSON]:
        if self._kind == "thinking":  # clients accept only signed blocks as complete, but do not check the signature
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._kind:
            yield {"type": "content_block_stop", "index": self._index}
        self._kind = ""

    def _text(self, kind: str, text: str) -> Iterator[JSON]:
        if self._kind != kind:
            yield from self._open(kind, {kind: ""} if kind == "text" else {kind: "", "signature": ""})
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _open(self, kind: str, content: JSON) -> Iterator[JSON]:
        yield from self.close()
        self._index, self._kind = self._index + 1, kind
        yield {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **content}}

    def _delta(self, delta: JSON) -> JSON:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def block_list(events: Iterable[JSON]) -> list[JSON]:
    """Return the content blocks that a client would have after receiving all `events`."""
    blocks: list[JSON] = []
    arguments = ""
    for event in events:
        match event:
            case {"type": "content_block_start", "content_block": block}:
                blocks.append(block)
                arguments = ""
            case {"delta": {"partial_json": text}}:
                arguments += text
                blocks[-1]["input"] = _object(arguments)
            case {"type": "content_block_delta", "delta": added}:
                for name in added.keys() - {"type"}:
                    blocks[-1][name] += added[name]
    return blocks


def _object(arguments: str) -> JSON:
    """Parse a call's arguments, as far as possible: the token limit may have truncated them."""
    try:
        value = from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def usage_json(n_prompt: int, n_cached: int, n_output: int) -> JSON:
    """Return the usage. The first three counts sum up to the prompt's tokens.

    Cache writes are reported as 0: all tokens are cached, but without extra cost.
    """
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_output,
    }


def sse(event: JSON) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode_json(event))
