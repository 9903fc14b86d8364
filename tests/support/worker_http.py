"""Reads streams of a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from programs import Program


def stream(program: Program, path: str, body: dict[str, Any]) -> Iterator[Any]:
    """Yield the `data:` objects of the answer, and `[DONE]` as a text."""
    with program.client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])
