"""Accepts draft tokens at random instead of comparing them, to measure the speed with a drafter of that quality.

For `--spec-synth-len` and `--spec-synth-rates`. The same seed gives the same random numbers as in llama-server. Pure.
"""

from __future__ import annotations

import secrets

import numpy as np
from llama_corral.presets.options.sampling import RANDOM_SEED

from ..batching.jobs import GenerationTask
from ..llama.vocab import Vocab


class Simulation:
    def __init__(self, chances: tuple[float, ...], vocab: Vocab) -> None:
        """`chances` has for each position the probability of acceptance, given that those before it were accepted."""
        self._chances, self._vocab = chances, vocab
        self._random: dict[int, tuple[GenerationTask, np.random.MT19937]] = {}

    def accepts(self, id_slot: int, task: GenerationTask, guess: int, place: int) -> bool:
        """Draw whether the drafted token is accepted. An end-of-generation token never is: it would end the answer."""
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
