"""OpenAI's text completion dialect, with llama-server's additions: `/v1/completions`."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.json_fields import Fields

from ...engine.messages import Finished, Piece, Progress, TokenProbs
from .dialect import DONE, AnswerInfo, EventStream, sse
from .native import Native, progress_json
from .results import finish_reason, probs_json, timings_json, usage_json


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for OpenAI parameters that llama-server does not support, with llama-server's messages.

    The parameters' default values are no faults: `best_of` that leaves out no choice, and an empty `suffix`.
    """
    fields = Fields(body)
    if fields.boolean("echo", default=False):
        raise InvalidRequest("Only no echo is supported")
    n = fields.integer("n_cmpl", "n", default=1)
    if fields.integer("best_of", default=n) not in (1, n):
        raise InvalidRequest("Unsupported param: best_of")
    if fields.string("suffix", default=""):
        raise InvalidRequest("Unsupported param: suffix")


def wants_chosen_probs(body: Mapping[str, Any]) -> bool:
    """Return True if `logprobs` is a number: 0 means the probabilities of the chosen tokens, without alternatives."""
    value = body.get("logprobs")
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


class OpenAICompletions(EventStream):
    def __init__(self, answer: AnswerInfo) -> None:
        self._answer = answer
        self._native = Native(answer)
        self._frame = {
            "created": answer.created,
            "model": answer.model,
            "system_fingerprint": answer.build,
            "object": "text_completion",
            "id": answer.id,
        }
        self._frame_end = encode_json(self._frame)[1:]
        self._offsets: dict[int, _TextOffsets] = {}

    def full_body(self, results: Sequence[Finished]) -> object:
        body = {
            "choices": [
                self._choice(index, result.text + result.broken, result.probs, result)
                for index, result in enumerate(results)
            ],
            **self._frame,
            "usage": usage_json(results, self._answer.params.n),
            "timings": timings_json(results[0].timings),
        }
        if self._answer.params.verbose:
            body["__verbose"] = self._native.result(0, results[0])
        return body

    def _choice(self, index: int, text: str, probs: Sequence[Any], result: Finished | None) -> dict[str, Any]:
        return {
            "text": text,
            "index": index,
            "logprobs": self._logprobs(index, probs) if probs else None,
            "finish_reason": finish_reason(result) if result else None,
        }

    def _logprobs(self, index: int, probs: Sequence[TokenProbs]) -> dict[str, Any]:
        """Return the probabilities in llama-server's format and also in OpenAI's format for completions."""
        post_sampling = self._answer.params.sampling.post_sampling_probs
        shown = probs_json(probs, post_sampling)
        offsets = self._offsets.setdefault(index, _TextOffsets())
        text_offset = [offsets.add(entry.chosen.piece) for entry in probs]
        if post_sampling:
            return {"content": shown, "text_offset": text_offset}
        return {
            "content": shown,
            "text_offset": text_offset,
            "tokens": [entry["token"] for entry in shown],
            "token_logprobs": [entry["logprob"] for entry in shown],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in shown],
        }

    def piece(self, index: int, event: Piece) -> bytes:
        if event.probs or event.timings is not None or self._answer.params.verbose:
            return self._full_piece(index, event)
        return b'data: {"choices":[{"text":%b,"index":%d,"logprobs":null,"finish_reason":null}],%b\n\n' % (
            encode_json(event.text),
            index,
            self._frame_end,
        )

    def _full_piece(self, index: int, event: Piece) -> bytes:
        chunk: dict[str, Any] = {"choices": [self._choice(index, event.text, event.probs, None)], **self._frame}
        if self._answer.params.verbose:
            chunk["__verbose"] = self._native.partial(index, event)
        if event.timings is not None:
            chunk["timings"] = timings_json(event.timings)
        return sse(chunk)

    def progress(self, index: int, event: Progress) -> bytes:
        chunk: dict[str, Any] = {
            "choices": [self._choice(index, "", (), None)],
            **self._frame,
            "prompt_progress": progress_json(event),
        }
        if self._answer.params.timings_per_token:
            chunk["timings"] = timings_json(event.timings)
        return sse(chunk)

    def finished(self, index: int, event: Finished) -> bytes:
        chunk = {
            "choices": [self._choice(index, "", (), event)],
            **self._frame,
            "usage": usage_json([event], 1),
            "timings": timings_json(event.timings),
        }
        if self._answer.params.verbose:
            chunk["__verbose"] = self._native.result(index, event)
        return sse(chunk)

    def end(self) -> bytes:
        return DONE


class _TextOffsets:
    """Where the tokens of one choice begin in its text, in characters. A stream's chunks continue the count."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n = 0

    def add(self, piece: bytes) -> int:
        """Return the offset of the next token; inside a character it is that of the character."""
        offset = self._n
        self._n += len(self._decoder.decode(piece))
        return offset
