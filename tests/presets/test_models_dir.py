"""Models directories as people have them: LM Studio's, a Hugging Face cache, links, and folders that cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_edits import gguf_files
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets import models_dir
from llama_corral.presets.models_dir import scan
from llama_corral.presets.models_dir_rules import MAX_DEPTH
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import load_presets
from local_hub import cache_repo


def names(directory: Path) -> list[str]:
    return [model.name for model in scan(directory)]


def load(directory: Path, cache: Path, ini: str = "") -> dict[str, Preset]:
    settings = Settings.of(models_dir=str(directory))
    if ini:
        (cache.parent / "models.ini").write_text(ini)
        settings = Settings.of(models_dir=str(directory), models_preset=str(cache.parent / "models.ini"))
    return load_presets(settings, {}, {"LLAMA_CACHE": str(cache)})


def path_of(preset: Preset) -> str:
    return preset.layer["model"].text


def test_what_people_have(tmp_path: Path) -> None:
    gguf_files(tmp_path, "plain.gguf", "UPPER.GGUF", "._plain.gguf", "gemma/gemma-Q4_K_M.gguf", "gemma/gemma-Q8_0.gguf")
    gguf_files(
        tmp_path, "Qwen3-8B/Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B/Qwen3-8B-DFlash-BF16.gguf", "pub/phi-GGUF/phi-Q4_0.gguf"
    )
    found = {model.name: model.model.relative_to(tmp_path).as_posix() for model in scan(tmp_path)}
    assert found == {
        "plain": "plain.gguf",
        "UPPER": "UPPER.GGUF",
        "gemma:Q4_K_M": "gemma/gemma-Q4_K_M.gguf",
        "gemma:Q8_0": "gemma/gemma-Q8_0.gguf",
        "Qwen3-8B": "Qwen3-8B/Qwen3-8B-Q4_K_M.gguf",
        "pub/phi-GGUF": "pub/phi-GGUF/phi-Q4_0.gguf",
    }


def test_a_hugging_face_cache_has_the_names_of_the_cache(tmp_path: Path) -> None:
    other = tmp_path / "other"
    cache_repo(other, "user/one", "one-Q8_0.gguf", "one-Q4_0.gguf", "mmproj-F16.gguf", "no-tag/model.gguf")
    gguf_files(other, "models--looks--alike/x.gguf", "datasets--user--texts/notes.txt", "version.txt")
    assert names(other) == ["models--looks--alike", "user/one:Q4_0", "user/one:Q8_0"]
    assert names(gguf_files(tmp_path, "hub.gguf"))[1:] == [
        "other/models--looks--alike",
        "user/one:Q4_0",
        "user/one:Q8_0",
    ]
    model = scan(other)[-1]
    assert (model.model.name, model.mmproj and model.mmproj.name) == ("one-Q8_0.gguf", "mmproj-F16.gguf")


def test_a_cache_that_is_the_models_directory_too_lists_its_models_once(tmp_path: Path) -> None:
    cache_repo(tmp_path / "cache", "user/one", "one-Q8_0.gguf")
    (preset,) = load(tmp_path / "cache", tmp_path / "cache").values()
    assert (preset.name, preset.source) == ("user/one:Q8_0", "cache")
    (preset,) = load(tmp_path / "cache", tmp_path / "empty").values()
    assert (preset.name, preset.source) == ("user/one:Q8_0", "models_dir")
    assert path_of(preset).endswith("one-Q8_0.gguf")


def test_links(tmp_path: Path) -> None:
    gguf_files(tmp_path / "elsewhere", "big/x.gguf", "single.gguf")
    models = gguf_files(tmp_path / "models", "own/a.gguf")
    (models / "linked").symlink_to(tmp_path / "elsewhere" / "big")
    (models / "link.gguf").symlink_to(tmp_path / "elsewhere" / "single.gguf")
    (models / "broken.gguf").symlink_to(tmp_path / "nowhere")
    (models / "itself.gguf").symlink_to("itself.gguf")
    (models / "own" / "up").symlink_to(models)
    (models / "own" / "here").symlink_to(".")
    assert names(models) == ["link", "linked", "own"]


def test_a_folder_with_the_ending_of_a_file(tmp_path: Path) -> None:
    assert names(gguf_files(tmp_path, "x.gguf/model.gguf", "x.gguf/y/model.gguf")) == ["x.gguf", "x.gguf/y"]


def test_very_many_folders_are_not_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models_dir, "MAX_FOLDERS", 3)
    gguf_files(tmp_path, *(f"{folder}/x.gguf" for folder in "abcd"), "single.gguf")
    assert names(tmp_path) == ["a", "b", "single"]
    assert "only the first 3 folders are read" in caplog.text


def test_the_depth_is_limited(tmp_path: Path) -> None:
    folders = [str(number) for number in range(MAX_DEPTH + 1)]
    gguf_files(tmp_path, "/".join(folders[:-1]) + "/x.gguf", "/".join(folders) + "/y.gguf")
    assert names(tmp_path) == ["/".join(folders[:-1])]


def test_a_folder_that_cannot_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system's call is replaced, because root may read every folder."""
    gguf_files(tmp_path, "closed/x.gguf", "open/x.gguf")
    scandir = os.scandir

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if path.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(tmp_path) == ["open"]
    assert "closed: Permission denied" in caplog.text
    with pytest.raises(ConfigError, match="Permission denied"):
        scan(tmp_path / "closed")


