"""The slots' state for monitoring. Built on the event loop from the engine thread's objects, without a lock.

Each field is read atomically, but a view may mix the values of two steps. So it must not be used for decisions.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from .batching.jobs import GenerationTask
from .batching.media_tokens import split_media_tokens
from .batching.slots import Slot, SlotState
from .core import Core


class SlotView(Struct, frozen=True):
    id: int
    n_ctx: int
    is_processing: bool
    speculative: bool = False
    id_task: int | None = None  # None: the slot never had a task; the following fields are meaningless
    n_prompt_tokens: int = 0  # in the slot, generated ones included
    n_prompt_processed: int = 0
    n_prompt_cached: int = 0
    settings: object = None
    has_next_token: bool = False
    has_new_line: bool = False
    n_remain: int = -1
    n_decoded: int = 0
    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()


def slot_views(core: Core) -> list[SlotView]:
    return [_view(slot, core.speculation.active) for slot in core.slots]


def _view(slot: Slot, speculative: bool) -> SlotView:
    running = slot.task
    task = running or slot.last_task
    view = SlotView(slot.id, slot.n_ctx, slot.state is not SlotState.IDLE, speculative)
    if task is None:
        return view
    view = replace(
        view, id_task=task.job.id, n_prompt_tokens=len(slot.tokens), prompt=tuple(split_media_tokens(task.prompt)[0])
    )
    if not isinstance(task, GenerationTask):
        return view
    choice = task.choice
    view = replace(
        view,
        settings=choice.request.settings,
        has_next_token=running is not None,
        has_new_line=choice.has_new_line if running else False,
        generated=tuple(choice.tokens),
    )
    if running is None:
        return view
    clock = choice.clock
    return replace(
        view,
        n_prompt_processed=clock.n_prompt,
        n_prompt_cached=clock.n_cached,
        n_remain=choice.n_remaining,
        n_decoded=clock.n_predicted,
    )
