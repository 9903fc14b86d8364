"""OpenAI's transcription dialect: streams the text in deltas, then sends the whole text again with its usage.

The model's reasoning is not part of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..chat.parsing.deltas import ContentDelta, Delta
from ..engine.messages import Finished, Piece, Progress
from .answers.dialect import DONE, AnswerInfo, EventStream, sse
from .answers.results import last_deltas, parsed


class OpenAITranscription(EventStream):
    def __init__(self, answer: AnswerInfo) -> None:
        self._reply = answer.params.reply
        self._parser = self._reply.parser()
        self._heard: list[str] = []

    def full_body(self, results: Sequence[Finished]) -> object:
        result = results[0]
        return _done(parsed(self._reply, result).content, result)

    def progress(self, index: int, event: Progress) -> bytes:
        return b""

    def piece(self, index: int, event: Piece) -> bytes:
        return self._deltas(self._parser.add(event.text))

    def finished(self, index: int, event: Finished) -> bytes:
        rest = self._deltas(last_deltas(self._parser, event))
        return rest + sse(_done("".join(self._heard), event))

    def end(self) -> bytes:
        return DONE

    def _deltas(self, deltas: Sequence[Delta]) -> bytes:
        texts = [delta.text for delta in deltas if isinstance(delta, ContentDelta)]
        self._heard += texts
        return b"".join(sse({"type": "transcript.text.delta", "delta": text}) for text in texts)


def _done(text: str, result: Finished) -> dict[str, Any]:
    return {
        "type": "transcript.text.done",
        "text": text,
        "usage": {
            "type": "tokens",
            "input_tokens": result.n_prompt,
            "output_tokens": result.n_decoded,
            "total_tokens": result.n_prompt + result.n_decoded,
            "input_tokens_details": {"cached_tokens": result.timings.cache_n},
        },
    }
