"""The texts from the option table: help, completion, reference."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from llama_corral.presets.options.deprecated import SHORTHANDS
from llama_corral.presets.options.option import OptionReader
from llama_corral.presets.options.reference import with_current_table
from llama_corral.presets.options.settings import GROUPS, Settings
from llama_corral.presets.options.table import KEYS, OPTIONS
from llama_corral.presets.render import bash_completion, help_text, reference_markdown

README = Path(__file__).resolve().parents[2] / "presets" / "README.md"


def test_help_names_every_flag_in_its_group() -> None:
    text = help_text(100)
    words = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.-]*", text))
    for option in OPTIONS.values():
        if option.reader is not OptionReader.PRESET:
            assert set(option.flags) <= words, option.name
    assert {flag for item in SHORTHANDS for flag in item.flags} <= words
    titles = [group.title for group in GROUPS if group.title != "Only in a presets file"]
    assert [line for line in text.splitlines() if line in titles] == titles


@pytest.mark.parametrize("width", [80, 120])
def test_help_is_plain_text_within_its_width(width: int) -> None:
    text = help_text(width)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width


def test_help_marks_refused_options_and_options_without_effect() -> None:
    text = " ".join(help_text(120).split())
    assert "(refused: prompts are never written to disk" in text
    assert "(default: 8080) [LLAMA_ARG_PORT]" in text


def complete(*words: str) -> list[str]:
    script = (
        f"{bash_completion()}\nCOMP_WORDS=({' '.join(map(repr, words))})\nCOMP_CWORD={len(words) - 1}\n"
        '_llama_corral\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, cwd=README.parent
    )
    return done.stdout.split()


def test_completion_in_bash() -> None:
    assert complete("llama-corral", "--models-d") == ["--models-device-memory", "--models-dir"]
    assert complete("llama-corral", "--load-mode", "m") == ["mmap", "mlock", "mmap+mlock"]
    assert complete("llama-corral", "-m", "READ") == ["README.md"]
    assert complete("llama-corral", "--models-dir", "dem") == ["demo"]
    assert complete("llama-corral", "--port", "") == []
    assert complete("llama-corral", "--web") == [], "older spellings are accepted, but not offered"


def test_the_reference_in_the_readme_is_current() -> None:
    document = README.read_text(encoding="utf-8")
    assert with_current_table(document) == document, (
        "run: python -m llama_corral.presets.options.reference presets/README.md"
    )


def test_the_reference_names_every_key() -> None:
    words = set(re.findall(r"`([^`]+)`", reference_markdown()))
    keys = {word.lstrip("-") for word in words}
    negated_variables = {name for name in KEYS if name.startswith("LLAMA_ARG_NO_")} - {"LLAMA_ARG_NO_HOST"}
    assert set(KEYS) - negated_variables <= keys


def test_a_document_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="no <!-- options"):
        with_current_table("# A title\n")


def test_the_json_schema_names_spellings() -> None:
    schema = Settings.model_json_schema()
    assert schema["properties"]["ctx_size"]["x-spellings"] == ["-c", "--ctx-size"]
    assert schema["properties"]["ctx_size"]["x-env"] == "LLAMA_ARG_CTX_SIZE"
    assert schema["properties"]["ctx_size"]["minimum"] == 0
