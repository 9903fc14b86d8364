"""OpenAI's chat dialect, with llama-server's additions: `/v1/chat/completions`.

A stream begins with the role (`role`, `content: null`), continues with the deltas of content, reasoning and tool calls,
and ends with the finish reason and an empty `delta`. The last chunk has `timings`; with `include_usage` it is an
additional chunk without choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_corral.common.base.json_encoding import encode_json

from ...chat.parsing.deltas import (
    ContentDelta,
    Delta,
    ParsedMessage,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegun,
    ToolCallCut,
)
from ...chat.parsing.reply import ReplyParser
from ...engine.messages import Finished, Piece, Progress, Timings, TokenProbs
from .dialect import DONE, AnswerInfo, EventStream, sse
from .native import Native, progress_json
from .results import finish_reason, last_deltas, parsed, probs_json, timings_json, usage_json

ShownDelta = ContentDelta | ReasoningDelta | ToolCallBegun | ToolCallArguments
INTRODUCTION = {"role": "assistant", "content": None}


class OpenAIChat(EventStream):
    def __init__(self, answer: AnswerInfo) -> None:
        self._answer = answer
        self._native = Native(answer)
        self._frame = {
            "created": answer.created,
            "id": answer.id,
            "model": answer.model,
            "system_fingerprint": answer.build,
            "object": "chat.completion.chunk",
        }
        self._frame_end = encode_json(self._frame)[1:]
        self._parsers: dict[int, ReplyParser] = {}
        self._held: dict[int, tuple[TokenProbs, ...]] = {}  # of tokens whose text has not been sent yet
        self._results: list[Finished] = []  # of a stream with `include_usage`

    def full_body(self, results: Sequence[Finished]) -> object:
        params = self._answer.params
        body = {
            "choices": [self._choice(index, result) for index, result in enumerate(results)],
            "created": self._answer.created,
            "model": self._answer.model,
            "system_fingerprint": self._answer.build,
            "object": "chat.completion",
            "usage": usage_json(results, params.n),
            "id": self._answer.id,
        }
        if params.verbose:
            body["__verbose"] = self._native.result(0, results[0])
        body["timings"] = timings_json(results[0].timings)
        return body

    def _choice(self, index: int, result: Finished) -> dict[str, Any]:
        said = parsed(self._answer.params.reply, result)
        choice: dict[str, Any] = {
            "finish_reason": finish_reason(result, is_called=said.is_called),
            "index": index,
            "message": message_json(said),
        }
        if result.probs:
            choice["logprobs"] = self._logprobs(result.probs)
        return choice

    def _logprobs(self, probs: Sequence[Any]) -> dict[str, Any]:
        return {"content": probs_json(probs, self._answer.params.sampling.post_sampling_probs)}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"finish_reason": reason, "index": index, "delta": delta}], **self._frame}

    def _begin(self, index: int) -> bytes:
        """Return the first chunks of a new choice: the role, and the part of the answer that the prompt contains."""
        if index in self._parsers:
            return b""
        reply = self._answer.params.reply
        parser = self._parsers[index] = reply.parser()
        opened = _shown(parser.opened) if reply.shows_opening else []
        return sse(self._chunk(index, INTRODUCTION)) + self._deltas(index, opened)

    def _deltas(self, index: int, deltas: Sequence[ShownDelta]) -> bytes:
        return b"".join(self._delta(index, delta) for delta in deltas)

    def _delta(self, index: int, delta: ShownDelta) -> bytes:
        if not isinstance(delta, ContentDelta):
            return sse(self._chunk(index, delta_json(delta)))
        return b'data: {"choices":[{"finish_reason":null,"index":%d,"delta":{"content":%b}}],%b\n\n' % (
            index,
            encode_json(delta.text),
            self._frame_end,
        )

    def piece(self, index: int, event: Piece) -> bytes:
        begun = self._begin(index)
        deltas = _shown(self._parsers[index].add(event.text)) if event.text else []
        held = self._held.pop(index, ()) if self._held else ()
        if not deltas:
            if held or event.probs:
                self._held[index] = (*held, *event.probs)
            return begun
        if held or event.probs or event.timings is not None:
            return begun + self._full_piece(index, (*held, *event.probs), event.timings, deltas)
        return begun + self._deltas(index, deltas)

    def _full_piece(
        self, index: int, probs: Sequence[TokenProbs], timings: Timings | None, deltas: Sequence[ShownDelta]
    ) -> bytes:
        """Return the chunks for `deltas`, the last one with the probabilities and timings."""
        chunk = self._chunk(index, delta_json(deltas[-1]))
        if probs:
            chunk["choices"][0]["logprobs"] = self._logprobs(probs)
        if timings is not None:
            chunk["timings"] = timings_json(timings)
        return self._deltas(index, deltas[:-1]) + sse(chunk)

    def progress(self, index: int, event: Progress) -> bytes:
        """Return a progress chunk. Each one repeats the role: llama-server's clients recognise them by that."""
        chunk = self._chunk(index, INTRODUCTION)
        if self._answer.params.timings_per_token:
            chunk["timings"] = timings_json(event.timings)
        chunk["prompt_progress"] = progress_json(event)
        return sse(chunk)

    def finished(self, index: int, event: Finished) -> bytes:
        params = self._answer.params
        begun = self._begin(index)
        parser = self._parsers[index]
        deltas, held = _shown(last_deltas(parser, event)), self._held.pop(index, ())
        rest = self._full_piece(index, held, None, deltas) if deltas and held else self._deltas(index, deltas)
        chunk = self._chunk(index, {}, finish_reason(event, is_called=parser.is_called))
        if held and not deltas:
            chunk["choices"][0]["logprobs"] = self._logprobs(held)
        if params.verbose:
            chunk["__verbose"] = self._native.result(index, event)
        if params.include_usage:
            self._results.append(event)
        else:
            chunk["timings"] = timings_json(event.timings)
        return begun + rest + sse(chunk)

    def end(self) -> bytes:
        if not self._results:
            return DONE
        usage = usage_json(self._results, self._answer.params.n)
        timings = timings_json(self._results[0].timings)
        return sse({"choices": [], **self._frame, "usage": usage, "timings": timings}) + DONE


def message_json(said: ParsedMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}, "id": call.id}
            for call in said.calls
        ]
    return message


def _shown(deltas: Sequence[Delta]) -> list[ShownDelta]:
    """Return the deltas that have a chunk. A call that was cut off has none: the finish reason shows it."""
    return [delta for delta in deltas if not isinstance(delta, ToolCallCut)]


def delta_json(delta: ShownDelta) -> dict[str, Any]:
    """Return the `delta` of a chunk."""
    match delta:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case ToolCallBegun(index, id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}
        case ToolCallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
