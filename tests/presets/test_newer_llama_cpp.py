"""Options of newer versions of llama.cpp: each is known by its name, and applied, without effect, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.ini import read_presets
from llama_corral.presets.merge import Layer, read_argv, read_environment, resolve, unused_option_notices

APPLIED = {
    ("--models-memory-margin 2048", "LLAMA_ARG_MODELS_MEMORY_MARGIN=2048"): ("models_memory_margin", 2048),
    ("--models-memory-margin 0", ""): ("models_memory_margin", 0),
    ("--n-cpu-ffn 3", "LLAMA_ARG_N_CPU_FFN=3"): ("n_cpu_ffn", 3),
}
NO_EFFECT = {
    ("--moe-cache-mib 4096", "LLAMA_ARG_MOE_CACHE_MIB=4096"): "no such cache",
    ("--spec-draft-sampling probabilistic", "LLAMA_ARG_SPEC_DRAFT_SAMPLING=probabilistic"): "always greedy",
    ("--spec-draft-cpu-range-batch 0-1", ""): "thread pools",
    ("--defrag-thold 0.1", "LLAMA_ARG_DEFRAG_THOLD=0.1"): "no longer needs defragmentation",
}
DEFAULTS = ["--moe-cache-mib 0", "--moe-cache-mib -1", "--spec-draft-sampling greedy"]
REFUSED = ["--tts-lang en", "--tts-speaker-file voice.json"]


def layers(command: str, variable: str) -> list[Layer]:
    name, _, value = variable.partition("=")
    return [read_argv(command.split()), *([read_environment({name: value})] if variable else [])]


@pytest.mark.parametrize(("spellings", "expected"), APPLIED.items(), ids=lambda value: str(value[0]))
def test_an_applied_option(spellings: tuple[str, str], expected: tuple[str, int]) -> None:
    for layer in layers(*spellings):
        assert resolve(layer).value(expected[0]) == expected[1]


@pytest.mark.parametrize(("spellings", "reason"), NO_EFFECT.items(), ids=lambda value: str(value))
def test_an_option_without_effect_says_why(spellings: tuple[str, str], reason: str) -> None:
    for layer in layers(*spellings):
        (notice,) = unused_option_notices(resolve(layer))
        assert " has no effect: " in notice
        assert reason in notice


@pytest.mark.parametrize("command", DEFAULTS)
def test_a_value_that_asks_for_nothing_has_no_notice(command: str) -> None:
    assert unused_option_notices(resolve(read_argv(command.split()))) == []


@pytest.mark.parametrize("command", REFUSED)
def test_a_refused_option_says_why(command: str) -> None:
    flag = command.split()[0]
    with pytest.raises(ConfigError, match=f"^{flag}: not supported: speech output"):
        read_argv(command.split())


@pytest.mark.parametrize("command", [command for command, _ in NO_EFFECT])
def test_each_is_a_key_of_presets_files(command: str, tmp_path: Path) -> None:
    file = tmp_path / "models.ini"
    flag, value = command.split()
    file.write_text(f"[m]\n{flag.lstrip('-')} = {value}\n")
    (section,) = read_presets(file).sections
    assert [given.text for given in section.layer.values()] == [value]


def test_a_refused_key_of_a_presets_file_says_why(tmp_path: Path) -> None:
    file = tmp_path / "models.ini"
    file.write_text("[m]\ntts-lang = en\n")
    (section,) = read_presets(file).sections
    assert section.fault.startswith(f"{file}:2: tts-lang: not supported: speech output")
