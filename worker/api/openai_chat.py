"""OpenAI's chat dialect, with llama-server's additions: `/v1/chat/completions`.

A stream says who speaks first (`role`, `content: null`), then only what was added, then why it ended with an empty
`delta`. The last chunk carries `timings`, and with `include_usage` it is a chunk without choices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from ...presets.web import encode_json
from ..chat.response_format import JsonText, json_in
from ..engine.messages import Finished, Piece, Progress
from .answer import DONE, Answer, sse
from .native import Native, progress_json
from .results import finish_reason, probs_json, timings_json, usage_json

INTRODUCTION = {"role": "assistant", "content": None}


class OpenAIChat:
    def __init__(self, answer: Answer) -> None:
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
        self._introduced: set[int] = set()
        self._json: defaultdict[int, JsonText] = defaultdict(self._begun_json)
        self._results: list[Finished] = []  # of a stream, for its usage

    def _begun_json(self) -> JsonText:
        text = JsonText()
        text.add(self._answer.params.prefill)
        return text

    def whole(self, results: Sequence[Finished]) -> object:
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
        choice: dict[str, Any] = {
            "finish_reason": finish_reason(result),
            "index": index,
            "message": {"role": "assistant", "content": self._content(result)},
        }
        if result.probs:
            choice["logprobs"] = self._logprobs(result.probs)
        return choice

    def _content(self, result: Finished) -> str:
        params = self._answer.params
        text = params.prefill + result.text
        return json_in(text) if params.wrapped_json else text

    def _logprobs(self, probs: Sequence[Any]) -> dict[str, Any]:
        return {"content": probs_json(probs, self._answer.params.sampling.post_sampling_probs)}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"finish_reason": reason, "index": index, "delta": delta}], **self._frame}

    def _introduction(self, index: int) -> bytes:
        if index in self._introduced:
            return b""
        self._introduced.add(index)
        params = self._answer.params
        prefill = params.prefill if params.shows_prefill else ""
        said = sse(self._chunk(index, {"content": prefill})) if prefill else b""
        return sse(self._chunk(index, INTRODUCTION)) + said

    def piece(self, index: int, event: Piece) -> bytes:
        if self._answer.params.wrapped_json:
            event = msgspec.structs.replace(event, text=self._json[index].add(event.text))
        if event.probs or event.timings is not None:
            return self._introduction(index) + self._full_piece(index, event)
        if not event.text:
            return self._introduction(index)
        content = b'data: {"choices":[{"finish_reason":null,"index":%d,"delta":{"content":%b}}],%b\n\n' % (
            index,
            encode_json(event.text),
            self._frame_end,
        )
        return content if index in self._introduced else self._introduction(index) + content

    def _full_piece(self, index: int, event: Piece) -> bytes:
        chunk = self._chunk(index, {"content": event.text} if event.text else {})
        if event.probs:
            chunk["choices"][0]["logprobs"] = self._logprobs(event.probs)
        if event.timings is not None:
            chunk["timings"] = timings_json(event.timings)
        return sse(chunk)

    def progress(self, index: int, event: Progress) -> bytes:
        """Each one introduces the speaker anew: clients of llama-server know a progress chunk by that."""
        chunk = self._chunk(index, INTRODUCTION)
        if self._answer.params.timings_per_token:
            chunk["timings"] = timings_json(event.timings)
        chunk["prompt_progress"] = progress_json(event)
        return sse(chunk)

    def finished(self, index: int, event: Finished) -> bytes:
        params = self._answer.params
        chunk = self._chunk(index, {}, finish_reason(event))
        if params.verbose:
            chunk["__verbose"] = self._native.result(index, event)
        if params.include_usage:
            self._results.append(event)
        else:
            chunk["timings"] = timings_json(event.timings)
        return self._introduction(index) + sse(chunk)

    def end(self) -> bytes:
        if not self._results:
            return DONE
        usage = usage_json(self._results, self._answer.params.n)
        timings = timings_json(self._results[0].timings)
        return sse({"choices": [], **self._frame, "usage": usage, "timings": timings}) + DONE
