"""Create the drafters that the options name, in the order in which they are tried. Called by the engine thread."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from .llama.context import Context
from .llama.errors import LoadError
from .llama.model import Model
from .llama.options import SpeculationOptions
from .speculative.drafter import Drafter
from .speculative.model.draft_model import DraftModel
from .speculative.model.mtp_head_setup import draft_head
from .speculative.model.vocab_check import difference
from .speculative.ngram.cache import NgramCache
from .speculative.ngram.map import NgramMap
from .speculative.ngram.mod import NgramMod
from .speculative.ngram.simple import NgramSimple
from .speculative.simulated import Simulation
from .speculative.speculative import Speculation

log = logging.getLogger("corral.engine")


def speculation(model: Model, context: Context, on_progress: Callable[[float], None]) -> Speculation:
    """Create the speculation of a model. Raises LoadError.

    A drafter that cannot be set up is left out with a log message; with simulated acceptance it is an error if none
    is left. `on_progress` gets the load progress of a draft model.
    """
    options = model.options.drafts
    if options is None:
        return Speculation(context)
    if context.kv_cache is None:
        log.warning("speculative decoding not supported by this context")
        return Speculation(context)
    drafters: list[Drafter] = []
    try:
        for kind in options.kinds:
            drafter = _drafter(kind, options, model, context, on_progress)
            if drafter is not None:
                drafters.append(drafter)
        if options.simulated and not drafters:
            raise LoadError("simulated acceptance needs speculative decoding, but no drafter could be set up")
    except BaseException:
        for drafter in drafters:
            drafter.close()
        raise
    if options.simulated:
        log.warning("drafts are accepted at random, for benchmarks only: answers are not the model's real output")
    return Speculation(context, drafters, Simulation(options.simulated, model.vocab) if options.simulated else None)


def _drafter(
    kind: str, o: SpeculationOptions, model: Model, context: Context, on_progress: Callable[[float], None]
) -> Drafter | None:
    if kind == "ngram-simple":
        return NgramSimple(o.ngram_simple)
    if kind == "ngram-map-k":
        return NgramMap(o.ngram_map_k, several=False)
    if kind == "ngram-map-k4v":
        return NgramMap(o.ngram_map_k4v, several=True)
    if kind == "ngram-mod":
        return NgramMod(o.mod_n_lookup, o.mod_n_min, o.mod_n_max)
    if kind == "ngram-cache":
        return NgramCache(o.lookup_static, o.lookup_dynamic)
    if kind == "draft-mtp":
        return draft_head(o, model, context, on_progress)
    return _draft_model(o, model, context, on_progress)


def _draft_model(
    o: SpeculationOptions, main: Model, context: Context, on_progress: Callable[[float], None]
) -> DraftModel | None:
    """Load the draft model. Return None if its vocabulary does not fit the main model's or it has no decoder.

    As in llama-server the main model then works without it.
    """
    assert o.model is not None
    draft = Model(replace(o.model, n_ctx=context.n_ctx), on_progress)
    try:
        problem = difference(main.vocab, draft.vocab)
        if problem is None and not draft.has_decoder:
            problem = "the draft model has no decoder"
        if problem is not None:
            draft.close()
            log.error("'%s' cannot draft for '%s': %s", o.model.model, main.options.model, problem)
            return None
        draft_context = Context(draft)
    except BaseException:
        draft.close()
        raise
    if main.options.warmup:
        draft_context.warm_up()
    return DraftModel(draft, draft_context, main.vocab.n_vocab, o.n_max, o.n_min, o.p_min)
