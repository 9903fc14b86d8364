"""The errors that reach a client, as one class hierarchy; each class defines its HTTP status, type and retry hint.

They may be raised anywhere in router and worker. Only `application` turns them into response bodies, in an
envelope of `envelopes`. Statuses, types and messages follow llama-server, because clients match them.
"""

from __future__ import annotations

from typing import Any, ClassVar

SHUTTING_DOWN = "the server is shutting down"
"""The reason of requests that are refused or aborted for that, if the server has no other."""


class ApiError(Exception):
    """An error response to a request. `message` says what is wrong and where."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None: a retry cannot help."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> dict[str, Any]:
        """Return the object inside llama-server's `{"error": …}` envelope."""
        return {"code": self.status, "message": self.message, "type": self.type}


class InvalidRequest(ApiError):
    """A request that is wrong. `param` names the wrong field, or is "" if no single field is at fault."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> dict[str, Any]:
        return {**super().body(), "param": self.param} if self.param else super().body()


class ModelNotFound(InvalidRequest):
    """There is no model with that name. The status is 400 in llama-server and 404 in some dialects."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")


class MediaNotSupported(InvalidRequest):
    """The model has no part for images, audio or video. llama-server's status in Anthropic's dialect is 500."""


class ContextExceeded(InvalidRequest):
    """The prompt is longer than the context: `n_prompt_tokens` and `n_ctx` are both in tokens."""

    type = "exceed_context_size_error"

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"request ({n_prompt_tokens} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it"
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx

    def body(self) -> dict[str, Any]:
        return {**super().body(), "n_prompt_tokens": self.n_prompt_tokens, "n_ctx": self.n_ctx}


class AuthenticationFailed(ApiError):
    status = 401
    type = "authentication_error"

    def __init__(self, message: str = "Invalid API Key") -> None:
        super().__init__(message)


class FeatureDisabled(ApiError):
    """The request needs a feature that only a flag switches on."""

    status = 403
    type = "feature_disabled"

    def __init__(self, message: str = "this feature is disabled") -> None:
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.type}


class NotFound(ApiError):
    status = 404
    type = "not_found_error"

    def __init__(self, message: str = "File Not Found") -> None:
        super().__init__(message)


class BodyTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"


class ServerFault(ApiError):
    """An error of the server; the request was not wrong."""


class NotSupported(ApiError):
    """The server knows the feature, but it is switched off or impossible with this model."""

    status = 501
    type = "not_supported_error"


class WorkerGone(ApiError):
    """The worker ended before it sent the first byte of its response."""

    status = 502
    type = "server_error"
    retry_after = 1


class Unavailable(ApiError):
    """The server cannot handle the request at present, for example because the model is still loading."""

    status = 503
    type = "unavailable_error"
    retry_after = 1

    def __init__(self, message: str = "Loading model") -> None:
        super().__init__(message)


class QueueFull(Unavailable):
    """The queue is full: one more request would wait too long."""

    retry_after = 5


class TooManyRequests(ApiError):
    """The model already handles its maximum number of requests, and does not queue others."""

    status = 429
    type = "rate_limit_error"
    retry_after = 1


class ModelBackingOff(Unavailable):
    """The model failed several times in a row and is in its back-off period."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoCapacity(ApiError):
    """All capacity is used by models that may not be evicted, so waiting cannot help."""

    status = 503
    type = "unavailable_error"


class ConfigError(Exception):
    """The command line, the environment or a preset file is wrong; one line says what and where (`file:line: …`)."""


class ModelFilesError(Exception):
    """A model's files are missing or cannot be downloaded; one line says which files, and what to do."""
