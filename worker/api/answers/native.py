"""llama-server's native completion dialect: `/completion`, and `__verbose` in other dialects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_corral.common.base.json_encoding import encode_json

from ...engine.messages import Finished, Piece, Progress, seed_of
from ..request.generation_settings import full_settings
from .dialect import AnswerInfo, EventStream, sse
from .results import probs_json, timings_json


class Native(EventStream):
    def __init__(self, answer: AnswerInfo) -> None:
        self._answer = answer
        self._settings = full_settings(answer.params)

    def full_body(self, results: Sequence[Finished]) -> object:
        shown = [self.result(index, result) for index, result in enumerate(results)]
        return shown[0] if len(shown) == 1 else shown

    def result(self, index: int, event: Finished) -> dict[str, Any]:
        """Return the final result of one choice. In a stream it has no text and tokens: they have been sent already."""
        params = self._answer.params
        settings = {**self._settings, "seed": seed_of(params.sampling.seed, index % params.n)}
        shown: dict[str, Any] = {
            "index": index,
            "content": "" if params.stream else event.text + event.broken,
            "tokens": list(event.tokens) if params.return_tokens and not params.stream else [],
            "id_slot": event.id_slot,
            "stop": True,
            "model": self._answer.model,
            "tokens_predicted": event.n_decoded,
            "tokens_evaluated": event.n_prompt,
            "generation_settings": settings,
            "prompt": self._answer.prompt_text(index),
            "has_new_line": event.has_new_line,
            "truncated": event.truncated,
            "stop_type": event.stop_type,
            "stopping_word": event.stopping_word,
            "tokens_cached": event.n_cached,
            "timings": timings_json(event.timings),
        }
        if event.probs and not params.stream:
            shown["completion_probabilities"] = probs_json(event.probs, params.sampling.post_sampling_probs)
        return _selected_fields(params.response_fields, shown) if params.response_fields else shown

    def partial(self, index: int, event: Piece) -> dict[str, Any]:
        shown = {
            "index": index,
            "content": event.text,
            "tokens": list(event.tokens),
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": event.n_decoded,
            "tokens_evaluated": event.n_prompt,
        }
        if event.timings is not None:
            shown["timings"] = timings_json(event.timings)
        if event.probs:
            shown["completion_probabilities"] = probs_json(
                event.probs, self._answer.params.sampling.post_sampling_probs
            )
        return shown

    def piece(self, index: int, event: Piece) -> bytes:
        if event.timings is not None or event.probs:
            return sse(self.partial(index, event))
        return (
            b'data: {"index":%d,"content":%b,"tokens":[%b],"stop":false,"id_slot":-1,'
            b'"tokens_predicted":%d,"tokens_evaluated":%d}\n\n'
        ) % (
            index,
            encode_json(event.text),
            b",".join(b"%d" % token for token in event.tokens),
            event.n_decoded,
            event.n_prompt,
        )

    def progress(self, index: int, event: Progress) -> bytes:
        shown = {
            "index": index,
            "content": "",
            "tokens": [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": 0,
            "tokens_evaluated": event.total,
            "prompt_progress": progress_json(event),
        }
        if self._answer.params.timings_per_token:
            shown["timings"] = timings_json(event.timings)
        return sse(shown)

    def finished(self, index: int, event: Finished) -> bytes:
        return sse(self.result(index, event))

    def end(self) -> bytes:
        return b""


def progress_json(event: Progress) -> dict[str, Any]:
    return {
        "total": event.total,
        "cache": event.cache,
        "processed": event.processed,
        "time_ms": int(event.time_ms),
    }


def _selected_fields(paths: Sequence[str], shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that `response_fields` selects, with their `/`-separated paths as keys; ignore unknown ones."""
    picked = {}
    for path in paths:
        value: Any = shown
        for key in path.split("/"):
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            picked[path] = value
    return picked
