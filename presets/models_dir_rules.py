"""What a models directory contains: one decision from the names of its files. Pure, opens nothing.

`models_dir` lists the files. The rules, in the order in which they apply:

1. A GGUF file has the ending `.gguf` in upper or lower case. Hidden files and folders do not count, nor does anything
   more than MAX_DEPTH folders down.
2. A file in the directory itself is a model with the file's name. Only the first file of a split model counts.
3. A folder is one place, named by its path (`publisher/repository`). A folder named after a quantization belongs to the
   folder that it is in.
4. Projectors, importance matrices and files with the prefix of a draft are no models. In a folder neither is a file
   that is named like the folder or another model of it and has the word of a draft as well (`…-MTP-…`).
5. The folder's model is the file that is named like the folder; else a file directly in the folder; else a split model;
   else the last one. It has the folder's name, and the folder's last projector.
6. If that model is there in several quantizations, each is `FOLDER:QUANTIZATION`, and the folder's name is an alias of
   the one that rule 5 chooses.
7. Other models in the folder are `FOLDER:FILE`.
8. If two models would have one name, the one in a folder keeps it, and the other one is named by its whole path.

For files in the directory, and for a folder with one model or one model with companions, the names are llama-server's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llama_corral.common.hub.gguf_names import SUFFIX, canonical_tag, is_gguf, shard
from msgspec import Struct
from msgspec.structs import replace

MAX_DEPTH = 4
"""Folders below the models directory. LM Studio has two levels, and a folder for each quantization makes three."""
DRAFT_PREFIXES = ("mtp-", "dspark-", "dflash-")
"""`eagle3-` is not included: llama-server lists such a file as a model here."""

_QUANTIZATION = r"(?:UD[-_])?(?:I?Q\d|TQ\d|BF16|FP?16|FP?32|FP8|MXFP4|NVFP4)(?:_[A-Z0-9]+)*"
_IS_QUANTIZATION = re.compile(_QUANTIZATION, re.IGNORECASE)
_AT_THE_END = re.compile(f"(?:^|[-.])({_QUANTIZATION})$", re.IGNORECASE)
_DRAFT_WORD = re.compile(r"(?<![a-z0-9])(?:mtp|dflash|dspark|eagle-?3|draft)(?![a-z0-9])")
_OF_A_REPOSITORY = re.compile(r"[-_.]gguf$", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\W_]+")


class FoundModel(Struct, frozen=True):
    name: str
    model: str
    """Path in the directory, with `/`; of a split model the first file."""
    mmproj: str = ""
    alias: str = ""
    """Another name, unless something else has it."""


class _File:
    """A GGUF file. `folder_tag`: the name of the folder that it is in, if that is a quantization; else empty."""

    def __init__(self, path: str, name: str, folder_tag: str) -> None:
        part = shard(name)
        tag = _AT_THE_END.search(part.prefix)
        self.path = path
        self.name = name
        self.folder_tag = folder_tag
        self.stem = part.prefix
        """The name without ending, and without the number of a split model's file."""
        self.is_first, self.is_split = part.index == 1, part.count > 1
        self.tag = (tag[1] if tag else folder_tag).upper()
        """The quantization as it is written; empty if there is none."""
        self.base = _comparable(_AT_THE_END.sub("", part.prefix))
        """The name without quantization, for comparisons."""


def decide(paths: Iterable[str]) -> list[FoundModel]:
    """Return the models, sorted by name. `paths`: of all files, relative to the directory, with `/`."""
    folders: dict[str, list[_File]] = {}
    for path in sorted(paths):
        *parents, name = path.split("/")
        if not is_gguf(name) or len(parents) > MAX_DEPTH or any(part.startswith(".") for part in (*parents, name)):
            continue
        tag = parents.pop() if len(parents) > 1 and _IS_QUANTIZATION.fullmatch(parents[-1]) else ""
        folders.setdefault("/".join(parents), []).append(_File(path, name, tag))
    found = [model for folder, files in folders.items() if folder for model in _folder(folder, files)]
    found += [FoundModel(file.name[: -len(SUFFIX)], file.path) for file in _models(folders.get("", ()))]
    return _with_unique_names(found)


