"""Every refusal that reaches a client, as one tree; each leaf knows its status, type and retry hint.

Raised anywhere in router and worker; turned into a body only by `application.error_response`, in an envelope of
`envelopes`. Statuses, types and wording follow llama-server, since clients match them.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """A request is refused: `message` says what was wrong and where."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None: it is not worth trying again."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> dict[str, Any]:
        """The object inside llama-server's `{"error": …}` envelope."""
        return {"code": self.status, "message": self.message, "type": self.type}


class InvalidRequest(ApiError):
    """`param`: the field that is wrong, where there is one."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> dict[str, Any]:
        return {**super().body(), "param": self.param} if self.param else super().body()


class ModelNotFound(InvalidRequest):
    """No model of that name: 400 for llama-server, 404 in some dialects."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")


class ContextExceeded(InvalidRequest):
    """The prompt does not fit: `n_prompt_tokens` against `n_ctx`, both in tokens."""

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
    """A feature that a flag must switch on first."""

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
    """Ours to answer for, not the client's."""


class NotSupported(ApiError):
    """Known, but neither switched on nor possible with this model."""

    status = 501
    type = "not_supported_error"


class WorkerGone(ApiError):
    """The worker went away before its first byte."""

    status = 502
    type = "server_error"
    retry_after = 1


class Unavailable(ApiError):
    """Not now: still loading, or full."""

    status = 503
    type = "unavailable_error"
    retry_after = 1

    def __init__(self, message: str = "Loading model") -> None:
        super().__init__(message)


class QueueFull(Unavailable):
    """So many wait already that one more would wait too long."""

    retry_after = 5


class TooManyRequests(ApiError):
    """A model has as many requests as it takes at once, and lets none wait."""

    status = 429
    type = "rate_limit_error"
    retry_after = 1


class ModelBackingOff(Unavailable):
    """A model that failed several times in a row has a pause."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoCapacity(ApiError):
    """Models that may not be evicted have all places: to wait would be of no use."""

    status = 503
    type = "unavailable_error"


class ConfigError(Exception):
    """The command line, the environment or a preset file is wrong: one line of what and where (`file:line: …`)."""


class ModelFilesError(Exception):
    """A model's files are missing or cannot be fetched: one line that says which, and what would help."""
