"""Vertex AI's prediction protocol: with `AIP_MODE=PREDICTION` one route serves all non-streaming endpoints.

A request contains up to 128 instances; each names its endpoint and is handled like a separate request. The mains of
router and worker read the environment variables, since the platform may run either; both pass their own routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from ..base.errors import ApiError, ConfigError, InvalidRequest, ServerFault
from ..base.json_encoding import encode_json
from ..base.logs import one_line
from .application import CONVERSATION_HEADER, Handler, Route, add_routes, json_response
from .foreign_pages import ANY_HOST
from .json_values import check_members
from .ollama import PATHS as OLLAMA_PATHS
from .request_body import GIVEN_BODY, NOT_JSON, fields_in, malformed, read_skipped_json

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

ListeningSettings = TypeVar("ListeningSettings", bound="ServerSettings")

log = logging.getLogger("corral.http")

VERTEX_ENV = "AIP_"
"""Prefix of the names of all Vertex AI variables."""
MAX_INSTANCES = 128
FORMAT = "@requestFormat"
_OF_THE_OUTER = (hdrs.CONTENT_LENGTH, hdrs.CONTENT_TYPE, hdrs.CONTENT_ENCODING, CONVERSATION_HEADER)


class Vertex(Struct, frozen=True):
    """The platform's requirements, from the environment."""

    port: int
    predict_route: str
    health_route: str
    """"" if the platform uses `/health`."""

    def listening(self, settings: ListeningSettings) -> ListeningSettings:
        """Return the settings for the platform, which reaches the server by any name, and never from a browser."""
        settings = settings.with_options({"allowed_hosts": (ANY_HOST,)})
        if settings.http.port == self.port:
            return settings
        log.warning("Vertex AI: AIP_HTTP_PORT (%d) overrides --port %d", self.port, settings.http.port)
        return settings.with_options({"port": self.port})

    def public_paths(self) -> tuple[str, ...]:
        """Return the paths that need no key, because the platform's probe has none."""
        return (self.health_route,) if self.health_route else ()

    def serve(self, app: web.Application, settings: ServerSettings, served: Sequence[Route], health: Handler) -> None:
        """Add Vertex AI's routes; call it after all others. `served`: routes for instances. Raise ConfigError."""
        prefix = settings.http.api_prefix or ""
        taken = {resource.canonical for resource in app.router.resources()}
        if prefix + self.predict_route in taken:
            raise ConfigError(f"AIP_PREDICT_ROUTE={self.predict_route}: this server already uses that path")
        own: list[Route] = [("POST", self.predict_route, _predictor(served, prefix))]
        if self.health_route and prefix + self.health_route not in taken:
            own.append(("GET", self.health_route, health))
        add_routes(app, settings, own)


def read_vertex(environ: Mapping[str, str]) -> Vertex | None:
    """Return the platform's requirements; None if this is not Vertex AI. Raise ConfigError."""
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
    """Return a path's alias: `/v1/chat/completions` → `chatCompletions`, `/apply-template` → `applyTemplate`."""
    words = path.removeprefix("/v1").strip("/").replace("-", "/").replace("_", "/").split("/")
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])


def _by_format(served: Sequence[Route]) -> dict[str, Route]:
    """Return the routes by path and by alias.

    If two routes have the same alias, the one below /v1 (OpenAI's) wins; if two have the same path, GET wins.
    """
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
        instances = _instances(await read_skipped_json(request))
        predictions = await asyncio.gather(*(_prediction(request, instance, by_format) for instance in instances))
        return json_response({"predictions": predictions})

    return predict


class _Body(Struct):
    instances: msgspec.Raw = msgspec.Raw()


_Instances = msgspec.defstruct(
    "_Instances", [(f"at{n}", msgspec.Raw, msgspec.Raw()) for n in range(MAX_INSTANCES + 1)], array_like=True
)
"""The first elements of an array. More are skipped, not built."""
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _instances(body: bytes) -> list[bytes]:
    """Return the JSON text of each instance. Raises InvalidRequest."""
    try:
        found = msgspec.structs.astuple(msgspec.json.decode(fields_in(body, _Body).instances, type=_Instances))
    except msgspec.DecodeError:
        raise InvalidRequest("request body must include an array field named instances") from None
    instances = [bytes(instance) for instance in found]
    if instances[-1]:
        raise InvalidRequest(f"instances array exceeds maximum size of {MAX_INSTANCES}")
    return [instance for instance in instances if instance]


async def _prediction(request: web.Request, instance: bytes, by_format: Mapping[str, Route]) -> object:
    """Return one instance's prediction; an error becomes its prediction and does not affect the others."""
    try:
        return await _answer(request, instance, by_format)
    except ApiError as error:
        return {"error": error.body()}
    except Exception as error:  # last resort, as for a separate request
        log.exception("unexpected error in an instance of %s", one_line(request.path))
        return {"error": ServerFault(f"unexpected {type(error).__name__}, see the server's log").body()}


async def _answer(request: web.Request, instance: bytes, by_format: Mapping[str, Route]) -> object:
    members = _read_members(instance)
    wanted = _text(members.get(FORMAT))
    if wanted is None:
        raise InvalidRequest(f"each instance must include a string {FORMAT}")
    if wanted not in by_format:
        raise InvalidRequest(f"no handler registered for {FORMAT}: {wanted}")
    method, path, handler = by_format[wanted]
    response = await handler(_inner(request, method, path, members))
    assert isinstance(response, web.Response)  # the served routes never stream here
    return _value(response)


def _read_members(instance: bytes) -> dict[str, msgspec.Raw]:
    """Return the JSON text of each member. Raises InvalidRequest, and BodyTooLarge for too many members."""
    check_members(instance)
    try:
        return _members.decode(instance)
    except msgspec.ValidationError:
        raise InvalidRequest("each instance must be a JSON object") from None
    except NOT_JSON as error:
        raise malformed(error) from None


def _text(value: msgspec.Raw | None) -> str | None:
    """Return a member that is a string; None if it is missing or has another type. Raises InvalidRequest."""
    if value is None or bytes(memoryview(value)[:1]) != b'"':
        return None
    try:
        return msgspec.json.decode(value, type=str)
    except NOT_JSON as error:
        raise malformed(error) from None


def _inner(request: web.Request, method: str, path: str, members: Mapping[str, msgspec.Raw]) -> web.Request:
    """Build the separate request for an instance, with streaming off."""
    payload = {name: value for name, value in members.items() if name != FORMAT}
    if "stream" in payload or OLLAMA_PATHS in path:  # Ollama's endpoints stream by default
        payload["stream"] = msgspec.Raw(b"false")
    headers = request.headers.copy()
    for name in _OF_THE_OUTER:
        headers.popall(name, None)
    headers[hdrs.CONTENT_TYPE] = "application/json"
    url = request.rel_url.with_path(path, keep_query=True)
    if method == hdrs.METH_GET:
        texts = {name: _text(value) for name, value in payload.items()}
        url = url.update_query({name: text for name, text in texts.items() if text is not None})
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
