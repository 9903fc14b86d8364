"""Computes the key of all that a saved state depends on: a prompt file with another key must not be loaded.

Of the model's and the adapters' files it reads only path, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp
from msgspec.structs import asdict

from ..llama.options import EngineOptions
from .disk_files import VERSION

_SHARD = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)")


def disk_key(options: EngineOptions, n_ctx_slot: int) -> str:
    """Return the key (hexadecimal). Raises OSError if a file is missing."""
    o = options
    projector = None
    if o.projector is not None:
        projector = [_file(o.projector.path), o.projector.image_min_tokens, o.projector.image_max_tokens]
        projector += [o.projector.video_fps, o.projector.video_timestamp_interval]
    facts = {
        "program": [VERSION, llama_cpp.__version__, llama_cpp.LLAMA_STATE_SEQ_VERSION, sys.byteorder],
        "model": [_file(path) for path in _shards(o.model)],
        "context": [
            n_ctx_slot,
            1 if o.kv_unified else o.n_slots,
            o.cache_type_k,
            o.cache_type_v,
            o.flash_attention,
            o.swa_full,
        ],
        "rope": {name: value for name, value in asdict(o).items() if name.startswith(("rope_", "yarn_"))},
        "overrides": sorted(o.kv_overrides),
        "adapters": [_file(path) for path, _ in o.lora],
        "control": [[_file(path), scale] for path, scale in o.control_vectors] + [list(o.control_vector_layers)],
        "projector": projector,
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _shards(path: Path) -> list[Path]:
    """Return all files of a model: several if it is split."""
    found = _SHARD.search(path.name)
    if found is None:
        return [path]
    n = int(found[1])
    return [path.with_name(_SHARD.sub(f"-{i:05d}-of-{n:05d}", path.name)) for i in range(1, n + 1)]


def _file(path: Path) -> list[Any]:
    facts = path.stat()
    return [str(path.resolve()), facts.st_size, facts.st_mtime_ns]
