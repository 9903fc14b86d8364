"""Vertex AI's prediction protocol: with `AIP_MODE=PREDICTION` one route stands for all that answer at once.

A request holds up to 128 instances; each names what it is for and is answered as if it had come alone. Read from the
environment by the mains of router and worker, for whichever of them the platform talks to; knows no route of either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import hdrs, web

from ..base.errors import ApiError, ConfigError, InvalidRequest, ServerFault
from ..base.json_encoding import encode_json
from .application import CONVERSATION_HEADER, GIVEN_BODY, Handler, Route, add_routes, json_response, read_object
from .ollama import PATHS as OLLAMA_PATHS

if TYPE_CHECKING:
    from ..base.common_settings import CommonSettings

ListeningSettings = TypeVar("ListeningSettings", bound="CommonSettings")

log = logging.getLogger("corral.http")

VERTEX_ENV = "AIP_"
"""What the names of all its variables begin with."""
MAX_INSTANCES = 128
FORMAT = "@requestFormat"
_OF_THE_OUTER = (hdrs.CONTENT_LENGTH, hdrs.CONTENT_TYPE, hdrs.CONTENT_ENCODING, CONVERSATION_HEADER)


@dataclass(frozen=True)
class Vertex:
    """What the platform asks for."""

    port: int
    predict_route: str
    health_route: str
    """"": `/health` will do."""

    def listening(self, settings: ListeningSettings) -> ListeningSettings:
        if settings.port == self.port:
            return settings
        log.warning("Vertex AI: AIP_HTTP_PORT (%d) takes the place of --port %d", self.port, settings.port)
        return settings.model_copy(update={"port": self.port})

    def public_paths(self) -> tuple[str, ...]:
        """The platform's probe has no key."""
        return (self.health_route,) if self.health_route else ()

    def serve(self, app: web.Application, settings: CommonSettings, served: Sequence[Route], health: Handler) -> None:
        """Adds its own routes, last of all. `served`: what an instance may be for. Raises ConfigError."""
        prefix = settings.api_prefix or ""
        taken = {resource.canonical for resource in app.router.resources()}
        if prefix + self.predict_route in taken:
            raise ConfigError(f"AIP_PREDICT_ROUTE={self.predict_route}: this server has another use for that path")
        own: list[Route] = [("POST", self.predict_route, _predictor(served, prefix))]
        if self.health_route and prefix + self.health_route not in taken:
            own.append(("GET", self.health_route, health))
        add_routes(app, settings, own)


def read_vertex(environ: Mapping[str, str]) -> Vertex | None:
    """None: not on Vertex AI. Raises ConfigError."""
    if environ.get("AIP_MODE") != "PREDICTION":
        return None
    port = environ.get("AIP_HTTP_PORT") or "8080"
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"AIP_HTTP_PORT: invalid value '{port}': expected a port number")
    predict = _with_slash(environ.get("AIP_PREDICT_ROUTE") or "/predict")
    return Vertex(int(port), predict, _with_slash(environ.get("AIP_HEALTH_ROUTE") or ""))


def _with_slash(path: str) -> str:
    return path if not path or path.startswith("/") else "/" + path


# -- predicting ------------------------------------------------------------------------------------------------------


def format_of(path: str) -> str:
    """`/v1/chat/completions` is `chatCompletions`, `/apply-template` is `applyTemplate`."""
    words = path.removeprefix("/v1").strip("/").replace("-", "/").replace("_", "/").split("/")
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])


def _by_format(served: Sequence[Route]) -> dict[str, Route]:
    """By path and by alias: of two with one alias the one below /v1, which is OpenAI's; of two on one path the GET."""
    found: dict[str, Route] = {}
    for route in sorted(served, key=lambda route: (not route[1].startswith("/v1/"), route[0] != hdrs.METH_GET)):
        method, path, _ = route
        if method in (hdrs.METH_GET, hdrs.METH_POST) and "{" not in path:
            found.setdefault(path, route)
            found.setdefault(format_of(path), route)
    return found


def _predictor(served: Sequence[Route], prefix: str) -> Handler:
    by_format = {name: (method, prefix + path, handler) for name, (method, path, handler) in _by_format(served).items()}

    async def predict(request: web.Request) -> web.StreamResponse:
        instances = (await read_object(request)).get("instances")
        if not isinstance(instances, list):
            raise InvalidRequest("request body must include an array field named instances")
        if len(instances) > MAX_INSTANCES:
            raise InvalidRequest(f"instances array exceeds maximum size of {MAX_INSTANCES}")
        predictions = await asyncio.gather(*(_prediction(request, instance, by_format) for instance in instances))
        return json_response({"predictions": predictions})

    return predict


async def _prediction(request: web.Request, instance: object, by_format: Mapping[str, Route]) -> object:
    """What went wrong with one instance is its prediction; the others have theirs."""
    try:
        return await _answer(request, instance, by_format)
    except ApiError as error:
        return {"error": error.body()}
    except Exception as error:  # the boundary, as it is for a request of its own
        log.exception("unexpected error in an instance of %s", request.path)
        return {"error": ServerFault(f"unexpected {type(error).__name__}, see the server's log").body()}


async def _answer(request: web.Request, instance: object, by_format: Mapping[str, Route]) -> object:
    if not isinstance(instance, dict):
        raise InvalidRequest("each instance must be a JSON object")
    wanted = instance.get(FORMAT)
    if not isinstance(wanted, str):
        raise InvalidRequest(f"each instance must include a string {FORMAT}")
    if wanted not in by_format:
        raise InvalidRequest(f"no handler registered for {FORMAT}: {wanted}")
    method, path, handler = by_format[wanted]
    response = await handler(_inner(request, method, path, instance))
    assert isinstance(response, web.Response)  # streams are not among the routes that are served here
    return _value(response)


def _inner(request: web.Request, method: str, path: str, instance: dict[str, Any]) -> web.Request:
    """The request that the instance would have been on its own; never a stream."""
    payload = {name: value for name, value in instance.items() if name != FORMAT}
    if "stream" in payload or OLLAMA_PATHS in path:  # which streams if nothing is said
        payload["stream"] = False
    headers = request.headers.copy()
    for name in _OF_THE_OUTER:
        headers.popall(name, None)
    headers[hdrs.CONTENT_TYPE] = "application/json"
    url = request.rel_url.with_path(path, keep_query=True)
    if method == hdrs.METH_GET:
        url = url.update_query({name: value for name, value in payload.items() if isinstance(value, str)})
    inner = request.clone(method=method, rel_url=url, headers=headers)
    inner[GIVEN_BODY] = encode_json(payload)
    return inner


def _value(response: web.Response) -> object:
    body = response.body
    if not isinstance(body, bytes | bytearray) or not body:
        return None
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")
