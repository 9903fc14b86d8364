"""Checks streams of OpenAI Responses, event by event, against the types of OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent

EVENT_TYPES: dict[str, Any] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}


def read_stream(data: bytes) -> list[dict[str, Any]]:
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        name, _, body = block.partition("\n")
        if name.startswith(":"):
            continue
        event = json.loads(body.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_stream(events: list[dict[str, Any]], last: str = "response.completed") -> Response:
    """Return the final Response, after checking that it equals the sum of the events."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENT_TYPES[event["type"]].model_validate(event, strict=True)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == last
    final = events[-1]["response"]
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}
    items: list[dict[str, Any]] = []
    inside = [event for event in events if "output_index" in event]
    for at in range(len(final["output"])):
        items.append(_item([event for event in inside if event["output_index"] == at]))
    assert items == final["output"]
    assert [event["output_index"] for event in inside] == sorted(event["output_index"] for event in inside)
    return Response.model_validate(final, strict=True)


def _item(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Check that one item's events are in the required order."""
    first, *middle, last = events
    item: dict[str, Any] = last["item"]
    assert (first["type"], last["type"]) == ("response.output_item.added", "response.output_item.done")
    assert first["item"]["id"] == item["id"]
    assert first["item"]["status"] == "in_progress"
    assert {event["item_id"] for event in middle} == {item["id"]}
    stem, field = _STEMS[item["type"]]
    *shown, done = [event for event in middle if event["type"].startswith(stem)]
    text = "".join(event["delta"] for event in shown)
    assert {event["type"] for event in shown} <= {f"{stem}.delta"}
    assert (done["type"], done[field]) == (f"{stem}.done", text)
    if item.get("summary"):
        (summary,) = item["summary"]
        _summary([event for event in middle if "summary_index" in event], summary)
    parts = [event for event in middle if event["type"].startswith("response.content_part")]
    if item["type"] == "function_call":
        assert not parts
        assert (item["arguments"], done["name"]) == (text, item["name"])
    else:
        assert [middle[0], middle[-1]] == parts
        assert item["content"] == [parts[1]["part"]]
        assert item["content"][0]["text"] == text
    return item


def _summary(events: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    added, *shown, text_done, part_done = [
        (event["type"].removeprefix("response.reasoning_summary_"), event) for event in events
    ]
    assert (added[0], text_done[0], part_done[0]) == ("part.added", "text.done", "part.done")
    assert {kind for kind, _ in shown} == {"text.delta"}
    assert "".join(event["delta"] for _, event in shown) == text_done[1]["text"] == summary["text"]
    assert part_done[1]["part"] == summary


_STEMS = {
    "reasoning": ("response.reasoning_text", "text"),
    "message": ("response.output_text", "text"),
    "function_call": ("response.function_call_arguments", "arguments"),
}


def kinds(items: Iterable[Any]) -> list[str]:
    return [item.type for item in items]
