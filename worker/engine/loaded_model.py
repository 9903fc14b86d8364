"""The interface of requests to a loaded model: its properties, its operations, and the checks before submission.

`runner` creates it at each load and drops it at unload. Calls that change something are posted to the engine thread.
Runs on the event loop's thread, except where a method says otherwise.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from llama_corral.common.base.errors import ContextExceeded, InvalidRequest, NotSupported, ServerFault
from msgspec.structs import replace

from .adapters.lora import AdapterInfo
from .batching.jobs import ALONE, Job
from .batching.media_tokens import content_of, with_media_tokens
from .batching.slots import Slot
from .cache.slot_files import SlotFile, save
from .core import Core
from .llama.builtin_template import apply_builtin_template
from .llama.model import MediaSupport
from .llama.vocab import Vocab
from .messages import MEDIA_TOKEN, Embedding, Generation, MediaChunk, PromptText, Sampling, Share, Sink
from .sampling import grammar_candidates, guidance
from .sampling.dry import prepare_dry, uses_dry
from .slot_actions import SlotAction
from .slot_views import SlotView, slot_views
from .thread import EngineThread

_job_ids = itertools.count()
T = TypeVar("T")


class LoadedModel:
    """A model in memory. Valid only inside `use()`."""

    def __init__(self, core: Core, thread: EngineThread) -> None:
        self.core = core
        self.vocab: Vocab = core.model.vocab
        self.info = core.model.info(core.context.n_ctx_slot, core.context.pooling_name)
        self.media: MediaSupport | None = core.media_encoder.projector.support if core.media_encoder else None
        self.info = replace(self.info, media=self.media)
        self._thread = thread

    def tokenize_media(
        self, parts: Sequence[PromptText], files: Sequence[bytes], given_up: Callable[[], bool] = lambda: False
    ) -> tuple[tuple[int, ...], tuple[MediaChunk, ...]]:
        """Tokenize the parts of a prompt that has one marker for each file. Return the tokens and the media chunks.

        `given_up` returns True once the result is not wanted anymore. May be called from any thread. Slow: it also
        scales images and decodes audio. Raises InvalidRequest, and NotSupported without a projector.
        """
        if self.core.media_encoder is None:
            raise NotSupported("Multimodal data provided, but model does not support multimodal requests.")
        return self.core.media_encoder.projector.tokenize(parts, files, self.info.n_ctx, given_up)

    async def prepare_for(self, sampling: Sampling) -> Sampling:
        """Compile the grammar of a request, and make what its samplers need. Return the params that contain them.

        With other params the engine thread does this at the first token of a request, and all other requests wait.
        If the task is cancelled, work that has not begun is dropped. Raises InvalidRequest if the grammar is invalid
        or too large.
        """
        if (grammar := sampling.grammar) is not None:
            prepare = (grammar_candidates if grammar.matcher == "llama.cpp" else guidance).prepare
            prepared = await asyncio.wrap_future(prepare(grammar.text, self.vocab))
            sampling = replace(sampling, grammar=replace(grammar, prepared=prepared))
        if uses_dry(sampling):
            original = await asyncio.wrap_future(prepare_dry(sampling, self.vocab))
            sampling = replace(sampling, dry_prepared=original)
        return sampling

    @property
    def should_be_indexed(self) -> bool:
        """True if the vocabulary is not prepared for grammars, and doing so would interrupt streams."""
        return self.core.options.indexes_vocab and guidance.should_be_indexed(self.vocab)

    def index_vocab(self) -> None:
        """Prepare the vocabulary for grammars. Slow; may be called from any thread while the model is in memory."""
        guidance.index(self.vocab)

    def submit(
        self, request: Generation | Embedding, sink: Sink, share: Share = ALONE, *, checked: bool = False
    ) -> Ticket:
        """Submit a request. Raises ApiError for errors that are visible now; later errors arrive as Failed events.

        `share`: the client and the HTTP request that it is part of. `checked`: `check` has accepted it already.
        """
        if not checked:
            self.check(request)
        if request.media:
            request = replace(request, tokens=with_media_tokens(request.tokens, request.media))
        job, core = Job(next(_job_ids), request, sink, share), self.core
        self._thread.post(lambda: core.submit(job))
        return Ticket(job, core, self._thread)

    @property
    def n_ctx(self) -> int:
        """The context of each request, in tokens."""
        return self.info.n_ctx

    @property
    def window(self) -> int:
        """The number of prompts that a request should have submitted at a time: enough to keep all slots busy."""
        return 2 * self.info.n_slots

    @property
    def embedding_room(self) -> int:
        """The maximum number of tokens of one embedding input."""
        n_ctx, context = self.info.n_ctx, self.core.context
        return n_ctx - 1 if context.embeds_in_pieces else min(n_ctx, context.n_ubatch)

    async def slots(self) -> list[SlotView]:
        return slot_views(self.core)

    def adapters(self) -> list[tuple[AdapterInfo, float]]:
        """Return each LoRA adapter with its default scale, used by requests that set no scales."""
        adapters = self.core.adapters
        return list(zip(adapters.infos, adapters.scales, strict=True))

    async def set_adapter_scales(self, scales: Mapping[int, float]) -> None:
        """Set the default scales. Adapters that are not mentioned get 0, unknown ids are ignored.

        The scales are kept while the model sleeps.
        """
        await self._thread.call(lambda: self.core.adapters.set_scales(scales))

    async def save_slot(self, id_slot: int, path: Path) -> SlotFile:
        """Save a slot to a file. This and the next two methods wait until the slot is idle; ids wrap around."""
        return await self._on_idle_slot(id_slot, lambda slot: save(slot, self.core.context, path))

    async def restore_slot(self, id_slot: int, path: Path) -> SlotFile:
        read_media = self.core.media_encoder.projector.read_saved if self.core.media_encoder else None
        return await self._on_idle_slot(id_slot, lambda slot: self.core.slot_cache.restore(slot, path, read_media))

    async def erase_slot(self, id_slot: int) -> int:
        """Clear a slot and return the number of tokens removed."""
        return await self._on_idle_slot(id_slot, self.core.slot_cache.erase)

    async def _on_idle_slot(self, id_slot: int, function: Callable[[Slot], T]) -> T:
        action: SlotAction[T] = SlotAction(id_slot, function, asyncio.get_running_loop().create_future())
        self._thread.post(lambda: self.core.run_on_slot(action))
        return await action.result

    def apply_builtin_template(
        self, template: str, messages: Sequence[tuple[str, str]], add_generation_prompt: bool
    ) -> str | None:
        return apply_builtin_template(template, messages, add_generation_prompt)

    def check(self, request: Generation | Embedding) -> None:
        """Raise the ApiError that `submit` would raise."""
        context, n_tokens = self.core.context, len(request.tokens)
        text = [token for token in request.tokens if token != MEDIA_TOKEN] if request.media else request.tokens
        if not self.vocab.contains(text):
            raise InvalidRequest("Prompt contains invalid tokens")
        n_ctx = self.info.n_ctx
        self._check_media(request)
        if isinstance(request, Generation):
            self._check_generation(request)
            if n_tokens >= n_ctx:
                raise ContextExceeded(n_tokens, n_ctx)
        elif not self.core.options.embeddings:  # llama.cpp would abort: the context has no space for the outputs
            raise NotSupported("This server does not support embeddings. Start it with `--embeddings`")
        elif not n_tokens:
            raise InvalidRequest("Input content cannot be empty")
        elif context.embeds_in_pieces:
            if n_tokens >= n_ctx:
                raise ContextExceeded(n_tokens, n_ctx)
        elif n_tokens > context.n_ubatch:
            raise ServerFault(
                f"input ({n_tokens} tokens) is too large to process. increase the physical batch size "
                f"(current batch size: {context.n_ubatch})"
            )
        elif n_tokens > n_ctx:
            raise ContextExceeded(n_tokens, n_ctx)

    def _check_media(self, request: Generation | Embedding) -> None:
        if not request.media:
            return
        if self.core.media_encoder is None:
            raise NotSupported("Multimodal data provided, but model does not support multimodal requests.")
        context = self.core.context
        if context.kv_cache is None:
            raise NotSupported("This model cannot read images or audio: it has no KV cache")
        for content in map(content_of, request.media):
            n_tokens = content.token.n_tokens
            if content.prepared is None:
                raise ServerFault("images and audio of a finished request cannot be used again")
            if content.non_causal and n_tokens > min(context.n_batch, context.n_ubatch):  # llama.cpp would abort
                raise InvalidRequest(
                    f"{content.kind} ({n_tokens} tokens) is too large to process. increase the physical batch size "
                    f"(current batch size: {min(context.n_batch, context.n_ubatch)})"
                )

    def _check_generation(self, request: Generation) -> None:
        if self.core.context.kv_cache is None:
            raise NotSupported(
                "This model computes embeddings and cannot generate text: "
                "the current context does not support logits computation"
            )
        if self.info.has_encoder:  # llama.cpp's decoder asserts that the encoder was run
            raise NotSupported("Encoder-decoder models cannot generate text: this is not supported")
        if not 1 <= request.n <= self.info.n_slots:
            raise InvalidRequest(f"n must be between 1 and {self.info.n_slots}, the number of slots")


class Ticket:
    """A submitted request."""

    def __init__(self, job: Job, core: Core, thread: EngineThread) -> None:
        self._job, self._core, self._thread = job, core, thread

    @property
    def id(self) -> int:
        return self._job.id

    @property
    def done(self) -> bool:
        """True if no event follows."""
        return self._job.done or self._job.cancelled

    def cancel(self) -> None:
        """Cancel the request; may be called again. No event follows. A prefill stops; its slot is free in a step."""
        job, core = self._job, self._core
        if self.done:
            return
        job.cancelled = True
        core.decoder.abort_if(lambda other: other.cancelled)
        self._thread.post(lambda: core.cancel(job))

    async def end_thoughts(self) -> bool:
        """End the reasoning part of the request's answers. Return False if the request has no slot."""
        return await self._thread.call(lambda: self._core.end_thoughts(self._job))
