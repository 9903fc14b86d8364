"""Model files that a section names: a missing one is found, said once, and no fault of the section."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_corral.presets.merge import read_argv, resolve
from llama_corral.presets.sources import PresetReader

Reader = Callable[..., PresetReader]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """Return `reader(ini, *argv)`."""

    def new(ini: str, *argv: str) -> PresetReader:
        (tmp_path / "presets.ini").write_text(ini)
        layer = read_argv(["--models-preset", str(tmp_path / "presets.ini"), *argv])
        return PresetReader(resolve(layer), layer, {"LLAMA_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)})

    return new


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings since the last call."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_a_missing_file_is_named_with_file_and_line(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = tmp_path / "here.gguf"
    here.touch()
    ini = (
        f"[late]\nc = 1\nmodel = {tmp_path}/late.gguf\n"
        f"[sees]\nmodel = {here}\nmmproj = {tmp_path}/p.gguf\n"
        f"[drafts]\nmodel = {here}\nmodel-draft = {tmp_path}/d.gguf\n"
        f"[fine]\nmodel = {here}\n[variant]\nbase = late\n"
    )
    read = reader(ini)
    presets = read()
    assert {name: preset.missing_file for name, preset in presets.items()} == {
        "late": f"{tmp_path}/presets.ini:3: model: no such file: {tmp_path}/late.gguf",
        "variant": f"{tmp_path}/presets.ini:3: model: no such file: {tmp_path}/late.gguf",
        "sees": f"{tmp_path}/presets.ini:6: mmproj: no such file: {tmp_path}/p.gguf",
        "drafts": f"{tmp_path}/presets.ini:9: model-draft: no such file: {tmp_path}/d.gguf",
        "fine": "",
    }
    assert not any(preset.unavailable for preset in presets.values())
    assert sorted(line.partition(": ")[0] for line in warnings(caplog)) == [
        f"model {name} cannot be loaded" for name in ("drafts", "late", "sees")
    ]
    assert read.files() == {
        str(here): True,
        **{f"{tmp_path}/{name}.gguf": False for name in ("late", "p", "d")},
    }
    (tmp_path / "late.gguf").touch()
    assert not read()["late"].missing
    assert read.files()[f"{tmp_path}/late.gguf"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("lora = /dev/null,/none/a,/none/b", ["/none/a", "/none/b"]),
        ("lora-scaled = /none/a:0.5", ["/none/a"]),
        ("control-vector = /none/v", ["/none/v"]),
        ("control-vector-scaled = /dev/null:1,/none/v:2", ["/none/v"]),
        ("chat-template-file = /none/t", ["/none/t"]),
    ],
)
def test_files_that_belong_to_the_model(reader: Reader, given: str, missing: list[str]) -> None:
    (preset,) = reader(f"[x]\nmodel = /dev/null\n{given}\n")().values()
    assert [file.text for file in preset.missing] == missing


@pytest.mark.parametrize(
    "section",
    [
        "model = /none/x.gguf\nmodel-url = http://h/x.gguf",  # the place to which it is downloaded
        "model = /none/x.gguf\ncmd = docker run ${MODEL} ${PORT}",  # a path in the container
        "hf-repo = user/repo\nmmproj = /none/p.gguf\nno-mmproj = on",
        "hf-repo = user/repo\nhf-repo-draft = user/draft\nmodel-draft = d.gguf",  # a file of the repository
        "model = /dev/null",
    ],
)
def test_what_needs_no_file_of_this_machine(reader: Reader, section: str) -> None:
    (preset,) = reader(f"[x]\n{section}\n", "--presets-strict")().values()
    assert not preset.missing


def test_a_warning_is_logged_once_until_its_text_changes(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "other.gguf").touch()
    file = tmp_path / "presets.ini"
    ini = (
        "[typo]\nmodle = 1\n[late]\nmodel = /none\nalias = other\n[late]\nmodel = /none\nalias = other\n"
        "[group:g]\nswap = on\n[program]\ncmd = x ${PORT}\nc = 1\n[keys]\nmodel = /dev/null\napi-key = k\n"
    )
    read = reader(ini, "--models-dir", str(tmp_path / "models"))
    read()
    first = warnings(caplog)
    assert len(first) == len(set(first)) == 7
    read()
    assert warnings(caplog) == []
    file.write_text(ini.replace("modle", "madel"))
    read()
    assert [line.partition("unknown key ")[2][:7] for line in warnings(caplog)] == ["'madel'"]
    file.write_text(ini.replace("modle = 1", "model = /dev/null"))
    read()
    file.write_text(ini)
    read()
    assert warnings(caplog) == [line for line in first if "modle" in line], "it was correct in between"
