"""Every way in which a model source changes is noticed, although each change is made only once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from file_edits import link, overwrite, put
from llama_corral.router import watcher as watcher_module
from router_tools import until
from watcher_tools import COMMIT, REPO, section, shows, watched

Prepare = Callable[[Path], dict[str, str]]
"""Makes the files in a folder, and returns the options that name them."""
Edit = Callable[[Path], object]
Step = tuple[list[Edit], list[str]]
"""Edits, and the models that are there after them."""

NEXT_COMMIT = "2" * 40
REAL = "far/away/real.ini"
CURRENT = "rel/current/models.ini"


# -- sources -----------------------------------------------------------------------------------------------------------


def linked_file(root: Path) -> dict[str, str]:
    put(root / REAL, section("a"))
    link(root / "models.ini", REAL)
    return {"models_preset": str(root / "models.ini")}


def releases(root: Path) -> dict[str, str]:
    """Two links: `current` names `stage`, `stage` names a release."""
    for number, name in ((1, "a"), (2, "b")):
        put(root / f"rel/v{number}/models.ini", section(name))
    link(root / "rel/stage", "v1")
    link(root / "rel/current", "stage")
    return {"models_preset": str(root / CURRENT)}


def linked_models(root: Path) -> dict[str, str]:
    put(root / "disk1/a.gguf")
    put(root / "disk2/b.gguf")
    link(root / "models", "disk1")
    return {"models_dir": str(root / "models")}


def models(root: Path) -> dict[str, str]:
    put(root / "models/a.gguf")
    put(root / "elsewhere/one/x.gguf")
    return {"models_dir": str(root / "models")}


def only_the_cache(_: Path) -> dict[str, str]:
    return {}


# -- edits -------------------------------------------------------------------------------------------------------------


def rewrite(path: str, text: str) -> Edit:
    """Write into the file itself."""
    return lambda root: (root / path).write_text(text)


def rewrite_unseen(path: str, text: str) -> Edit:
    return lambda root: overwrite(root / path, text.encode())


def replace(path: str, text: str = "") -> Edit:
    """Put another file, or the first one, in this place."""
    return lambda root: put(root / path, text)


def create(path: str) -> Edit:
    return lambda root: (root / path).touch()


def folder(path: str) -> Edit:
    return lambda root: (root / path).mkdir(parents=True)


def switch(path: str, target: str) -> Edit:
    return lambda root: link(root / path, target)


def move(path: str, new: str) -> Edit:
    return lambda root: (root / path).rename(root / new)


def remove(path: str) -> Edit:
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


CHANGES: dict[str, tuple[Prepare, list[Step]]] = {
    "the target of a link is edited": (linked_file, [([rewrite(REAL, section("b"))], ["b"])]),
    "the target of a link is replaced": (
        linked_file,
        [([replace(REAL, section("b"))], ["b"]), ([replace(REAL, section("c"))], ["c"])],
    ),
    "an edit keeps size and time": (linked_file, [([rewrite_unseen(REAL, section("b"))], ["b"])]),
    "the folder of a target is replaced": (
        linked_file,
        [([move("far", "old"), replace(REAL, section("b"))], ["b"]), ([rewrite(REAL, section("c"))], ["c"])],
    ),
    "a link to a folder is switched": (
        releases,
        [([switch("rel/current", "v2")], ["b"]), ([rewrite(CURRENT, section("c"))], ["c"])],
    ),
    "the second link of a chain is switched": (
        releases,
        [
            ([switch("rel/stage", "v2")], ["b"]),
            ([replace(CURRENT, section("c"))], ["c"]),
            ([switch("rel/stage", "v1")], ["a"]),
        ],
    ),
    "the folder of the file is away for a moment": (
        releases,
        [([move("rel", "away"), replace(CURRENT, section("b"))], ["b"]), ([rewrite(CURRENT, section("c"))], ["c"])],
    ),
    "a linked models directory is switched": (
        linked_models,
        [([switch("models", "disk2")], ["b"]), ([replace("disk2/c.gguf")], ["b", "c"])],
    ),
    "a folder of the models directory is filled later": (
        models,
        [
            ([folder("models/new"), create("models/d.gguf")], ["a", "d"]),
            ([create("models/new/x.gguf")], ["a", "d", "new"]),
        ],
    ),
    "the models directory is removed and made again": (
        models,
        [([remove("models"), replace("models/b.gguf")], ["b"]), ([replace("models/c.gguf")], ["b", "c"])],
    ),
    "a linked folder of the models directory is emptied": (
        models,
        [([switch("models/other", "../elsewhere/one")], ["a", "other"]), ([remove("elsewhere/one/x.gguf")], ["a"])],
    ),
    "the target of a linked model comes and goes": (
        models,
        [
            ([switch("models/b.gguf", "../elsewhere/late.gguf"), replace("models/c.gguf")], ["a", "c"]),
            ([replace("elsewhere/late.gguf")], ["a", "b", "c"]),
            ([remove("elsewhere/late.gguf")], ["a", "c"]),
        ],
    ),
    "another program fills the cache": (  # in the order in which `huggingface_hub` writes
        only_the_cache,
        [
            (
                [
                    replace(f"cache/{REPO}/blobs/1"),
                    replace(f"cache/{REPO}/refs/main", COMMIT),
                    folder(f"cache/{REPO}/snapshots/{COMMIT}"),
                    switch(f"cache/{REPO}/snapshots/{COMMIT}/x-Q8_0.gguf", "../../blobs/1"),
                ],
                ["me/repo:Q8_0"],
            ),
            ([replace(f"cache/{REPO}/snapshots/{COMMIT}/deep/x-Q4_0.gguf")], ["me/repo:Q8_0", "me/repo:Q4_0"]),
            (
                [
                    replace(f"cache/{REPO}/snapshots/{NEXT_COMMIT}/x-F16.gguf"),
                    rewrite(f"cache/{REPO}/refs/main", NEXT_COMMIT),
                ],
                ["me/repo:F16"],
            ),
            ([remove(f"cache/{REPO}")], []),
        ],
    ),
}


async def carry_out(name: str, root: Path) -> None:
    prepare, steps = CHANGES[name]
    async with watched(root, **prepare(root)) as lifecycle:
        for edits, names in steps:
            for edit in edits:
                edit(root)
            await shows(lifecycle, *names)


@pytest.mark.usefixtures("quick_watcher")
@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_noticed(name: str, tmp_path: Path) -> None:
    await carry_out(name, tmp_path)


async def test_where_folders_cannot_be_watched_changes_are_noticed_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*folders: str, **_: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(watcher_module, "awatch", refuse)
    await carry_out("the second link of a chain is switched", tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning for warning in warnings if "OS file watch limit reached" in warning] == [
        "changes of the model sources cannot be watched, so their metadata is compared every 1 s: "
        "OS file watch limit reached"
    ]


@pytest.mark.usefixtures("quick_watcher")
async def test_a_cache_that_does_not_exist_yet_is_noticed(tmp_path: Path) -> None:
    async with watched(tmp_path, cache="not/yet/there") as lifecycle:
        repo = tmp_path / "not/yet/there" / REPO
        put(repo / f"snapshots/{COMMIT}/x-Q8_0.gguf")
        put(repo / "refs/main", COMMIT)
        await shows(lifecycle, "me/repo:Q8_0")


@pytest.mark.usefixtures("quick_watcher")
@pytest.mark.parametrize("key", ["model", "mmproj", "model-draft"])
async def test_a_model_file_that_appears_or_goes_away_is_noticed_wherever_it_is(tmp_path: Path, key: str) -> None:
    file = tmp_path / "disk/deep/x.gguf"
    presets = put(tmp_path / "presets.ini", f"[x]\nmodel = /dev/null\n{key} = {file}\n")
    async with watched(tmp_path, models_preset=str(presets)) as lifecycle:

        def is_usable() -> bool:
            view = lifecycle.view("x")
            return view is not None and view.is_usable

        assert not is_usable()
        put(file)
        await until(is_usable)
        shutil.rmtree(tmp_path / "disk")
        await until(lambda: not is_usable())
