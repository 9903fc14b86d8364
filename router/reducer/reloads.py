"""Apply a new set of presets: stop the idle and loading models that it changes, then take it over.

Called by `sequence` after every event. Reloads follow one another, and no model starts during one. A busy model whose
preset was changed or removed keeps its entry until its last request has ended. Requests that wait for a load that is
ended wait for the next instance.
"""

from __future__ import annotations

import logging

from .effects import Finish
from .events import ReloadRequested
from .state import Reload, State
from .workers import refuse_removed, refuse_unavailable, stop

log = logging.getLogger("corral.router")


def on_requested(state: State, event: ReloadRequested) -> None:
    """Record the reload; it begins when those before it are done."""
    state.reloads.append(Reload(event.asker, event.presets))


def advance(state: State) -> None:
    """Begin the first reload, and apply its presets when the workers that it stops have ended."""
    while state.reloads:
        reload = state.reloads[0]
        if reload.stopped is None:
            _begin(state, reload)
        if not all(instance.is_gone for instance in reload.stopped or ()):
            return
        for model in state.catalog.apply_presets(reload.presets):
            if model.name not in reload.presets:  # else it is a variant now
                log.info("(reload) removing name=%s: no source has it any more", model.name)
            refuse_removed(state, model)
        for model in state.catalog:
            refuse_unavailable(state, model)
        state.publish("*", "models_reload")
        state.emit(Finish(reload.asker))
        state.reloads.pop(0)


def _begin(state: State, reload: Reload) -> None:
    """Stop the idle and loading models that must go. A busy one is stopped when its last lease is released."""
    retiring = state.catalog.mark_retiring(reload.presets)
    reload.stopped = tuple(instance for _, instance in retiring if not instance.leases)
    for model, instance in retiring:
        if instance.leases:
            log.info("name=%s is stopped when its requests have ended: %s", model.name, instance.retirement_reason)
        else:
            stop(state, model, instance.retirement_reason)
