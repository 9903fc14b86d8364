"""Anthropic's dialect: statuses and types of errors, detection of its requests, list of models."""

from __future__ import annotations

import json

import pytest
from aiohttp.test_utils import make_mocked_request
from llama_corral.common.base import errors
from llama_corral.common.base.errors import ApiError
from llama_corral.common.web.anthropic import anthropic_error, with_anthropic_names
from llama_corral.common.web.application import error_event, error_response
from llama_corral.common.web.envelopes import ANTHROPIC, OPENAI, envelope_of


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest("no"), 400, "invalid_request_error"),
        (errors.AuthenticationFailed(), 401, "authentication_error"),
        (errors.FeatureDisabled(), 403, "permission_error"),
        (errors.NotFound(), 404, "not_found_error"),
        (errors.ModelNotFound("x"), 404, "not_found_error"),
        (errors.BodyTooLarge("no"), 413, "request_too_large"),
        (errors.ServerFault("no"), 500, "api_error"),
        (errors.WorkerGone("no"), 502, "api_error"),
        (errors.Unavailable(), 529, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_statuses_and_types(error: ApiError, status: int, kind: str) -> None:
    response = error_response(error, ANTHROPIC)
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert (response.status, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["error"]["message"] == error.message
    assert body["request_id"] == response.headers["Request-Id"]


def test_agents_see_that_a_prompt_is_too_long() -> None:
    message = anthropic_error(errors.ContextExceeded(9000, 8192))["error"]["message"]
    assert message == "prompt is too long: 9000 tokens > 8192 maximum"


def test_an_error_ends_a_stream_as_an_event_named_error() -> None:
    name, _, data = error_event(errors.ServerFault("gone"), ANTHROPIC).decode().partition("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"] == {"type": "api_error", "message": "gone"}
    assert error_event(errors.ServerFault("gone")).startswith(b'data: {"error":')


@pytest.mark.parametrize(
    ("path", "headers", "envelope"),
    [
        ("/v1/messages?beta=true", {}, ANTHROPIC),
        ("/prefix/v1/messages/count_tokens", {}, ANTHROPIC),
        ("/v1/models", {"Anthropic-Version": "2023-06-01"}, ANTHROPIC),
        ("/v1/models", {}, OPENAI),
        ("/v1/chat/completions", {}, OPENAI),
    ],
)
def test_which_requests_are_anthropics(path: str, headers: dict[str, str], envelope: object) -> None:
    assert envelope_of(make_mocked_request("POST", path, headers)) is envelope


def test_an_empty_list_of_models_is_a_page() -> None:
    assert with_anthropic_names([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    (entry,) = with_anthropic_names([{"id": "a", "created": 0}])["data"]
    assert entry == {
        "id": "a", "created": 0, "type": "model", "display_name": "a", "created_at": "1970-01-01T00:00:00Z",
    }  # fmt: skip
