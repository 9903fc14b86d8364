"""The state that all handlers of a worker share: settings, engine, and the data from loading the model.

There is one `WorkerContext` per process. It is created before the model is loaded; `on_model_loaded()` completes it.
Handlers run only after that (before, the application answers 503), so they can rely on every part of it.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from llama_corral.common.base.version import BUILD_INFO
from llama_corral.common.base.worker_reports import CONTROL_FD_ENV
from llama_corral.common.web.auth import KEYS_ENV, given_key
from llama_corral.common.web.ollama import keep_alive_of
from llama_corral.common.web.request_body import read_object
from llama_corral.common.web.response_store import DIRECTORY_ENV, ResponseStore
from llama_corral.common.web.ui_settings import read_ui_settings
from llama_corral.presets.abilities import template_source
from llama_corral.presets.options.settings import Settings
from msgspec import Struct
from msgspec.structs import replace

from ..chat.prompt import ChatFormat
from ..chat.request import ChatDefaults
from ..engine.messages import Share
from ..engine.runner import Engine, LoadedModel, ModelInfo
from ..media.sources import media_loader
from .request.defaults import chat_defaults, completion_defaults
from .request.limits import check_limits
from .request.params import CompletionParams


class LoadedModelState(Struct, frozen=True):
    """The model data that requests need; it remains valid while the model sleeps."""

    engine: Engine
    chat: ChatFormat
    chat_defaults: ChatDefaults
    defaults: CompletionParams


@dataclass
class WorkerContext:
    """The shared state of a worker's handlers. Raises ConfigError if an option of the HTTP server is invalid."""

    settings: Settings
    environ: InitVar[Mapping[str, str]]
    build: str = BUILD_INFO
    started: int = field(default_factory=lambda: int(time.time()))
    loaded_state: LoadedModelState | None = None
    variants: dict[str, WorkerContext] = field(default_factory=dict)
    """This model with other defaults, by the value of the header that names them; see `variants`."""
    media_marker: str = ""
    """Placeholder of a media file in a prompt."""

    def __post_init__(self, environ: Mapping[str, str]) -> None:
        self.responses = ResponseStore(environ.get(DIRECTORY_ENV, ""))
        self.has_router = CONTROL_FD_ENV in environ
        self.has_keys = self.has_router and KEYS_ENV in environ  # without a router, `app.build` sets it
        self.slots_debug = bool(environ.get("LLAMA_SERVER_SLOTS_DEBUG"))
        self.media = media_loader(self.settings, environ)
        self.ui_settings = read_ui_settings(self.settings)  # also for pages that the worker does not serve

    @property
    def is_ready(self) -> bool:
        return self.loaded_state is not None

    @property
    def model(self) -> LoadedModelState:
        if self.loaded_state is None:
            raise RuntimeError("a handler ran before the model was ready")
        return self.loaded_state

    @property
    def engine(self) -> Engine:
        return self.model.engine

    @property
    def info(self) -> ModelInfo:
        info = self.engine.snapshot.info
        assert info is not None
        return info

    @cached_property
    def name(self) -> str:
        """The model's name in answers, independent of the name in the request."""
        settings = self.settings
        if settings.main_model.alias:
            return min(settings.main_model.alias)
        return (
            settings.main_model.hf_repo
            or PurePath(settings.main_model.model or urlsplit(settings.main_model.model_url).path).name
        )

    @property
    def aliases(self) -> list[str]:
        return sorted(set(self.settings.main_model.alias)) or [self.name]

    @property
    def tags(self) -> list[str]:
        return sorted(set(self.settings.main_model.tags))

    def apply_keep_alive(self, fields: Mapping[str, Any]) -> None:
        """Set the idle timeout to a request's `keep_alive` or `ttl`, if it has one. Raises InvalidRequest.

        Does nothing under a router, which does this itself.
        """
        if not self.has_router and (seconds := keep_alive_of(fields)) is not None:
            self.engine.set_idle_timeout(seconds)

    def on_model_loaded(self, engine: Engine, loaded: LoadedModel) -> None:
        """Store the data of the loaded model.

        Raises TemplateError if the chat template cannot be used, ConfigError if its file cannot be read.
        """
        info, vocab = loaded.info, loaded.vocab
        may_wait = self.loaded_state is None and not self.has_router  # the first load of a program by itself
        chat = ChatFormat(
            template_source(self.settings, info.chat_template, may_wait=may_wait),
            tool_source=info.chat_template_tool_use,
            bos_text=info.bos_text,
            eos_text=info.eos_text,
            add_bos=vocab.add_bos,
            add_eos=vocab.add_eos,
            jinja=self.settings.chat.jinja,
            parses=not self.settings.chat.skip_chat_parsing,
        )
        defaults = completion_defaults(self.settings, info.metadata, info.drafts, may_wait=may_wait)
        marker = loaded.media.marker if loaded.media else self.media_marker
        self.loaded_state = LoadedModelState(
            engine, chat, replace(chat_defaults(self.settings), media_marker=marker), defaults
        )


WORKER_CONTEXT = web.AppKey("serving", WorkerContext)
_request_numbers = itertools.count()


def share_of(request: web.Request) -> Share:
    """Return the share of the request: its client is known by the API key, if the server requires one."""
    number = next(_request_numbers)
    if not request.app[WORKER_CONTEXT].has_keys:
        return Share(request=number)
    return Share(hashlib.sha256(given_key(request)).hexdigest(), number)


async def read_request(request: web.Request, *, most: int = 0) -> dict[str, Any]:
    """Return the body, a JSON object in which no field is larger than its limit. `most`: as in `read_body`.

    Raises InvalidRequest and BodyTooLarge.
    """
    body = await read_object(request, most=most)
    check_limits(body)
    return body


async def begin_use(request: web.Request) -> dict[str, Any]:
    """Return the body of a request that uses the model. Sets the idle timeout to the body's `keep_alive` or `ttl`.

    Raises InvalidRequest.
    """
    body = await read_request(request)
    request.app[WORKER_CONTEXT].apply_keep_alive(body)
    return body