def _folder(folder: str, files: Sequence[_File]) -> list[FoundModel]:
    own_name = _OF_A_REPOSITORY.sub("", folder.rpartition("/")[2])
    wanted = _comparable(_AT_THE_END.sub("", own_name) or own_name)
    models, main = _without_drafts(_models(files), wanted)
    if main is None:
        return []
    same = [file for file in models if file.base == main.base]
    labels = _labels(same)
    mmproj = max((file.path for file in files if _is_projector(file.name)), default="")
    found = [
        FoundModel(
            f"{folder}:{label}" if label else folder,
            file.path,
            mmproj,
            alias=folder if file is main and all(labels) else "",
        )
        for file, label in zip(same, labels, strict=True)
    ]
    return found + [FoundModel(f"{folder}:{file.stem}", file.path) for file in models if file.base != main.base]


def _models(files: Iterable[_File]) -> list[_File]:
    """Return the files that are models by their own names; of a split model only the first file."""
    return [file for file in files if file.is_first and not _is_companion(file)]


def _is_companion(file: _File) -> bool:
    stem = file.stem.lower()
    is_matrix = stem.startswith("imatrix") or stem.endswith("imatrix")
    return is_matrix or _is_projector(file.name) or file.name.startswith(DRAFT_PREFIXES)


def _is_projector(name: str) -> bool:
    return "mmproj" in name.lower()


def _without_drafts(models: Sequence[_File], folder: str) -> tuple[list[_File], _File | None]:
    """Return the models of a folder, and the main one of them. `folder`: its name, for comparisons."""
    expected = set(_draft_words(folder))
    plain = [file for file in models if expected.issuperset(_draft_words(file.base))]
    if not plain:
        return list(models), _main(models, folder)
    targets = {folder, *(file.base for file in plain)}
    kept = [file for file in models if expected.issuperset(_draft_words(file.base)) or not _is_draft(file, targets)]
    return kept, _main(plain, folder)


def _draft_words(name: str) -> list[str]:
    return [word.replace("-", "") for word in _DRAFT_WORD.findall(name)]


def _is_draft(file: _File, targets: Iterable[str]) -> bool:
    """Return True if a file with the word of a draft is named like one of the targets."""
    word = _DRAFT_WORD.search(file.base)
    assert word is not None
    model = file.base[: word.start()].strip("-") or file.base[word.end() :].strip("-")
    return not model or any(_is_alike(model, target) for target in targets)


def _main(models: Sequence[_File], folder: str) -> _File | None:
    """Return the model that a folder's name means: by name, by place, and else as llama-server chooses."""

    def rank(numbered: tuple[int, _File]) -> tuple[bool, bool, bool, bool, int]:
        number, file = numbered
        return file.base == folder, _is_alike(file.base, folder), not file.folder_tag, file.is_split, number

    return max(enumerate(models), key=rank)[1] if models else None


def _is_alike(one: str, other: str) -> bool:
    """Return True if one of the names begins with all words of the other one."""
    return bool(one and other) and (f"{one}-".startswith(f"{other}-") or f"{other}-".startswith(f"{one}-"))


def _labels(same: Sequence[_File]) -> list[str]:
    """Return what distinguishes the quantizations of one model; "" for the one that needs nothing."""
    if len(same) == 1:
        return [""]
    canonical = Counter(canonical_tag(file.tag) for file in same)
    written = Counter(file.tag for file in same)
    return [
        canonical_tag(file.tag)
        if canonical[canonical_tag(file.tag)] == 1
        else file.tag
        if file.tag and written[file.tag] == 1
        else file.stem
        for file in same
    ]


def _with_unique_names(models: Sequence[FoundModel]) -> list[FoundModel]:
    """Keep the first model of a name, and name the others by their paths, which are unique."""
    found: dict[str, FoundModel] = {}
    for model in models:
        name = next(name for name in (model.name, model.model, f"./{model.model}") if name not in found)
        found[name] = replace(model, name=name)
    aliases = Counter(model.alias for model in models)
    for name, model in found.items():
        if model.alias and (model.alias in found or aliases[model.alias] > 1):
            found[name] = replace(model, alias="")
    return [found[name] for name in sorted(found)]


def _comparable(name: str) -> str:
    return _SEPARATORS.sub("-", name.lower()).strip("-")
