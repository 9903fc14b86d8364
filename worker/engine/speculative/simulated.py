"""Drafts accepted by chance instead of by the model, to measure what a drafter of that quality would give.

For `--spec-synth-len` and `--spec-synth-rates`; the random numbers are llama-server's for the same seed. Pure.
"""

from __future__ import annotations

import secrets

import numpy as np
from llama_corral.presets.options.sampling import RANDOM_SEED

from ..batching.jobs import GenerationTask
from ..llama.vocab import Vocab


class Simulation:
    def __init__(self, chances: tuple[float, ...], vocab: Vocab) -> None:
        """`chances`: of each position, given that those before were accepted."""
        self._chances, self._vocab = chances, vocab
        self._random: dict[int, tuple[GenerationTask, np.random.MT19937]] = {}

    def accepts(self, id_slot: int, task: GenerationTask, guess: int, place: int) -> bool:
        """A drafted end is never accepted: the answer would end early."""
        lucky = self._uniform(id_slot, task) < self._chances[place]
        return lucky and not self._vocab.is_eog(guess)

    def _uniform(self, id_slot: int, task: GenerationTask) -> float:
        owner, generator = self._random.get(id_slot, (None, None))
        if owner is not task or generator is None:
            seed = task.request.sampling.seed
            generator = np.random.MT19937()
            generator._legacy_seeding(seed if seed != RANDOM_SEED else secrets.randbits(32))
            self._random[id_slot] = task, generator
        low, high = (int(word) for word in generator.random_raw(2))
        return float(low + (high << 32)) / 2.0**64
