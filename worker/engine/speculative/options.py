"""Checks the settings for speculative decoding and converts them to the engine's options. Pure.

Besides `options`, this is the only module of the engine that knows the names of settings.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..llama.errors import LoadError
from ..llama.options import CACHE_TYPE, EngineOptions, NgramSizes, SpeculationOptions, gpu_layers, tensor_overrides

if TYPE_CHECKING:
    from llama_corral.common.hub.resolve import ModelFiles
    from llama_corral.presets.options.settings import Settings

log = logging.getLogger("corral.engine")

KINDS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache", "draft-simple", "draft-mtp")
"""In the order in which the drafters are called; the first draft is used."""
_LAYER = 1  # the split mode "layer"


def with_drafts(options: EngineOptions, settings: Settings, files: ModelFiles) -> EngineOptions:
    """Return the options with those for drafts added. Raises LoadError for settings that contradict each other."""
    kinds = tuple(kind for kind in KINDS if kind in settings.drafts.spec_type)
    if files.draft is not None and files.draft_kind not in (None, "mtp"):
        raise LoadError(
            f"'{files.draft}' is not a draft model but a head ({files.draft_kind}), which is not supported yet"
        )
    if files.draft is not None and set(settings.drafts.spec_type) <= {"none"}:
        kinds = ("draft-simple" if files.draft_kind is None else "draft-mtp",)
    if "draft-simple" in kinds and files.draft_kind is not None:
        raise LoadError(f"'{files.draft}' is not a draft model but a head: use --spec-type draft-mtp")
    if {"draft-simple", "draft-mtp"} <= set(kinds):
        raise LoadError("--spec-type: draft-simple and draft-mtp exclude each other, use only one of them")
    simulates = settings.drafts.spec_synth_len != -1.0 or bool(settings.drafts.spec_synth_rates)
    if "draft-simple" in kinds and files.draft is None:
        raise LoadError("--spec-type draft-simple needs a draft model: --spec-draft-model or --spec-draft-hf")
    if kinds and options.embeddings:
        log.warning("--spec-type is ignored: an embedding model generates no text")
    if not kinds or options.embeddings:
        if simulates:
            raise LoadError("simulated acceptance needs speculative decoding: set --spec-type")
        return options
    made = _draft_options(kinds, settings)
    if "draft-simple" in kinds and files.draft is not None:
        made = replace(made, model=_draft_model(options, settings, files.draft))
    if "draft-mtp" in kinds:
        head = _draft_model(options, settings, files.draft or options.model)
        made = replace(made, head=replace(head, with_head=True))
        options = replace(options, with_head=files.draft is None)
    if simulates:
        made = replace(
            made, simulated=simulated(made.longest, settings.drafts.spec_synth_len, settings.drafts.spec_synth_rates)
        )
    return replace(options, drafts=made)


def _draft_options(kinds: tuple[str, ...], s: Settings) -> SpeculationOptions:
    return SpeculationOptions(
        kinds=kinds,
        n_max=s.drafts.spec_draft_n_max,
        n_min=s.drafts.spec_draft_n_min,
        p_min=s.drafts.draft_p_min,
        ngram_simple=NgramSizes(
            s.ngrams.spec_ngram_simple_size_n, s.ngrams.spec_ngram_simple_size_m, s.ngrams.spec_ngram_simple_min_hits
        ),
        ngram_map_k=NgramSizes(
            s.ngrams.spec_ngram_map_k_size_n, s.ngrams.spec_ngram_map_k_size_m, s.ngrams.spec_ngram_map_k_min_hits
        ),
        ngram_map_k4v=NgramSizes(
            s.ngrams.spec_ngram_map_k4v_size_n, s.ngrams.spec_ngram_map_k4v_size_m, s.ngrams.spec_ngram_map_k4v_min_hits
        ),
        mod_n_lookup=s.ngrams.spec_ngram_mod_n_match,
        mod_n_min=s.ngrams.spec_ngram_mod_n_min,
        mod_n_max=s.ngrams.spec_ngram_mod_n_max,
        lookup_static=Path(s.drafts.lookup_cache_static) if s.drafts.lookup_cache_static else None,
        lookup_dynamic=Path(s.drafts.lookup_cache_dynamic) if s.drafts.lookup_cache_dynamic else None,
        simulated=(),
        model=None,
        head=None,
    )


def _draft_model(main: EngineOptions, s: Settings, path: Path) -> EngineOptions:
    """Return the main model's options with the draft's own ones applied, without adapters and projector."""
    n_threads = s.draft_model.threads_draft if s.draft_model.threads_draft > 0 else main.n_threads
    n_threads_batch = main.n_threads_batch if s.draft_model.threads_draft <= 0 else n_threads
    return replace(
        main,
        model=path,
        embeddings=False,
        pooling=-1,
        cache_type_k=CACHE_TYPE[s.draft_model.cache_type_k_draft],
        cache_type_v=CACHE_TYPE[s.draft_model.cache_type_v_draft],
        n_threads=n_threads,
        n_threads_batch=s.draft_model.threads_batch_draft if s.draft_model.threads_batch_draft > 0 else n_threads_batch,
        n_gpu_layers=gpu_layers(str(s.draft_model.n_gpu_layers_draft)),
        devices=s.draft_model.device_draft or main.devices,
        split_mode=_LAYER if len(s.draft_model.device_draft) == 1 else main.split_mode,
        tensor_overrides=tensor_overrides(
            "--override-tensor-draft",
            s.draft_model.override_tensor_draft,
            s.draft_model.cpu_moe_draft,
            s.draft_model.n_cpu_moe_draft,
        ),
        lora=(),
        control_vectors=(),
        drafts=None,
        projector=None,
    )


def simulated(n_max: int, length: float, rates: tuple[float, ...]) -> tuple[float, ...]:
    """Return the probability that each position is accepted, given that those before it were. Raises LoadError."""
    if length != -1.0 and rates:
        raise LoadError("--spec-synth-len and --spec-synth-rates exclude each other")
    if n_max <= 0:
        raise LoadError("simulated acceptance needs drafts of at least one token")
    if not rates:
        rates = _rates_of_length(n_max, length)
    elif len(rates) != n_max:
        raise LoadError(f"--spec-synth-rates: {n_max} values are needed, {len(rates)} are given")
    elif not all(0.0 <= rate <= 1.0 for rate in rates) or sorted(rates, reverse=True) != list(rates):
        raise LoadError("--spec-synth-rates: each value must be between 0 and 1 and not above the one before")
    before = (1.0, *rates)
    return tuple(rate / last if last > 0 else 0.0 for rate, last in zip(rates, before, strict=False))


def _rates_of_length(n_max: int, length: float) -> tuple[float, ...]:
    """Return rates for which a step yields `length` tokens on average, with the same chance at each position."""
    if not math.isfinite(length) or not 1.0 <= length <= n_max + 1:
        raise LoadError(f"--spec-synth-len: {length} is not between 1 and {n_max + 1}")
    low, high = 0.0, 1.0
    for _ in range(32 if 1.0 < length < n_max + 1 else 0):
        middle = (low + high) / 2
        if sum(middle**i for i in range(1, n_max + 1)) < length - 1.0:
            low = middle
        else:
            high = middle
    chance = (low + high) / 2 if 1.0 < length < n_max + 1 else float(length > 1.0)
    return tuple(chance**i for i in range(1, n_max + 1))
