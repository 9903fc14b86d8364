"""OpenAI's Responses dialect: `/v1/responses`.

A stream begins with the Response (`created`, `in_progress`), continues with the events of each output item, and ends
with the whole Response in `response.completed`. As in llama-server this event also ends an answer that the token limit
truncated: its Response has the status `incomplete` and the reason. OpenAI's client also waits for this event.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Any

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.json_encoding import encode_json

from ...chat.parsing.deltas import ContentDelta, Delta
from ...chat.parsing.reply import ReplyParser
from ...engine.messages import Begun, Finished, Piece, Progress, TokenProbs
from ..answers.dialect import AnswerInfo, EventStream
from ..answers.native import progress_json
from ..answers.results import last_deltas, probs_json, timings_json
from .output import Event, OutputItems
from .request import ResponseForm

RESPONSE_PREFIX = "resp_"


class OpenAIResponses(EventStream):
    def __init__(self, answer: AnswerInfo, form: ResponseForm) -> None:
        self._answer = answer
        self._form = form
        self._output = OutputItems(
            answer.id.removeprefix(RESPONSE_PREFIX),
            carries_thoughts=form.carries_thoughts,
            summarizes=form.summarizes,
        )
        self._parser: ReplyParser | None = None
        self._n_events = 0
        self._probs: tuple[TokenProbs, ...] = ()  # of tokens whose text has not been sent yet
        self.response: dict[str, Any] = {}
        """The whole Response; empty until the answer is complete."""

    # -- whole ---------------------------------------------------------------------------------------------------------

    def full_body(self, results: Sequence[Finished]) -> object:
        result = results[0]
        parser = self._answer.params.reply.parser()
        deltas = [*parser.opened, *parser.add(result.text), *last_deltas(parser, result)]
        content = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
        probs = self._logprobs(probs_of(content, result.probs))
        for delta in deltas:
            self._output.add(delta, probs)
            if isinstance(delta, ContentDelta):
                probs = []
        return self._finish(result)[-1]["response"]

    def _finish(self, result: Finished) -> list[Event]:
        reached_limit = result.stop_type == "limit"
        status = "incomplete" if reached_limit else "completed"
        ended = self._output.end(status)
        self.response = {
            **self._response(status),
            "completed_at": None if reached_limit else int(time()),
            "incomplete_details": {"reason": "max_output_tokens"} if reached_limit else None,
            "usage": self._usage(result),
        }
        return [*ended, {"type": "response.completed", "response": self.response}]

    def _response(self, status: str) -> dict[str, Any]:
        answer, sampling = self._answer, self._answer.params.sampling
        return {
            "id": answer.id,
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": answer.model,
            "output": list(self._output.items),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "usage": None,
            **self._form.shown,
        }

    def _usage(self, result: Finished) -> dict[str, Any]:
        cached = result.timings.cache_n
        n_thought = self._answer.count_tokens(thoughts) if (thoughts := self._output.thoughts) else 0
        return {
            "input_tokens": result.n_prompt,
            "input_tokens_details": {
                "cached_tokens": cached,
                "cache_write_tokens": result.n_prompt - cached if self._answer.params.cache_prompt else 0,
            },
            "output_tokens": result.n_decoded,
            "output_tokens_details": {"reasoning_tokens": min(n_thought, result.n_decoded)},
            "total_tokens": result.n_prompt + result.n_decoded,
        }

    # -- stream --------------------------------------------------------------------------------------------------------

    def begun(self, index: int, event: Begun) -> bytes:
        return self._begin()

    def _begin(self) -> bytes:
        """Return the stream's first events: the Response, and the part of the answer that the prompt contains.

        Empty if they have been sent already.
        """
        if self._parser is not None:
            return b""
        reply = self._answer.params.reply
        self._parser = reply.parser()
        shown = self._response("in_progress")
        first: list[Event] = [{"type": f"response.{name}", "response": shown} for name in ("created", "in_progress")]
        return self._bytes([*first, *self._events(self._parser.opened if reply.shows_opening else [])])

    def progress(self, index: int, event: Progress) -> bytes:
        begun = self._begin()
        shown: Event = {
            "type": "response.in_progress",
            "response": self._response("in_progress"),
            "prompt_progress": progress_json(event),
        }
        if self._answer.params.timings_per_token:
            shown["timings"] = timings_json(event.timings)
        return begun + self._bytes([shown])

    def piece(self, index: int, event: Piece) -> bytes:
        begun = self._begin()
        assert self._parser is not None
        self._probs += event.probs
        events = self._events(self._parser.add(event.text) if event.text else [])
        if event.timings is not None and events:
            events[-1]["timings"] = timings_json(event.timings)
        return begun + self._bytes(events)

    def _events(self, deltas: Sequence[Delta]) -> list[Event]:
        events: list[Event] = []
        for delta in deltas:
            events += self._output.add(delta, self._logprobs(self._probs))
            self._probs = ()
        return events

    def finished(self, index: int, event: Finished) -> bytes:
        begun = self._begin()
        assert self._parser is not None
        events = self._events(last_deltas(self._parser, event)) + self._finish(event)
        events[-1]["timings"] = timings_json(event.timings)
        return begun + self._bytes(events)

    def end(self) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        begun = self._begin()
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        ended = self._output.end("incomplete")
        response = {**self._response("failed"), "error": {"code": code, "message": error.message}}
        return begun + self._bytes([*ended, {"type": "response.failed", "response": response}])

    def _bytes(self, events: Sequence[Event]) -> bytes:
        chunks = []
        for event in events:
            event["sequence_number"] = self._n_events
            self._n_events += 1
            chunks.append(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode_json(event)))
        return b"".join(chunks)

    def _logprobs(self, probs: Sequence[TokenProbs]) -> list[dict[str, Any]]:
        n_top = self._form.n_top_logprobs
        if n_top is None or not probs:
            return []
        shown = probs_json(probs, post_sampling=False)
        return [{**entry, "top_logprobs": entry["top_logprobs"][:n_top]} for entry in shown]


def probs_of(content: str, probs: Sequence[TokenProbs]) -> Sequence[TokenProbs]:
    """Return the probabilities of the tokens that form `content`, which may be only a part of the generated text."""
    pieces = [entry.chosen.piece for entry in probs]
    start = b"".join(pieces).rfind(content.encode()) if content else -1
    if start < 0:
        return [] if not content else probs
    end, at, found = start + len(content.encode()), 0, []
    for entry, piece in zip(probs, pieces, strict=True):
        if at < end and at + len(piece) > start:
            found.append(entry)
        at += len(piece)
    return found