# The name of a folder with several quantizations


def test_the_name_of_a_folder_is_an_alias(tmp_path: Path) -> None:
    models = gguf_files(tmp_path / "models", "gemma/gemma-Q4_K_M.gguf", "gemma/gemma-Q8_0.gguf")
    presets = load(models, tmp_path / "cache")
    assert {name: preset.aliases for name, preset in presets.items()} == {"gemma:Q4_K_M": (), "gemma:Q8_0": ("gemma",)}
    presets = load(models, tmp_path / "cache", "[gemma:Q8_0]\nalias = best\nc = 512\n")
    assert presets["gemma:Q8_0"].aliases == ("best", "gemma")


def test_a_section_named_after_the_folder_is_a_model_with_this_name(tmp_path: Path) -> None:
    models = gguf_files(tmp_path / "models", "gemma/gemma-Q4_K_M.gguf", "gemma/gemma-Q8_0.gguf")
    presets = load(models, tmp_path / "cache", "[gemma]\nc = 512\n")
    assert list(presets) == ["gemma", "gemma:Q4_K_M", "gemma:Q8_0"]
    assert path_of(presets["gemma"]) == str(models / "gemma/gemma-Q8_0.gguf")
    assert presets["gemma:Q8_0"].aliases == ()


@pytest.mark.parametrize("section", ["[other]\nmodel = x.gguf\nalias = gemma\n", "[gemma]\nmodel = x.gguf\n"])
def test_names_that_somebody_wrote_win_over_the_name_of_a_folder(tmp_path: Path, section: str) -> None:
    models = gguf_files(tmp_path / "models", "gemma/gemma-Q4_K_M.gguf", "gemma/gemma-Q8_0.gguf")
    presets = load(models, tmp_path / "cache", section)
    assert presets["gemma:Q8_0"].aliases == ()
    (owner,) = [one for one in presets.values() if "gemma" in (one.name, *one.aliases)]
    assert path_of(owner) == "x.gguf"


def test_the_name_of_a_folder_can_be_a_base(tmp_path: Path) -> None:
    models = gguf_files(tmp_path / "models", "gemma/gemma-Q4_K_M.gguf", "gemma/gemma-Q8_0.gguf")
    presets = load(models, tmp_path / "cache", "[pirate]\nbase = gemma\ntemp = 1\n")
    assert (presets["pirate"].base, path_of(presets["pirate"])) == ("gemma:Q8_0", str(models / "gemma/gemma-Q8_0.gguf"))
