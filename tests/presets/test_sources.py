"""The sources of a router's models (directory, cache, presets file): how they are merged, and errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import pytest
from file_edits import gguf_files, overwrite, touch
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.gguf_header import MAX_HEADERS
from llama_corral.presets import sources
from llama_corral.presets.merge import read_argv, resolve
from llama_corral.presets.options.table import OPTIONS
from llama_corral.presets.preset import Preset
from llama_corral.presets.render import to_argv
from llama_corral.presets.sources import load_presets, projector_modalities
from local_hub import cache_repo

Load = Callable[..., dict[str, Preset]]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"LLAMA_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def load(tmp_path: Path, environ: Mapping[str, str]) -> Load:
    """Return `load(ini, *argv)`, which loads the presets of a router with this file and these arguments."""

    def run(ini: str = "", *argv: str) -> dict[str, Preset]:
        if ini:
            (tmp_path / "presets.ini").write_text(ini)
            argv = ("--models-preset", str(tmp_path / "presets.ini"), *argv)
        layer = read_argv(argv)
        return load_presets(resolve(layer), layer, environ)

    return run


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return gguf_files(
        tmp_path / "models",
        "single.gguf",
        "mmproj-x.gguf",
        "mtp-single.gguf",
        "eagle3-odd.gguf",
        "notes.txt",
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
        "vision/model-Q8_0.gguf",
        "vision/mmproj-F16.gguf",
        "vision/mtp-model.gguf",
        "sharded/a-00001-of-00002.gguf",
        "sharded/a-00002-of-00002.gguf",
        "sharded/readme.gguf",
        "empty/notes.txt",
        "only-projector/mmproj.gguf",
        "deep/deeper/model.gguf",
    )


def texts(preset: Preset) -> dict[str, str]:
    return {name: given.text for name, given in preset.layer.items()}


def test_models_directory(load: Load, models_dir: Path) -> None:
    presets = load("", "--models-dir", str(models_dir))
    folders = ["deep/deeper", "sharded", "sharded:readme", "vision"]
    assert list(presets) == sorted(["big-00001-of-00002", "eagle3-odd", "single", *folders])
    assert {preset.source for preset in presets.values()} == {"models_dir"}
    assert texts(presets["single"]) == {"model": str(models_dir / "single.gguf")}
    assert texts(presets["sharded"])["model"] == str(models_dir / "sharded/a-00001-of-00002.gguf")
    assert texts(presets["vision"])["model"] == str(models_dir / "vision/model-Q8_0.gguf")


@pytest.mark.parametrize(("name", "file"), [("mmproj", "mmproj-F16.gguf"), ("model_draft", "mtp-model.gguf")])
def test_a_directory_gives_its_projector_but_not_its_draft(load: Load, models_dir: Path, name: str, file: str) -> None:
    given = texts(load("", "--models-dir", str(models_dir))["vision"]).get(name)
    assert given == (None if OPTIONS[name].unsupported or name == "model_draft" else str(models_dir / "vision" / file))


def test_a_directory_wins_over_a_file_of_its_name(load: Load, tmp_path: Path) -> None:
    folder = gguf_files(tmp_path / "models", "twice.gguf", "twice/inner.gguf")
    assert texts(load("", "--models-dir", str(folder))["twice"])["model"] == str(folder / "twice/inner.gguf")


def test_a_models_directory_must_exist(load: Load, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", gguf_files(tmp_path, "file.gguf") / "file.gguf"):
        with pytest.raises(ConfigError, match="no such directory"):
            load("", "--models-dir", str(path))


def test_cache_directory_and_file_are_merged(load: Load, tmp_path: Path) -> None:
    cache_repo(tmp_path / "cache", "user/one", "one-Q8_0.gguf", "one-Q4_0.gguf")
    presets = load("[*]\nc = 99\n[user/one:q8_0]\ntemp = 0.5\nalias = eins, uno\ntags = small,test\n")
    assert {name: preset.source for name, preset in presets.items()} == {
        "user/one:Q4_0": "cache",
        "user/one:Q8_0": "preset",
    }
    assert texts(presets["user/one:Q4_0"]) == {"ctx_size": "99", "hf_repo": "user/one:Q4_0"}
    merged = presets["user/one:Q8_0"]
    assert {"ctx_size": "99", "hf_repo": "user/one:Q8_0", "temperature": "0.5"}.items() <= texts(merged).items()
    assert (merged.aliases, merged.tags) == (("eins", "uno"), ("small", "test"))


def test_precedence(load: Load, models_dir: Path) -> None:
    ini = "[*]\nc = 1024\nb = 64\nub = 32\n[single]\nc = 2048\nb = 128\n"
    presets = load(ini, "--models-dir", str(models_dir), "-c", "4096")
    given = presets["single"].layer
    assert [(given[name].text, given[name].where.rpartition("/")[2]) for name in ("ctx_size", "batch_size")] == [
        ("4096", "-c"),
        ("128", "presets.ini:7: b"),
    ]
    assert texts(presets["single"])["ubatch_size"] == "32"
    assert texts(presets["vision"])["batch_size"] == "64"


def test_the_command_line_sets_options_of_all_models(load: Load, models_dir: Path) -> None:
    argv = [
        "--models-dir",
        str(models_dir),
        "--models-max",
        "2",
        "--no-models-autoload",
        "--api-key",
        "k",
        "--temp",
        "0",
    ]
    preset = load("", *argv, "--log-file", "router.log", "--alias", "router", "--metrics")["single"]
    assert set(preset.layer) == {
        "model",
        "temperature",
        "endpoint_metrics" if "endpoint_metrics" in OPTIONS else "metrics",
    }
    assert preset.aliases == ()


def test_options_of_the_router_are_removed_from_presets(
    load: Load, models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ini = "[*]\napi-key = k\nmodels-max = 7\n[single]\nssl-key-file = x\nlog-file = single.log\ntools = all\n"
    preset = load(ini, "--models-dir", str(models_dir))["single"]
    assert set(preset.layer) == {"model", "log_file"}
    assert "api-key" not in preset.ini_text
    assert "presets.ini:7: tools: ignored: an option of the router" in caplog.text
    assert "api-key: ignored: an option of the router" in caplog.text


def test_preset_only_keys(load: Load, models_dir: Path) -> None:
    ini = "[single]\nload-on-startup = true\nstop-timeout = 2.5\n"
    presets = load(ini, "--models-dir", str(models_dir))
    assert (presets["single"].load_on_startup, presets["single"].stop_timeout) == (True, 2.5)
    assert (presets["vision"].load_on_startup, presets["vision"].stop_timeout) == (False, 10.0)
    assert "load-on-startup = true" in presets["single"].ini_text
    assert to_argv(presets["single"].layer) == ["--model", str(models_dir / "single.gguf")]


def test_ini_text_can_be_read_again(load: Load, models_dir: Path) -> None:
    ini = "[single]\nalias = s\ntags = t\nport = 1\nhf-token = hf_secret\nchat-template = a;b # c\nstop-timeout = 3\n"
    preset = load(ini, "--models-dir", str(models_dir))["single"]
    assert preset.ini_text.startswith("[single]\nmodel = ")
    assert not [word for word in ("alias", "tags", "port", "secret") if word in preset.ini_text]
    again = load(preset.ini_text)["single"]
    assert (again.ini_text, again.stop_timeout) == (preset.ini_text, 3.0)


def test_a_section_with_its_own_model_ignores_cache_and_directory(load: Load, models_dir: Path, tmp_path: Path) -> None:
    cache_repo(tmp_path / "cache", "user/one", "one-Q8_0.gguf")
    ini = "[user/one:Q8_0]\nmodel = x.gguf\n[single]\nhf-repo = user/other\n[new]\nmodel-url = http://h/x.gguf\n"
    presets = load(ini, "--models-dir", str(models_dir))
    assert texts(presets["user/one:Q8_0"]) == {"model": "x.gguf"}
    assert texts(presets["single"]) == {"hf_repo": "user/other"}
    assert texts(presets["new"]) == {"model_url": "http://h/x.gguf"}


def test_a_section_name_can_be_a_repository(load: Load) -> None:
    assert texts(load("[user/new:q8_0]\nc = 1\n")["user/new:Q8_0"])["hf_repo"] == "user/new:Q8_0"


@pytest.mark.parametrize(
    ("ini", "complaint"),
    [
        ("[a]\nc = 1\n", r"presets\.ini:1: \[a\] does not say which model it is"),
        ("c = 1\n[a]\nmodel = x\n", r"presets\.ini:1: keys before the first \[header\].*under \[\*\]"),
        ("[a]\nmodel = x\nc = many\n", r"presets\.ini:3: c: invalid value 'many'"),
        ("[*]\nstop-timeout = soon\n[a]\nmodel = x\n", r"presets\.ini:2: stop-timeout: invalid value 'soon'"),
        (
            "[a]\nmodel = x\n[b]\nmodel = y\nalias = a\n",
            r"presets\.ini:5: alias: alias 'a' of model 'b' is the name of",
        ),
        (
            "[a]\nmodel = x\nalias = n\n[b]\nmodel = y\nalias = m,n\n",
            r"alias 'n' of model 'b' is an alias of model 'a' too",
        ),
        ("[a]\nmodle = x\n", r"presets\.ini:2: unknown key 'modle'"),
    ],
)
def test_refused_with_file_and_line(load: Load, ini: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(ini, "--presets-strict")
    assert "\n" not in str(caught.value)


def test_an_alias_equal_to_the_name_is_dropped(load: Load) -> None:
    assert load("[a]\nmodel = x\nalias = a, b\n")["a"].aliases == ("b",)


def test_a_missing_presets_file(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"none\.ini: no such file"):
        load("", "--models-preset", "none.ini")


def test_here_is_the_directory_of_the_file(load: Load, tmp_path: Path) -> None:
    presets = load("[*]\nchat-template-file = ${here}/t.jinja\n[a]\nmodel = ${here}/a.gguf\n[b]\nmodel = ./b.gguf\n")
    assert texts(presets["a"])["model"] == str(tmp_path / "a.gguf")
    assert texts(presets["a"])["chat_template_file"] == str(tmp_path / "t.jinja")
    assert texts(presets["b"])["model"] == "./b.gguf", "as in llama-server: relative to the working directory"


def test_a_model_that_cannot_be_loaded_is_logged_and_listed(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    unsupported = next(
        option
        for option in OPTIONS.values()
        if option.unsupported and option.hint and not option.router_own and not option.built
    )
    presets = load(f"[a]\nmodel = x\n{unsupported.name} = 1\n[b]\nmodel = y\n")
    assert list(presets) == ["a", "b"]
    assert [record.getMessage() for record in caplog.records if "model a cannot be loaded" in record.getMessage()]


def test_the_example_file_is_read(load: Load) -> None:
    """The examples of llama-server's documentation, in one file."""
    presets = load(
        "version = 1\n\n; comment\n[*]\nc = 8192\nn-gpu-layers = 8\n\n[ggml-org/MY-MODEL-GGUF:Q8_0]\n"
        "; comment\nchat-template = chatml\nn-gpu-layers = 123\njinja = true\nc = 4096\nLLAMA_ARG_CACHE_RAM = 0\n"
        "model-draft = ./my-models/draft.gguf\nmodel-draft = /data/models/draft.gguf\n\n[custom_model]\n"
        "model = /data/models/my-awesome-model-Q4_K_M.gguf\nload-on-startup = false\nstop-timeout = 10\n"
    )
    assert list(presets) == ["custom_model", "ggml-org/MY-MODEL-GGUF:Q8_0"]
    named = texts(presets["ggml-org/MY-MODEL-GGUF:Q8_0"])
    assert (named["ctx_size"], named["n_gpu_layers"], named["cache_ram"]) == ("4096", "123", "0")
    assert named["model_draft"] == "/data/models/draft.gguf"
    assert texts(presets["custom_model"])["n_gpu_layers"] == "8"


