"""Parameters of OpenAI's completions that a worker does not support."""

from __future__ import annotations

from typing import Any

import pytest
from programs import Program, post


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("echo", True, "Only no echo is supported"),
        ("echo", "x", "echo"),
        ("best_of", 2, "Unsupported param: best_of"),
        ("suffix", "x", "Unsupported param: suffix"),
    ],
)
def test_unsupported_openai_completion_parameters_are_refused(
    worker: Program, field: str, value: object, why: str
) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    answer = worker.client.post("/v1/completions", json={**body, field: value})
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]
    for harmless in (None, False) if field == "echo" else (None,):
        assert worker.client.post("/v1/completions", json={**body, field: harmless}).status_code == 200


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"n": 2, "best_of": 2}, {"n": 2, "best_of": 1}, {"suffix": ""}])
def test_default_values_of_openai_completion_parameters_are_accepted(worker: Program, fields: dict[str, Any]) -> None:
    post(worker, "/v1/completions", {"prompt": "a", "max_tokens": 1, **fields})


@pytest.mark.parametrize("fields", [{"best_of": 0}, {"n": 2, "best_of": 3}, {"best_of": "x"}, {"suffix": 5}])
def test_other_values_of_openai_completion_parameters_are_refused(worker: Program, fields: dict[str, Any]) -> None:
    error = post(worker, "/v1/completions", {"prompt": "a", "max_tokens": 1, **fields}, 400)["error"]
    assert "best_of" in error["message"] or "suffix" in error["message"]
