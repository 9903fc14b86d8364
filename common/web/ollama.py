"""The parts of Ollama's dialect that router and worker share: detection, errors, durations, dates. Pure functions.

Model lists are in `ollama_models`; only the worker handles chats and other generation.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from ..base.errors import ApiError, InvalidRequest, ModelNotFound
from ..base.version import build_origin
from .json_fields import is_finite

PATHS = "/api/"
"""Prefix of all of Ollama's paths, below `--api-prefix`."""
VERSION = "0.14.0"
"""The Ollama version whose API this is: the first with Anthropic's messages, and later than the one with OpenAI's
responses. Clients that need certain features refuse earlier ones."""
FOREVER_S = 100 * 365.25 * 86400
"""A `keep_alive` of more seconds means no limit; larger values could not be shown as a date."""
LONGEST_DURATION = 64
"""Maximum characters of a `keep_alive`."""
MOST_SECONDS = 10**308

_PATH = re.compile(rf"{PATHS}[a-z]+\Z")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+|0)")


def speaks_ollama(request: web.Request) -> bool:
    return _PATH.search(request.path) is not None


def ollama_status(error: ApiError) -> int:
    return 404 if isinstance(error, ModelNotFound) else error.status


def ollama_error(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


def read_keep_alive(value: object, name: str = "keep_alive") -> float:
    """Parse seconds or a text such as "1h30m". Return seconds, negative for no limit. Raise InvalidRequest.

    `name`: of the field, for the error.
    """
    if isinstance(value, str) and len(value) <= LONGEST_DURATION:
        seconds = _read_duration(value)
    elif isinstance(value, int) and abs(value) > MOST_SECONDS:  # it may be too large for a float, and for an error
        raise InvalidRequest(f"{name}: expected seconds from -1e308 to 1e308, found a larger number")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if is_finite(value) or isinstance(value, float) else math.nan
    else:
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidRequest(f'{name}: expected seconds or a duration such as "5m", found {value!r:.80}')
    return -1.0 if seconds < 0 or seconds >= FOREVER_S else seconds


def keep_alive_of(body: Mapping[str, Any]) -> float | None:
    """Return the seconds of `keep_alive`, or else of LM Studio's `ttl`; None: neither is set. Raise InvalidRequest."""
    for name in ("keep_alive", "ttl"):
        if (value := body.get(name)) is not None:
            return read_keep_alive(value, name)
    return None


def _read_duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if not found:
        return float(text) if re.fullmatch(rf"[+-]?{_NUMBER}", text) else math.nan
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(found[2]))
    return -seconds if found[1] == "-" else seconds


def date_text(seconds: float) -> str:
    """Format seconds since 1970 as an ISO 8601 date in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def expiry_text(now: float, remaining: float | None) -> str:
    """Format the time at which a model will be unloaded. `remaining`: seconds from now; None: never."""
    return date_text(now + (FOREVER_S if remaining is None else min(remaining, FOREVER_S)))


def version_json() -> dict[str, str]:
    """Return the body of `/api/version`, for clients of Ollama and of LlamaSwap, which has the same path."""
    commit, build_date = build_origin()
    return {"version": VERSION, "commit": commit, "build_date": build_date}


NOTHING: Mapping[str, Mapping[str, Any]] = {
    "chat": {"message": {"role": "assistant", "content": ""}},
    "generate": {"response": ""},
    "embed": {"embeddings": []},
    "embeddings": {"embedding": []},
}
"""The empty result of each endpoint."""


def without_generation(model: str, said: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Return the response to a request that only loads or unloads. `said` is the endpoint's empty result."""
    return {"model": model, "created_at": date_text(time.time()), **said, "done": True, "done_reason": reason}
