"""Builds the output items of a Response and their events from an answer's deltas. Pure.

The items (reasoning, text, calls) are in the order in which the model writes them; each ends where the next begins. The
whole Response and the stream both use this, so they always agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...chat.parsing.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallBegun, ToolCallCut
from .items import CALL_PREFIX, pack_reasoning

Event = dict[str, Any]
Item = dict[str, Any]


class OutputItems:
    def __init__(self, token: str, *, carries_thoughts: bool = False, summarizes: bool = False) -> None:
        """`token`: the response's id without its prefix; item ids contain it, so that they identify the response.

        `carries_thoughts`: put the reasoning into `encrypted_content` too. `summarizes`: put it into `summary` too, for
        clients that show nothing else; models write no summary.
        """
        self.items: list[Item] = []
        self._token = token
        self._carries_thoughts = carries_thoughts
        self._summarizes = summarizes
        self._open: Item | None = None
        self._texts: list[str] = []  # of the item that is open
        self._probs: list[Any] = []

    @property
    def thoughts(self) -> str:
        return "".join(item["content"][0]["text"] for item in self.items if item["type"] == "reasoning")

    def add(self, delta: Delta, probs: Sequence[Any] = ()) -> list[Event]:
        """Add a delta and return its events. `probs`: the probabilities of the content's tokens."""
        match delta:
            case ReasoningDelta(text):
                begun = self._begin("reasoning", "rs", {"summary": [], "content": [], "encrypted_content": None})
                more = self._more("response.reasoning_text.delta", text, content_index=0)
                return [*begun, more, *self._summary("text.delta", delta=text)]
            case ContentDelta(text):
                begun = self._begin("message", "msg", {"role": "assistant", "content": []})
                self._probs += probs
                return [
                    *begun,
                    self._more("response.output_text.delta", text, content_index=0, logprobs=list(probs)),
                ]
            case ToolCallBegun(_, id, name):
                ended = self.end()
                call = {"call_id": CALL_PREFIX + id, "name": name, "arguments": ""}
                return [*ended, *self._begin("function_call", "fc", call)]
            case ToolCallArguments(_, text):
                return [self._more("response.function_call_arguments.delta", text)]
            case ToolCallCut():
                return self.end("incomplete")

    def end(self, status: str = "completed") -> list[Event]:
        """Close the open item, if there is one, and return its events."""
        item = self._open
        if item is None:
            return []
        text = "".join(self._texts)
        if item["type"] == "function_call":
            item["arguments"] = text
            events = [self._event("response.function_call_arguments.done", name=item["name"], arguments=text)]
        else:
            part = self._part(item["type"], text)
            item["content"] = [part]
            events = self._text_done(item, part)
        item["status"] = status
        self._open, self._texts, self._probs = None, [], []
        return [*events, {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}]

    def _begin(self, kind: str, prefix: str, fields: dict[str, Any]) -> list[Event]:
        if self._open is not None and self._open["type"] == kind:
            return []
        ended = self.end()
        at = len(self.items)
        item = {"id": f"{prefix}_{self._token}{at}", "type": kind, "status": "in_progress", **fields}
        self.items.append(item)
        self._open = item
        begun = [{"type": "response.output_item.added", "output_index": at, "item": dict(item)}]
        if kind != "function_call":
            begun.append(self._event("response.content_part.added", content_index=0, part=self._part(kind, "")))
        if kind == "reasoning":
            begun += self._summary("part.added", part=_summary_part(""))
        return [*ended, *begun]

    def _more(self, type: str, text: str, **fields: Any) -> Event:
        self._texts.append(text)
        return self._event(type, delta=text, **fields)

    def _event(self, type: str, **fields: Any) -> Event:
        at = len(self.items) - 1
        return {"type": type, "item_id": self.items[at]["id"], "output_index": at, **fields}

    def _part(self, kind: str, text: str) -> dict[str, Any]:
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._probs)}

    def _text_done(self, item: Item, part: dict[str, Any]) -> list[Event]:
        text = part["text"]
        if item["type"] == "reasoning":
            if self._carries_thoughts:
                item["encrypted_content"] = pack_reasoning(text)
            if self._summarizes:
                item["summary"] = [_summary_part(text)]
            done = [
                *self._summary("text.done", text=text),
                *self._summary("part.done", part=_summary_part(text)),
                self._event("response.reasoning_text.done", content_index=0, text=text),
            ]
        else:
            done = [self._event("response.output_text.done", content_index=0, text=text, logprobs=part["logprobs"])]
        return [*done, self._event("response.content_part.done", content_index=0, part=part)]

    def _summary(self, type: str, **fields: Any) -> list[Event]:
        return (
            [self._event(f"response.reasoning_summary_{type}", summary_index=0, **fields)] if self._summarizes else []
        )


def _summary_part(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}
