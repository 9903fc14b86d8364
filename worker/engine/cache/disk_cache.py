"""Prompts on disk while their model is away: what is saved when it goes, and what a prompt gets back from there.

Owned by the engine thread, through `slot_memory`. Reading happens on a thread of its own, one prompt at a time, so that
running streams go on; the state is put into a slot by `slot_memory`. A file stays where it is when it has been read: if
the process dies it is still there, and if nothing is added to it, it need not be written again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO

import psutil
from llama_corral.common.base.errors import ServerFault

from ..adapters.activation import Activation
from ..batching.checkpoints import Checkpoint
from ..batching.jobs import Job
from .disk_files import DiskPrompt, StateBytes, encode, name_of, read, read_head, write
from .disk_store import DiskStore
from .prompt_cache import CachedPrompt, best_of
from .slot_files import BrokenFile, ReadMedia

log = logging.getLogger("corral.engine")

MIN_TOKENS = 64
"""Computing fewer is as fast as reading them."""
LARGE = 256 << 20
"""Bytes from which on a copy must not take more than half of the memory that is free: models leave when it is short."""
SAVE_S = 1.5
"""A swap waits for what is saved: seconds, well within what routers give a worker to stop."""
READ_S = 3.0
"""A disk that takes longer is slower than the model."""


@dataclass(frozen=True, eq=False)
class SavablePrompt:
    """A prompt that is about to be lost. `used` is on the monotonic clock."""

    tokens: Sequence[int]
    activation: Activation
    checkpoints: Sequence[Checkpoint]
    n_bytes: int
    read: Callable[[], StateBytes | None]
    used: float


@dataclass(eq=False)
class DiskRead:
    job: Job
    prompt: DiskPrompt
    done: bool = False  # written by the reading thread, last
    entry: CachedPrompt | None = None


class DiskCache:
    def __init__(self, store: DiskStore, key: str, read_media: ReadMedia | None, wake: Callable[[], None]) -> None:
        """`wake`, called from another thread: a prompt has been read."""
        self._store, self._key, self._read_media, self._wake = store, key, read_media, wake
        self._known: list[DiskPrompt] | None = None
        self._reading: DiskRead | None = None

    # -- the model goes ------------------------------------------------------------------------------------------------

    def save(self, prompts: Iterable[SavablePrompt], *, for_good: bool) -> None:
        """`for_good`: the process ends, too. What was used last goes first, as long as time and room last."""
        if for_good and not self._store.outlives:
            return
        started = time.monotonic()
        saved: list[SavablePrompt] = []
        n_bytes = 0
        try:
            for prompt in sorted(prompts, key=lambda prompt: prompt.used, reverse=True):
                if len(prompt.tokens) < MIN_TOKENS or any(_covers(other, prompt) for other in saved):
                    continue
                if time.monotonic() > started + SAVE_S:
                    break
                if self._save(prompt, started + SAVE_S):
                    saved.append(prompt)
                    n_bytes += prompt.n_bytes
        except OSError as error:
            log.info("prompts are not kept on disk: %s", error.strerror or error)
        if saved:
            n_tokens, elapsed = sum(len(prompt.tokens) for prompt in saved), time.monotonic() - started
            texts = (len(saved), n_tokens, n_bytes / (1 << 20), elapsed)
            log.info("kept %d prompts on disk: %d tokens, %.1f MiB in %.2f s", *texts)

    def _save(self, prompt: SavablePrompt, deadline: float) -> bool:
        name = name_of(self._key, prompt.tokens, prompt.activation)
        used = time.time() - (time.monotonic() - prompt.used)
        if self._store.has(name, used):
            return True
        if prompt.n_bytes > self._store.max_bytes:
            log.info("a prompt of %d MiB does not fit into --cache-disk", prompt.n_bytes >> 20)
            return False
        if not _has_memory_for(prompt.n_bytes):
            return False
        state = prompt.read()
        if state is None:
            return False
        try:
            head, parts = encode(self._key, prompt.tokens, prompt.activation, prompt.checkpoints, state)
        except ServerFault:
            return False

        def fill(file: IO[bytes]) -> bool:
            return write(file, head, parts, deadline)

        if not self._store.put(name, len(head) + sum(part.nbytes for part in parts), used, fill):
            return False
        for known in self._files():
            if _begins(known, prompt):
                self._store.drop(known.path)
        return True

    # -- a prompt begins -----------------------------------------------------------------------------------------------

    @property
    def is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done

    def start_or_poll_disk_read(self, job: Job, n_common: int, n_cached: int, n_elsewhere: int) -> bool:
        """Whether the job can begin; if not, a prompt is being read that serves it better than `n_cached` tokens of
        which it begins with `n_common`, and than another slot with `n_elsewhere` of its beginning."""
        reading = self._reading
        if reading is not None and not reading.done:
            return False
        if reading is not None and reading.job is job:
            return True
        self._reading = None
        tokens = job.request.tokens
        n_least = max(n_common, n_elsewhere) + MIN_TOKENS
        if len(tokens) < n_least:
            return True
        best = best_of(self._files(), n_common, n_cached, tokens, job.activation)
        if best is None or best.common(tokens, job.activation) < n_least or not _has_memory_for(best.header.n_bytes):
            return True
        self._reading = DiskRead(job, best)
        threading.Thread(target=self._read, args=(self._reading,), name="disk", daemon=True).start()
        return False

    def take(self, job: Job) -> CachedPrompt | None:
        """What was read for it."""
        reading, self._reading = self._reading, None
        if reading is None or reading.job is not job:
            return None
        if reading.entry is None and self._known is not None and reading.prompt in self._known:
            self._known.remove(reading.prompt)
        return reading.entry

    def forget_job(self, job: Job) -> None:
        """It will not begin."""
        if self._reading is not None and self._reading.job is job:
            self._reading = None

    def _read(self, reading: DiskRead) -> None:
        """On a thread of its own."""
        prompt = reading.prompt
        try:
            state, checkpoints = read(prompt, time.monotonic() + READ_S)
            n_bytes = prompt.header.n_bytes
            reading.entry = CachedPrompt(list(prompt.tokens), prompt.activation, tuple(checkpoints), state, n_bytes)
            self._store.touch(prompt.path, time.time())
        except TimeoutError:
            log.warning("reading a prompt from disk takes longer than %g s: it is computed again", READ_S)
        except BrokenFile as error:
            log.warning("a prompt on disk is of no use (%s), it is removed: %s", error, prompt.path.name)
            self._store.drop(prompt.path)
        except (OSError, MemoryError) as error:
            log.info("a prompt on disk cannot be read: %s", error)
        finally:
            reading.done = True
            self._wake()

    # -- the files -----------------------------------------------------------------------------------------------------

    def _files(self) -> list[DiskPrompt]:
        if self._known is None:
            self._known = []
            try:
                paths = self._store.names(self._key[:16])
            except OSError as error:
                log.info("prompts on disk cannot be listed: %s", error)
                return self._known
            for path in paths:
                try:
                    self._known.append(read_head(path, self._key, self._read_media))
                except BrokenFile as error:
                    log.warning("a prompt on disk is of no use (%s), it is removed: %s", error, path.name)
                    self._store.drop(path)
                except OSError as error:
                    log.info("a prompt on disk cannot be read: %s", error)
        return self._known


def _has_memory_for(n_bytes: int) -> bool:
    if n_bytes < LARGE:
        return True
    if n_bytes < psutil.virtual_memory().available // 2:
        return True
    log.info("too little memory is free for a copy of a prompt of %d MiB", n_bytes >> 20)
    return False


def _covers(saved: SavablePrompt, prompt: SavablePrompt) -> bool:
    n = len(prompt.tokens)
    return list(saved.tokens[:n]) == list(prompt.tokens) and saved.activation.common_length(prompt.activation) >= n


def _begins(known: DiskPrompt, prompt: SavablePrompt) -> bool:
    return known.common(prompt.tokens, prompt.activation) == len(known.tokens) < len(prompt.tokens)
