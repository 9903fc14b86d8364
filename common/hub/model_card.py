"""Describes a model from its files without loading it: size, architecture, quantization, capabilities.

Used for lists of models in router and worker. Reads only headers, each one once (`gguf_header` caches them).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from .gguf_header import GgufError, Header, Scalar, read_header
from .gguf_names import shard_names
from .gguf_types import FILE_TYPES

log = logging.getLogger("corral.presets")

TEMPLATE = "tokenizer.chat_template"
SHA256_LENGTH = 64
_THINKING = ("enable_thinking", "reasoning_content", "<think>", "<|channel|>")
"""Every chat template of a reasoning model contains one of these."""
_INFILL = ("fim_pre_token_id", "fim_prefix_token_id", "prefix_token_id")


class ModelCard(Struct, frozen=True):
    """Facts about a model. All fields are empty if its files are not on this machine."""

    path: Path | None = None
    size: int = 0
    """Bytes of all files of the model."""
    modified: float = 0.0
    """Seconds since 1970."""
    digest: str = ""
    """64 hexadecimal digits that change with the file: the hub's SHA-256, or a hash of path, size and time."""
    architecture: str = ""
    n_params: int = 0
    quantization: str = ""
    n_ctx_train: int = 0
    template: str = ""
    metadata: Mapping[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict)

    def capabilities(
        self,
        *,
        embeds: bool = False,
        ranks: bool = False,
        modalities: Sequence[str] = (),
        template: str | None = None,
    ) -> list[str]:
        """Return Ollama's names of the model's capabilities.

        `embeds`: it also returns vectors for texts; `ranks`: it only ranks texts, for which Ollama has no name;
        `template`: a chat template that replaces the model's own.
        """
        if ranks:
            return []
        if only_embeds(self.metadata):
            return ["embedding"]
        text = self.template if template is None else template
        found = {
            "tools": "tools" in text,
            "insert": any(f"tokenizer.ggml.{name}" in self.metadata for name in _INFILL),
            "vision": "image" in modalities,
            "audio": "audio" in modalities,
            "thinking": any(word in text for word in _THINKING),
            "embedding": embeds,
        }
        return ["completion", *(name for name, has in found.items() if has)]


def only_embeds(metadata: Mapping[str, object]) -> bool:
    """Return True for a model that was made for embeddings: it has a pooling, or no causal attention.

    `metadata`: of the file, or llama.cpp's texts of it.
    """
    for key, value in metadata.items():
        if key.endswith(".pooling_type") and value not in (0, "0"):
            return True
        if key.endswith(".attention.causal") and value in (False, "false"):
            return True
    return False


def read_card(path: Path | None) -> ModelCard:
    """Read a model's card from its first file; log a warning if the file cannot be read."""
    if path is None:
        return ModelCard()
    try:
        header = read_header(path)
        parts = [part for name in shard_names(path.name) if (part := path.with_name(name)).is_file()]
        return _card(path, header, parts)
    except (GgufError, OSError) as error:
        log.warning("cannot read a model's header: %s", error)
        return ModelCard(path=path)


def _card(path: Path, header: Header, parts: Sequence[Path]) -> ModelCard:
    metadata, architecture = header.metadata, header.architecture
    stat = path.stat()
    n_ctx = metadata.get(f"{architecture}.context_length", 0)
    file_type = metadata.get("general.file_type")
    return ModelCard(
        path=path,
        size=sum(part.stat().st_size for part in parts),
        modified=stat.st_mtime,
        digest=_digest(path, stat.st_size, stat.st_mtime_ns),
        architecture=architecture,
        n_params=sum(math.prod(tensor.shape) for part in parts for tensor in read_header(part).tensors),
        quantization=FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        n_ctx_train=n_ctx if isinstance(n_ctx, int) else 0,
        template=str(metadata.get(TEMPLATE, "")),
        metadata=metadata,
    )


def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 that is the real file name in a hub's cache; for other files, computing it takes too long."""
    real = path.resolve()
    if len(real.name) == SHA256_LENGTH and all(digit in "0123456789abcdef" for digit in real.name):
        return real.name
    return hashlib.sha256(f"{real}:{size}:{mtime_ns}".encode(errors="surrogateescape")).hexdigest()
