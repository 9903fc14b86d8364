"""Engines with tiny multimodal models, and requests to them with images and audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_tools import Request, running
from llama_corral.worker.engine.messages import Generation, PromptText, Sampling
from llama_corral.worker.engine.runner import LoadedModel
from media_files import noise, png, wav

M = "<__media__>"
CAT, DOG, WIDE = png(seed=1), png(seed=2), png(160, 64, seed=3)
EXACT = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}  # results do not depend on the batch
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
KINDS: dict[str, tuple[str, str, tuple[bytes, bytes], tuple[bool, bool]]] = {
    "gemma3": ("tiny-gemma3.gguf", "mmproj-gemma3.gguf", (CAT, DOG), (True, False)),
    "qwen2vl": ("tiny-qwen2vl.gguf", "mmproj-qwen2vl.gguf", (CAT, WIDE), (True, False)),
    "audio": ("tiny-llama.gguf", "mmproj-audio.gguf", (wav(1.0), noise(20.0)), (False, True)),
}
ALL = KINDS | {"recurrent": ("tiny-mamba.gguf", *KINDS["audio"][1:])}


def look(loaded: LoadedModel, text: str, *files: bytes, **fields: Any) -> Request:
    """Submit a request; by default greedy, with eight tokens."""
    tokens, media = loaded.tokenize_media([PromptText(text)], files)
    request = Request(loaded, Generation(tokens=tokens, media=media, **{"n_predict": 8, "sampling": ENDLESS, **fields}))
    request.n = fields.get("n", 1)
    return request


def seeing(models: Path, kind: str = "gemma3", **settings: Any) -> Any:
    model, projector, _, _ = ALL[kind]
    return running(
        models / model,
        projector=models / projector,
        **{"parallel": 2, "image_max_tokens": 64, "warmup": False, **settings},
    )