# The same file twice


@pytest.mark.parametrize("scope", ["section", "global"])
def test_cached_models_that_a_preset_uses_are_hidden(load: Load, tmp_path: Path, scope: str) -> None:
    cache_repo(tmp_path / "cache", "user/main", "main-Q8_0.gguf")
    cache_repo(tmp_path / "cache", "user/draft", "draft-Q8_0.gguf")
    cache_repo(tmp_path / "cache", "user/other", "other-Q8_0.gguf")
    before, inside = ("[*]\ndedup-cache-models = 1\n", "") if scope == "global" else ("", "dedup-cache-models = 1\n")
    section = "[mine]\nhf-repo = user/main\nspec-draft-hf = user/draft\n"
    presets = load(before + section + inside)
    assert {name for name, preset in presets.items() if preset.hidden} == {"user/main:Q8_0", "user/draft:Q8_0"}
    assert not [name for name, preset in load(section).items() if preset.hidden]
    blob = tmp_path / "cache/models--user--other/snapshots" / ("a" * 40) / "other-Q8_0.gguf"
    assert load(f"[mine]\nmodel = {blob}\ndedup-cache-models = on\n")["user/other:Q8_0"].hidden


# Modalities


@pytest.mark.parametrize(
    ("vision", "audio", "expected"),
    [(True, False, ("image",)), (True, True, ("image", "audio")), (False, True, ("audio",)), (False, False, ())],
)
def test_modalities_from_the_header_of_the_projector(
    tmp_path: Path, load: Load, vision: bool, audio: bool, expected: tuple[str, ...]
) -> None:
    path = tmp_path / "models" / "eyes" / "mmproj.gguf"
    gguf_files(path.parent, "model.gguf")
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", vision)
    writer.add_bool("clip.has_audio_encoder", audio)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert projector_modalities(path) == expected
    preset = load("", "--models-dir", str(tmp_path / "models"))["eyes"]
    assert preset.input_modalities == ("text", *(() if OPTIONS["mmproj"].unsupported else expected))
    assert preset.output_modalities == ("text",)


