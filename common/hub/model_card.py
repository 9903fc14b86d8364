"""Describes a model from its files without loading it: size, architecture, quantization, capabilities.

Used for lists of models in router and worker. Reads only headers. What lists show of a header is kept in memory for
thousands of files, until the file changes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from ..base.user_files import why_unreadable
from .file_cache import FileCache, FileVersion, version_of
from .gguf_header import GgufError, Scalar, read_header, read_texts
from .gguf_names import shard_names
from .gguf_types import FILE_TYPES

log = logging.getLogger("corral.presets")

TEMPLATE = "tokenizer.chat_template"
SHA256_LENGTH = 64
_THINKING = ("enable_thinking", "reasoning_content", "<think>", "<|channel|>")
"""Every chat template of a reasoning model contains one of these."""
_INFILL = ("fim_pre_token_id", "fim_prefix_token_id", "prefix_token_id")


class ModelCard(Struct, frozen=True):
    """Facts about a model. All fields are empty if its files are not on this machine or cannot be read."""

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
    is_read: bool = True
    """False if the header was not read yet, so that only size, date and digest are known."""
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
        metadata = read_texts(path).metadata
    except GgufError as error:
        log.warning("cannot read a model's header: %s", error)
        return ModelCard(path=path)
    return replace(read_brief_card(path), template=str(metadata.get(TEMPLATE, "")), metadata=metadata)


def read_brief_card(path: Path | None, *, may_read: bool = True) -> ModelCard:
    """Return a model's card without template and metadata, for lists. A header is read only if its file has changed.

    `may_read`: if False, no header is read, and facts that are not in memory are empty.
    """
    if path is None:
        return ModelCard()
    try:
        first, *others = [version_of(part) for part in _parts(path)]
        read = _FACTS.get if may_read else _FACTS.peek
        facts, rest = read(first), [read(other) for other in others]
    except OSError as error:
        log.warning("cannot read a model's header: %s: %s", path, why_unreadable(error))
        return ModelCard(path=path)
    is_read = facts is not None and None not in rest
    if facts is None:
        facts = _FileFacts(_digest(path, first))
    if not facts.digest:
        return ModelCard(path=path)
    return ModelCard(
        path=path,
        size=sum(part.size for part in (first, *others)),
        modified=first.modified,
        digest=facts.digest,
        architecture=facts.architecture,
        n_params=facts.n_params + sum(part.n_params for part in rest if part),
        quantization=facts.quantization,
        n_ctx_train=facts.n_ctx_train,
        is_read=is_read,
    )


class _FileFacts(Struct, frozen=True):
    """What lists show of one file's header."""

    digest: str = ""
    """Empty if the header cannot be read."""
    architecture: str = ""
    n_params: int = 0
    quantization: str = ""
    n_ctx_train: int = 0


def _read_facts(path: Path) -> _FileFacts:
    """Read one file's header; log a warning if it cannot be read, once for each version of the file."""
    try:
        header, version = read_header(path), version_of(path)
    except GgufError as error:
        log.warning("cannot read a model's header: %s", error)
        return _FileFacts()
    architecture = header.architecture
    n_ctx = header.metadata.get(f"{architecture}.context_length", 0)
    file_type = header.metadata.get("general.file_type")
    return _FileFacts(
        digest=_digest(path, version),
        architecture=sys.intern(architecture),
        n_params=sum(math.prod(tensor.shape) for tensor in header.tensors),
        quantization=FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        n_ctx_train=n_ctx if isinstance(n_ctx, int) else 0,
    )


_FACTS = FileCache(_read_facts)


def _parts(path: Path) -> list[Path]:
    """Return the first file of a model, and those of its other parts that are there."""
    names = shard_names(path.name)
    return [path, *(part for name in names if name != path.name and (part := path.with_name(name)).is_file())]


def _digest(path: Path, version: FileVersion) -> str:
    """Return the SHA-256 that is the real file name in a hub's cache; for other files, computing it takes too long."""
    real = path.resolve()
    if len(real.name) == SHA256_LENGTH and all(digit in "0123456789abcdef" for digit in real.name):
        return real.name
    return hashlib.sha256(f"{real}:{version.size}:{version.mtime_ns}".encode(errors="surrogateescape")).hexdigest()
