"""An action on a slot, such as save or restore, that runs when the slot is idle.

Created on the event loop, which awaits `result`. The engine thread runs it or fails it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from llama_corral.common.base.errors import ApiError
from msgspec import Struct

from .batching.slots import Slot

T = TypeVar("T")


class SlotAction(Struct, Generic[T], frozen=True, eq=False):
    id_slot: int
    function: Callable[[Slot], T]
    result: asyncio.Future[T]

    def run(self, slot: Slot) -> None:
        if self.result.cancelled():  # the client has disconnected
            return
        try:
            value = self.function(slot)
        except ApiError as error:
            self.fail(error)
        else:
            self._call_soon(lambda: self.result.set_result(value))

    def fail(self, error: ApiError) -> None:
        self._call_soon(lambda: self.result.set_exception(error))

    def _call_soon(self, settle: Callable[[], Any]) -> None:
        self.result.get_loop().call_soon_threadsafe(lambda: None if self.result.done() else settle())
