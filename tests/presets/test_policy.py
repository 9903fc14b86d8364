"""Scheduling options of models in presets files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets import merge
from llama_corral.presets.policy import ModelGroup, ModelPolicy
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import load_presets
from llama_corral.router.placement.snapshot import PATIENCE_S, PlacementRules, rules_of

Load = Callable[[str], dict[str, Preset]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def read(ini: str, *strict: str) -> dict[str, Preset]:
        path = tmp_path / "presets.ini"
        path.write_text(ini)
        argv = merge.read_argv(["--models-preset", str(path), *strict])
        return load_presets(merge.resolve(argv), argv, {"HOME": str(tmp_path), "LLAMA_CACHE": str(tmp_path)})

    return read


def test_priority_and_minimum_stay(load: Load) -> None:
    found = load("[*]\nmodel = x.gguf\nmin-stay = 5\n[a]\npriority = -2\n[b]\npriority = 3\nmin-stay = 0\n")
    assert {name: preset.policy for name, preset in found.items()} == {
        "a": ModelPolicy(priority=-2, min_stay=5), "b": ModelPolicy(priority=3)
    }  # fmt: skip
    assert "priority" not in found["a"].layer, "workers do not get it"
    assert "priority = -2" in found["a"].ini_text


@pytest.mark.parametrize("line", ["priority = high", "min-stay = -1"])
def test_invalid_values_are_refused_with_file_and_line(load: Load, line: str) -> None:
    with pytest.raises(ConfigError, match=r"presets.ini:3: " + line.split(" ", maxsplit=1)[0]):
        load(f"[a]\nmodel = x.gguf\n{line}\n", "--presets-strict")


def test_groups(load: Load) -> None:
    found = load(
        "[*]\nmodel = x.gguf\n[group:Big:one]\nexclusive = on ; comment\nswap = no-such\n".replace("no-such", "off")
        + "[a]\ngroup = Big:one\n[b]\ngroup = label\n[c]\n"
    )
    assert {name: preset.policy.group for name, preset in found.items()} == {
        "a": ModelGroup("Big:one", swap=False, exclusive=True), "b": ModelGroup("label"), "c": ModelGroup()
    }  # fmt: skip
    assert "group = label" in found["b"].ini_text


@pytest.mark.parametrize(
    ("ini", "why"),
    [
        ("[group:x]\nswap = maybe\n", "presets.ini:2: swap: invalid value 'maybe'"),
        ("[group:x]\nswop = on\n", "presets.ini:2: unknown key 'swop' of a group.*swap"),
        ("[group:x]\nmembers = a\n", "presets.ini:2: unknown key 'members' of a group; set group = NAME"),
        ("[group:]\nswap = on\n", "presets.ini:1: .*has no name"),
    ],
)
def test_invalid_groups_are_refused(load: Load, ini: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(ini, "--presets-strict")


def test_a_group_without_models_is_logged(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    load("[group:x]\n[a]\nmodel = x.gguf\ngroup = y\n")
    assert "no model is in the group 'x'" in caplog.text


def test_scheduling_options_of_the_command_line() -> None:
    assert rules_of(merge.settings_from([], {})) == PlacementRules(PATIENCE_S, 2)
    given = ["--models-max-wait", "7", "--models-parallel-loads", "1"]
    assert rules_of(merge.settings_from(given, {})) == PlacementRules(7, 1, preempts=True)
    with pytest.raises(ConfigError, match="models-parallel-loads"):
        merge.settings_from(["--models-parallel-loads", "0"], {})


def test_limits_of_queue_and_concurrency(load: Load) -> None:
    found = load("[a]\nmodel = x.gguf\nconcurrency = 3\nconcurrency-refuse = on\nmax-queue = 5\n")
    assert found["a"].policy == ModelPolicy(concurrency=3, concurrency_refuse=True, max_queue=5)
    assert rules_of(merge.settings_from(["--models-queue", "512"], {})).max_queue == 512


def test_a_warm_model_ignores_the_default_ttl(tmp_path: Path) -> None:
    path = tmp_path / "presets.ini"
    path.write_text("[*]\nmodel = x.gguf\nkeep-warm = on\n[a]\n[b]\nttl = 5\n[c]\nkeep-warm = off\n")
    argv = merge.read_argv(["--models-preset", str(path), "--models-ttl", "60"])
    found = load_presets(merge.resolve(argv), argv, {"HOME": str(tmp_path), "LLAMA_CACHE": str(tmp_path)})
    assert {name: (preset.ttl, preset.policy.keep_warm) for name, preset in found.items()} == {
        "a": (0, True), "b": (5, True), "c": (60, False)
    }  # fmt: skip
