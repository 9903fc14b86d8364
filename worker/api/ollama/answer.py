"""Ollama's dialect of `/api/chat` and `/api/generate`: an answer is one body, or one JSON object per line. Pure.

A tool call is sent when it is complete, with its arguments as an object. One that is cut off is left out. The last line
has the finish reason, the token counts and the durations in nanoseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import LINES_TYPE, error_event
from llama_corral.common.web.envelopes import OLLAMA
from llama_corral.common.web.ollama import date_text
from msgspec import Struct

from ...chat.parsing.deltas import (
    ContentDelta,
    Delta,
    ParsedMessage,
    ReasoningDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallBegun,
    ToolCallCut,
)
from ...engine.messages import Begun, Finished, Piece, Progress, TokenProbs
from ..answers.dialect import AnswerInfo
from ..answers.results import LOWEST_FLOAT, finish_reason, last_deltas

NS = 1_000_000_000
NS_PER_MS = 1_000_000


class RequestInfo(Struct, frozen=True):
    """The data of a request that its answer repeats or depends on."""

    model: str
    started: float
    """Time of the request's start, from `time.monotonic()`."""
    loaded: float
    """Time when the model was ready for the request, from `time.monotonic()`."""
    top_logprobs: int = 0
    returns_context: bool = False


FormatMessage = Callable[[str, str, Sequence[Mapping[str, Any]]], dict[str, Any]]
"""Converts content, reasoning and tool calls to members of the answer's object."""


def as_message(content: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    message |= {"thinking": thinking} if thinking else {}
    message |= {"tool_calls": list(calls)} if calls else {}
    return {"message": message}


def as_response(content: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the members for `/api/generate`, which has no tools and therefore no calls."""
    return {"response": content, **({"thinking": thinking} if thinking else {})}


class OllamaAnswer:
    content_type = LINES_TYPE
    ping = b""

    def __init__(self, answer: AnswerInfo, asked: RequestInfo, format_message: FormatMessage) -> None:
        self._answer = answer
        self._request_info = asked
        self._format_message = format_message
        reply = answer.params.reply
        self._parser = reply.parser()
        self._opened = self._parser.opened if reply.shows_opening else []
        self._call: ToolCall | None = None  # not complete yet
        self._n_calls = 0

    def full_body(self, results: Sequence[Finished]) -> object:
        (result,) = results
        said = ParsedMessage()
        for deltas in (self._opened, self._parser.add(result.text), self._end(result)):
            said.add(deltas)
        calls = []
        for call in said.calls:
            if not call.is_whole:
                continue
            if (shown := self._shown(call)) is None:
                said.content += call.arguments
            else:
                calls.append(shown)
        return self._object(said.content, said.reasoning, calls, result.probs) | self._last(result)

    def begun(self, index: int, event: Begun) -> bytes:
        return b""

    def progress(self, index: int, event: Progress) -> bytes:
        return b""

    def piece(self, index: int, event: Piece) -> bytes:
        return self._lines(self._parser.add(event.text) if event.text else [], event.probs)

    def finished(self, index: int, event: Finished) -> bytes:
        return (
            self._lines(self._end(event), ()) + self._complete() + _line(self._object("", "", ()) | self._last(event))
        )

    def end(self) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        return error_event(error, OLLAMA)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _end(self, result: Finished) -> list[Delta]:
        return last_deltas(self._parser, result)

    def _lines(self, deltas: Sequence[Delta], probs: Sequence[TokenProbs]) -> bytes:
        """Return the lines for `deltas`. The first one has the probabilities; without deltas an empty line has them."""
        deltas, self._opened = [*self._opened, *deltas], []
        lines = []
        for delta in deltas:
            match delta:
                case ContentDelta(text):
                    lines.append(self._object(text, "", ()))
                case ReasoningDelta(text):
                    lines.append(self._object("", text, ()))
                case ToolCallBegun(_, id, name):
                    lines += self._completed()
                    self._call = ToolCall(id, name)
                case ToolCallArguments(_, text):
                    assert self._call is not None
                    self._call.arguments += text
                case ToolCallCut():
                    self._call = None
        if probs:
            lines = lines or [self._object("", "", ())]
            lines[0]["logprobs"] = self._logprobs(probs)
        return b"".join(map(_line, lines))

    def _complete(self) -> bytes:
        return b"".join(map(_line, self._completed()))

    def _completed(self) -> list[dict[str, Any]]:
        call, self._call = self._call, None
        if call is None:
            return []
        shown = self._shown(call)
        return [self._object(call.arguments, "", ()) if shown is None else self._object("", "", [shown])]

    def _shown(self, call: ToolCall) -> dict[str, Any] | None:
        """Return the whole call as JSON, or None if its arguments are no object; they are then sent as text."""
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            return None
        if not isinstance(arguments, dict):
            return None
        index, self._n_calls = self._n_calls, self._n_calls + 1
        return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}

    def _object(
        self, content: str, thinking: str, calls: Sequence[Mapping[str, Any]], probs: Sequence[TokenProbs] = ()
    ) -> dict[str, Any]:
        head = {"model": self._request_info.model, "created_at": date_text(time.time())}
        shown = {**head, **self._format_message(content, thinking, calls), "done": False}
        return {**shown, "logprobs": self._logprobs(probs)} if probs else shown

    def _last(self, result: Finished) -> dict[str, Any]:
        asked, timings = self._request_info, result.timings
        shown: dict[str, Any] = {
            "done": True,
            "done_reason": finish_reason(result),
            "total_duration": int((time.monotonic() - asked.started) * NS),
            "load_duration": int((asked.loaded - asked.started) * NS),
            "prompt_eval_count": result.n_prompt,
            "prompt_eval_duration": int(timings.prompt_ms * NS_PER_MS),
            "eval_count": result.n_decoded,
            "eval_duration": int(timings.predicted_ms * NS_PER_MS),
        }
        if asked.returns_context and min(prompt := self._answer.prompts[0], default=0) >= 0:  # negative: media tokens
            shown["context"] = [*prompt, *result.tokens]
        return shown

    def _logprobs(self, probs: Sequence[TokenProbs]) -> list[dict[str, Any]]:
        shown = []
        for entry in probs:
            top = [_prob(piece.piece, piece.p) for piece in entry.top[: self._request_info.top_logprobs]]
            shown.append(_prob(entry.chosen.piece, entry.chosen.p) | ({"top_logprobs": top} if top else {}))
        return shown


def _prob(piece: bytes, logarithm: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "ignore"), "logprob": max(logarithm, LOWEST_FLOAT), "bytes": list(piece)}


def _line(value: object) -> bytes:
    return encode_json(value) + b"\n"
