"""What each model takes of memory, and the snapshot that `placement` decides on.

`lifecycle` owns one and tells it what happens; it writes a model's `expected` and `load_seconds`, its instance's
`private_bytes`, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .catalog import Catalog
from .models import Model, resident_of
from .room import Room
from .snapshot import Entry, Rules, Snapshot
from .space import NOTHING, UNBOUNDED, Space
from .states import State

SETTLING_S = 5.0
"""After a worker's end: so long may it take until a driver has its memory back."""


class Accounts:
    def __init__(self, room: Room, clock: Callable[[], float], rules: Rules) -> None:
        self._room = room
        self._rules = rules
        self.clock = clock
        self._last_exit = -math.inf

    async def weigh(self, model: Model) -> None:
        """Before a model is queued: how much it will need."""
        if model.state.is_down:
            model.expected = await self._room.expected(model.preset)

    def learn(self, model: Model) -> None:
        """What it took, and how long that lasted, as soon as it is loaded."""
        instance = model.instance
        if model.state is not State.LOADED or instance is None or instance.private_bytes is not None:
            return
        instance.private_bytes = self._room.private_bytes(instance.worker.pid)
        instance.ready_since = self.clock()
        model.load_seconds = instance.ready_since - instance.started
        if model.measured is not None:
            model.expected = self._room.learn(model.preset, model.measured)

    def note_exit(self) -> None:
        self._last_exit = self.clock()

    def snapshot(
        self,
        catalog: Catalog,
        queue: tuple[Entry, ...],
        models_max: int,
        *,
        starts_held: bool,
        counts_memory: bool,
    ) -> Snapshot:
        """`counts_memory`: False spares the system's reading where nobody is to be started."""
        models = list(catalog)
        residents = tuple(resident_of(model, self._space(model)) for model in models)
        running = [
            (model.instance.worker.pid, resident.space)
            for model, resident in zip(models, residents, strict=True)
            if model.instance is not None
        ]
        now = self.clock()
        return Snapshot(
            residents,
            queue,
            models_max,
            starts_held=starts_held,
            limit=self._room.limit(running) if counts_memory else UNBOUNDED,
            now=now,
            is_settling=now - self._last_exit < SETTLING_S,
            rules=self._rules,
        )

    def _space(self, model: Model) -> Space:
        """What it was expected to take or took when it was loaded, and what it has grown since."""
        instance, space = model.instance, model.expected or NOTHING
        if instance is None or instance.private_bytes is None:
            return space
        return space + Space(max(0, self._room.private_bytes(instance.worker.pid) - instance.private_bytes))