def test_a_model_with_a_broken_projector_is_text_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert projector_modalities(gguf_files(tmp_path, "m.gguf") / "m.gguf") == ()
    assert "truncated" in caplog.text


def test_no_models_at_all(load: Load) -> None:
    assert load() == {}


def test_the_demo_presets_are_in_the_package() -> None:
    assert sources.demo_presets_path().parent.is_dir()


def test_precedence_of_ttl(load: Load) -> None:
    ini = "[*]\nmodel = x.gguf\n[a]\n[b]\npin = on\nttl = 0\n[c]\nttl = 90\n"
    found = load(ini, "--models-ttl", "600")
    assert {name: (found[name].ttl, found[name].pin) for name in "abc"} == {
        "a": (600, False), "b": (0, True), "c": (90, False),
    }  # fmt: skip
    assert "ttl = 90" in found["c"].ini_text
    with pytest.raises(ConfigError, match="ttl"):
        load("[a]\nmodel = x.gguf\nttl = -2\n", "--presets-strict")


def test_the_header_of_a_projector_is_read_once(tmp_path: Path) -> None:
    first = tmp_path / "mmproj-0.gguf"
    writer = gguf.GGUFWriter(first, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    projectors = [first, *(tmp_path / f"mmproj-{number}.gguf" for number in range(1, 10 * MAX_HEADERS))]
    for path in projectors[1:]:
        os.link(first, path)
    assert {projector_modalities(path) for path in projectors} == {("image",)}
    overwrite(first)
    assert {projector_modalities(path) for path in projectors} == {("image",)}
    touch(first)
    assert {projector_modalities(path) for path in projectors} == {()}
