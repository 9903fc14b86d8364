"""The prompt cache on disk: saves prompts when their model is unloaded, and finds and reads one for a new prompt.

Owned by the engine thread, through `slot_memory`, which also loads the state into a slot. A separate thread reads the
file, one prompt at a time, so that running streams continue. A file is kept after it was read: it survives a crash of
the process, and an unchanged prompt need not be written again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO

import psutil
from llama_corral.common.base.errors import ServerFault
from msgspec import Struct

from ..adapters.activation import Activation
from ..batching.checkpoints import Checkpoint
from ..batching.jobs import Job
from .disk_files import DiskPrompt, StateBytes, encode, name_of, read, read_head, write
from .disk_store import DiskStore
from .prompt_cache import CachedPrompt, best_of
from .slot_files import BrokenFile, ReadMedia

log = logging.getLogger("corral.engine")

MIN_TOKENS = 64
"""Minimum number of tokens to save, and to gain by a read: to compute fewer is as fast as to read them."""
LARGE = 256 << 20
"""Bytes. A copy of this size or more may use at most half of the free memory: models are evicted when it is short."""
SAVE_S = 1.5
"""Time limit for saving, in seconds. A swap waits for it; it is well below the time a router gives a worker to stop."""
READ_S = 3.0
"""Time limit for reading, in seconds. A disk that takes longer is slower than computing the prompt."""


class SavablePrompt(Struct, frozen=True, eq=False):
    """A prompt that the unload will remove from memory. `used`: time of last use on the monotonic clock."""

    tokens: Sequence[int]
    activation: Activation
    checkpoints: Sequence[Checkpoint]
    n_bytes: int
    read: Callable[[], StateBytes | None]
    used: float


class DiskRead(Struct, eq=False):
    job: Job
    prompt: DiskPrompt
    done: bool = False  # written by the reading thread, last
    entry: CachedPrompt | None = None


class DiskCache:
    def __init__(self, store: DiskStore, key: str, read_media: ReadMedia | None, wake: Callable[[], None]) -> None:
        """`wake` is called from another thread when a prompt has been read."""
        self._store, self._key, self._read_media, self._wake = store, key, read_media, wake
        self._known: list[DiskPrompt] | None = None
        self._reading: DiskRead | None = None

    # -- unload --------------------------------------------------------------------------------------------------------

    def save(self, prompts: Iterable[SavablePrompt], *, for_good: bool) -> None:
        """Save prompts, the most recently used first, until `SAVE_S` or the space is used up.

        `for_good`: the process ends too; then nothing is saved if the directory is deleted with it.
        """
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
                try:
                    is_saved = self._save(prompt, started + SAVE_S)
                except FileExistsError:
                    continue  # another worker is saving this prompt
                if is_saved:
                    saved.append(prompt)
                    n_bytes += prompt.n_bytes
        except OSError as error:
            log.info("prompts are not cached on disk: %s", error.strerror or error)
        if saved:
            n_tokens, elapsed = sum(len(prompt.tokens) for prompt in saved), time.monotonic() - started
            texts = (len(saved), n_tokens, n_bytes / (1 << 20), elapsed)
            log.info("saved %d prompts to disk: %d tokens, %.1f MiB in %.2f s", *texts)

    def _save(self, prompt: SavablePrompt, deadline: float) -> bool:
        name = name_of(self._key, prompt.tokens, prompt.activation)
        used = time.time() - (time.monotonic() - prompt.used)
        if self._store.has(name, used):
            return True
        if prompt.n_bytes > self._store.max_bytes:
            log.info("a prompt is not saved to disk: its %d MiB exceed --cache-disk", prompt.n_bytes >> 20)
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

    # -- start of a prompt ---------------------------------------------------------------------------------------------

    @property
    def is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done

    def start_or_poll_disk_read(self, job: Job, n_common: int, n_cached: int, n_elsewhere: int) -> bool:
        """Return True if the job can begin, False while a file is being read.

        A read starts if a file on disk is a better match than the best one in memory, which has `n_cached` tokens and
        the first `n_common` in common with the prompt, and than another slot that has its first `n_elsewhere` tokens.
        """
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
        """Return the prompt that was read for the job, and forget it. None: nothing was read, or reading failed."""
        reading, self._reading = self._reading, None
        if reading is None or reading.job is not job:
            return None
        if reading.entry is None and self._known is not None and reading.prompt in self._known:
            self._known.remove(reading.prompt)
        return reading.entry

    def forget_job(self, job: Job) -> None:
        """Drop the read for a job that has ended."""
        if self._reading is not None and self._reading.job is job:
            self._reading = None

    def _read(self, reading: DiskRead) -> None:
        """Read the file. Runs on a separate thread."""
        prompt = reading.prompt
        try:
            state, checkpoints = read(prompt, time.monotonic() + READ_S)
            n_bytes = prompt.header.n_bytes
            reading.entry = CachedPrompt(list(prompt.tokens), prompt.activation, tuple(checkpoints), state, n_bytes)
            self._store.touch(prompt.path, time.time())
        except TimeoutError:
            log.warning("reading a prompt from disk took longer than %g s: it is computed instead", READ_S)
        except BrokenFile as error:
            log.warning("deleting an invalid prompt file (%s): %s", error, prompt.path.name)
            self._store.drop(prompt.path)
        except (OSError, MemoryError) as error:
            log.info("a prompt file cannot be read: %s", error)
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
                log.info("the prompt files on disk cannot be listed: %s", error)
                return self._known
            for path in paths:
                try:
                    self._known.append(read_head(path, self._key, self._read_media))
                except BrokenFile as error:
                    log.warning("deleting an invalid prompt file (%s): %s", error, path.name)
                    self._store.drop(path)
                except OSError as error:
                    log.info("a prompt file cannot be read: %s", error)
        return self._known


def _has_memory_for(n_bytes: int) -> bool:
    if n_bytes < LARGE:
        return True
    if n_bytes < psutil.virtual_memory().available // 2:
        return True
    log.info("a prompt of %d MiB is not copied: too little memory is free", n_bytes >> 20)
    return False


def _covers(saved: SavablePrompt, prompt: SavablePrompt) -> bool:
    n = len(prompt.tokens)
    return list(saved.tokens[:n]) == list(prompt.tokens) and saved.activation.common_length(prompt.activation) >= n


def _begins(known: DiskPrompt, prompt: SavablePrompt) -> bool:
    return known.common(prompt.tokens, prompt.activation) == len(known.tokens) < len(prompt.tokens)
