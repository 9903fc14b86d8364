"""Parses GGUF file names (quantization tag, shard, role) and chooses the files of a repository that a user means.

Pure functions on POSIX paths, the same for a cached repository, a repository on a hub and a models directory. Used to
choose files, to name models and for canonical section names of presets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

SUFFIX = ".gguf"
DraftKind = Literal["mtp", "dspark", "dflash", "eagle3"]
DRAFT_KINDS: tuple[DraftKind, ...] = ("mtp", "dspark", "dflash", "eagle3")
"""Best first: the order of preference for drafts found in a model's repository."""
NOT_A_MODEL = ("mmproj", "imatrix", *(f"{kind}-" for kind in DRAFT_KINDS))
DEFAULT_TAGS = ("Q4_K_M", "Q8_0")
"""Tried in this order if no quantization is requested."""

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.DOTALL)
_TAG = re.compile(r"[-.]([A-Za-z0-9_]+)\Z")


class Shard(Struct, frozen=True):
    prefix: str
    """The path up to the shard number, or the whole path without `.gguf`."""
    tag: str
    """The quantization tag in upper case; empty if the name has none."""
    index: int = 1
    count: int = 1


class RepoModelFiles(Struct, frozen=True):
    """The files of one model in a repository; all paths are relative to the repository."""

    model: tuple[str, ...] = ()
    """All shards in order; the first is the one to load."""
    mmproj: str | None = None
    draft: str | None = None
    draft_kind: DraftKind | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.model, *(path for path in (self.mmproj, self.draft) if path))


def is_gguf(path: str) -> bool:
    return path[-len(SUFFIX) :].lower() == SUFFIX


def shard(path: str) -> Shard:
    """Parse a path that ends in `.gguf`, in upper or lower case."""
    stem = path[: -len(SUFFIX)] if is_gguf(path) else path
    split = _SHARD.fullmatch(stem)
    prefix = split[1] if split else stem
    tag = _TAG.search(prefix)
    index, count = (int(split[2]), int(split[3])) if split else (1, 1)
    return Shard(prefix, tag[1].upper() if tag else "", index, count)


def shard_names(path: str) -> tuple[str, ...]:
    """Return the paths of all shards of the model that `path` belongs to, including `path`."""
    part = shard(path)
    if part.count <= 1:
        return (path,)
    ending = path[-len(SUFFIX) :] if is_gguf(path) else SUFFIX
    return tuple(f"{part.prefix}-{index:05}-of-{part.count:05}{ending}" for index in range(1, part.count + 1))


def shards_of(first: Path) -> list[Path]:
    """Return the files of the model whose first file is `first`."""
    return [first.with_name(name) for name in shard_names(first.name)]


def canonical_tag(tag: str) -> str:
    """Return the form in which a cached model is listed: `q8_0` → `Q8_0`, `UD-Q4_K_XL` → `Q4_K_XL`."""
    tail = _TAG.search(tag)
    return (tail[1] if tail else tag).upper()


def canonical_name(name: str) -> str:
    """Return the model's name with its quantization tag, if any, in canonical form."""
    head, colon, tag = name.rpartition(":")
    return head + colon + canonical_tag(tag) if colon else name


def split_repo(text: str) -> tuple[str, str]:
    """Split `user/repo[:tag]` into `user/repo` and the tag (or "")."""
    repo, _, rest = text.partition(":")
    return repo, rest.rpartition(":")[2]


def listed_tag(path: str) -> str | None:
    """Return the tag under which a file of a cached repository is listed as a model; None: it is not listed."""
    if not is_gguf(path):
        return None
    part = shard(path)
    if part.index != 1 or not part.tag or any(word in part.prefix for word in NOT_A_MODEL if word != "imatrix"):
        return None
    return part.tag


def choose_files(
    paths: Iterable[str], tag: str, *, file: str = "", want_mmproj: bool = True, drafts: Sequence[DraftKind] = ()
) -> RepoModelFiles:
    """Choose a model's files. `model` is empty if nothing matches; the first match in the order of `paths` wins."""
    paths = [path for path in paths if is_gguf(path) or path == file]
    primary = (file if file in paths else None) if file else _best_model(paths, tag)
    model = _shards_of(paths, primary) if primary else ()
    mmproj = _best_sibling(paths, primary, "mmproj") if primary and want_mmproj else None
    for kind in (kind for kind in DRAFT_KINDS if kind in drafts):
        draft = _best_sibling(paths, primary or "", f"{kind}-", tag)
        if draft:
            return RepoModelFiles(model, mmproj, draft, kind)
    return RepoModelFiles(model, mmproj)


def _best_model(paths: Sequence[str], tag: str) -> str | None:
    models = [path for path in paths if _is_model(path)]
    for wanted in [tag] if tag else DEFAULT_TAGS:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        found = next((path for path in models if pattern.search(path)), None)
        if found:
            return found
    return models[0] if models and not tag else None


def _is_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    return shard(path).index == 1 and not any(word in name for word in NOT_A_MODEL)


def _shards_of(paths: Sequence[str], primary: str) -> tuple[str, ...]:
    part = shard(primary)
    if part.count <= 1:
        return (primary,)
    same = [path for path in paths if (other := shard(path)).count == part.count and other.prefix == part.prefix]
    return tuple(sorted(same))


def _best_sibling(paths: Iterable[str], model: str, keyword: str, tag: str = "") -> str | None:
    """Return the best file with `keyword` in the model's directory or above it.

    Deeper paths are preferred, then the exact tag, then the nearest number of bits.
    """
    directory = model.split("/")[:-1]
    bits = _bits(tag.upper() or shard(model).tag)
    best: tuple[tuple[int, bool, int], str] | None = None
    for path in paths:
        parents = path.split("/")[:-1]
        if keyword not in path or not is_gguf(path) or parents != directory[: len(parents)]:
            continue
        exact = bool(tag) and f"-{tag}.".upper() in path.upper()
        rank = (len(parents), exact, -abs(_bits(shard(path).tag) - bits))
        if best is None or rank > best[0]:
            best = rank, path
    return best[1] if best else None


def _bits(tag: str) -> int:
    """Return the bits in a tag: `Q4_K_M` → 4, `BF16` → 16, no number → 0."""
    number = re.search(r"\d+", tag)
    return int(number[0]) if number else 0
