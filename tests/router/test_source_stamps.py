"""Which changes of the paths a survey of the model sources sees, and which it ignores."""

from __future__ import annotations

from pathlib import Path

from file_edits import link, put
from llama_corral.router.source_stamps import survey
from watcher_tools import REPO, places, section


def test_unchanged_sources_and_downloads_in_progress_show_no_change(tmp_path: Path) -> None:
    put(tmp_path / "cache" / REPO / "blobs/1.incomplete")
    put(tmp_path / "models/a.gguf")
    path = put(tmp_path / "presets.ini", section("a"))
    before = survey(places(tmp_path, models_preset=str(path), models_dir=str(tmp_path / "models")))
    (tmp_path / "cache" / REPO / "blobs/1.incomplete").write_text("more")
    (tmp_path / "models/a.gguf").write_text("a model that is copied slowly")
    (tmp_path / "notes.txt").touch()
    assert not before.is_outdated


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    link(models / "again", ".")
    assert survey(places(tmp_path, models_dir=str(models))).folders == {str(models)}
