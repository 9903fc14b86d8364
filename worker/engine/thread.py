"""The engine thread: waits for work, runs the posted commands, and runs the engine's steps between them.

Only this thread uses the model's context. `runner` uses `post` and `call`; results go back to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from llama_corral.common.base.errors import ServerFault
from llama_corral.common.base.private_directory import PrivateDirectory

from .adapters.activation import Scales
from .adapters.control_vector import apply_control_vectors
from .adapters.lora import Adapters
from .cache.disk_cache import DiskCache
from .cache.disk_key import disk_key
from .cache.disk_store import DiskStore
from .core import Core, Deliver
from .counters import Counters
from .llama.context import Context
from .llama.heap import give_back_freed_memory
from .llama.model import Model
from .llama.options import EngineOptions
from .media.encoder import MediaEncoder
from .speculation_setup import speculation

log = logging.getLogger("corral.engine")
T = TypeVar("T")

OnProgress = Callable[[str, float], None]
"""Called with the stage that is being loaded and its progress (0 to 1)."""


class EngineThread(threading.Thread):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        on_progress: OnProgress,
        disk: PrivateDirectory | None = None,
    ) -> None:
        """`deliver` and `on_progress` are called on the loop's thread.

        `disk`: the directory that caches prompts while the model is unloaded.
        """
        super().__init__(name="engine", daemon=True)
        self.core: Core | None = None
        self._loop = loop
        self._deliver = deliver
        self._on_progress = on_progress
        self._directory = disk
        self._counters = Counters()
        self._scales: Scales | None = None  # the adapters' scales while the model sleeps
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self.turns = 0
        """Counter that grows while the thread makes progress."""

    # -- from any thread ----------------------------------------------------------------------------------------------

    def post(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a function between two steps and return a future of its result. Called on the loop's thread."""
        future: asyncio.Future[T] = self._loop.create_future()

        def command() -> None:
            try:
                result = function()
            except Exception as error:  # passed to the caller
                self._soon(_fail, future, error)
            else:
                self._soon(_succeed, future, result)

        self.post(command)
        return future

    # -- on the engine thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._stopped:
            self.turns += 1
            self._take_commands()
            if self.core is not None and self.core.busy:
                self._step(self.core)

    def load(self, options: EngineOptions) -> Core:
        self._soon(self._on_progress, "text_model", 0.0)
        model = Model(options, lambda value: self._soon(self._on_progress, "text_model", value))
        context = drafts = None
        try:
            with _run_alongside(lambda: model.vocab.eog_tokens):
                adapters = Adapters(model, self._scales)
                context = Context(model)
                apply_control_vectors(context)
            drafts = speculation(model, context, lambda value: self._soon(self._on_progress, "spec_model", value))
            media_encoder = self._load_projector(model)
        except BaseException:
            if drafts is not None:
                drafts.close()
            if context is not None:
                context.close()
            model.close()
            raise
        if options.warmup:
            context.warm_up()
        deliver = partial(self._soon, self._deliver)
        disk = self._disk(context, media_encoder)
        self.core = Core(model, context, adapters, media_encoder, drafts, deliver, self._counters, disk)
        return self.core

    def _disk(self, context: Context, media_encoder: MediaEncoder | None) -> DiskCache | None:
        options = context.model.options
        if self._directory is None or not options.disk_bytes or options.embeddings or context.kv_cache is None:
            return None
        try:
            key = disk_key(options, context.n_ctx_slot)
        except OSError as error:
            log.warning("prompts are not cached on disk: %s", error)
            return None
        store = DiskStore(self._directory, options.disk_bytes)
        read_media = media_encoder.projector.read_saved if media_encoder is not None else None
        return DiskCache(store, key, read_media, lambda: self.post(_wake))

    def _load_projector(self, model: Model) -> MediaEncoder | None:
        options = model.options.projector
        if options is None:
            return None
        from .media.projector import Projector  # imports a library that most workers do not need

        self._soon(self._on_progress, "mmproj_model", 0.0)
        projector = Projector(model, options, lambda value: self._soon(self._on_progress, "mmproj_model", value))
        return MediaEncoder(projector, lambda: self.post(_wake))

    def unload(self, reason: str, *, for_good: bool = False) -> None:
        """`reason`: what the clients of running requests are told."""
        if self.core is not None:
            self._save(self.core, for_good)
            self.core.fail_all(ServerFault(reason))
            self._scales = self.core.adapters.scales
            if self.core.media_encoder is not None:
                self.core.media_encoder.close()
            self.core.speculation.close()
            self.core.context.close()
            self.core.model.close()
            self.core = None
            give_back_freed_memory()

    def _save(self, core: Core, for_good: bool) -> None:
        try:
            core.slot_cache.save_to_disk(for_good=for_good)
        except Exception:  # an error here must not prevent the unload
            log.exception("prompts could not be saved to disk")

    def stop(self, reason: str) -> None:
        self.unload(reason, for_good=True)
        self._stopped = True

    def _take_commands(self) -> None:
        with self._changed:
            while not self._commands and not (self.core is not None and self.core.busy):
                self._changed.wait()
            commands = list(self._commands)
            self._commands.clear()
        if commands and self.core is not None:
            self.core.stalled = False
        for command in commands:
            command()

    def _step(self, core: Core) -> None:
        try:
            core.step()
        except Exception as error:  # an error in one step must not end the thread
            log.exception("an engine step failed: all requests are aborted")
            core.fail_all(ServerFault(f"got exception: {error}"))

    def _soon(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("event dropped: the event loop is closed")


@contextmanager
def _run_alongside(work: Callable[[], object]) -> Iterator[None]:
    """Run `work`, which holds the GIL, in a thread while the block waits for calls that release the GIL."""
    thread = threading.Thread(target=work, name="background")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _wake() -> None:
    """Do nothing. Posted as a command it makes the engine check its work again."""


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
