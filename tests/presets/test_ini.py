"""Presets files: syntax, section names, and errors with file, line and the nearest key."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.gguf_names import canonical_name
from llama_corral.presets.ini import PresetFile, Section, ini_value, read_presets
from llama_corral.presets.merge import check, merge


def parse(folder: Path, text: str | bytes) -> PresetFile:
    path = folder / "models.ini"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_presets(path)


def values(section: Section) -> dict[str, str]:
    return {field: given.text for field, given in section.layer.items()}


def fault_of(folder: Path, text: str | bytes) -> str:
    """Return the fault of the file's only section, which makes no other section unusable."""
    (section,) = parse(folder, text).sections
    return section.fault


def one(folder: Path, line: str) -> str:
    """Return the value that a line with one key sets."""
    (section,) = parse(folder, f"[m]\n{line}\n").sections
    (given,) = section.layer.values()
    return given.text


EXAMPLE = """\
version = 1

; what every model gets
[*]
c = 8192
n-gpu-layers = 8

[ggml-org/MY-MODEL-GGUF:Q8_0]
; a string, a number, a flag
chat-template = chatml
n-gpu-layers = 123
jinja = true
; the short spelling, and the name of a variable
c = 4096
LLAMA_ARG_CACHE_RAM = 0
; the last one wins
model-draft = ./my-models/draft.gguf
model-draft = /data/models/draft.gguf

[custom_model]
model = /data/models/my-awesome-model-Q4_K_M.gguf
load-on-startup = false
stop-timeout = 10
"""


def test_the_example_of_the_requirements(tmp_path: Path) -> None:
    file = parse(tmp_path, EXAMPLE)
    assert {field: given.text for field, given in file.global_layer.items()} == {
        "ctx_size": "8192",
        "n_gpu_layers": "8",
    }
    first, second = file.sections
    assert (first.name, first.line) == ("ggml-org/MY-MODEL-GGUF:Q8_0", 8)
    assert values(first) == {
        "chat_template": "chatml",
        "n_gpu_layers": "123",
        "jinja": "true",
        "ctx_size": "4096",
        "cache_ram": "0",
        "model_draft": "/data/models/draft.gguf",
    }
    assert first.layer["ctx_size"].where == f"{tmp_path}/models.ini:14: c"
    assert values(second)["model"] == "/data/models/my-awesome-model-Q4_K_M.gguf"
    settings = check(merge(file.global_layer, second.layer))
    assert (settings.context.ctx_size, settings.presets.load_on_startup, settings.presets.stop_timeout) == (
        8192,
        False,
        10.0,
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("model = a.gguf", "a.gguf"),
        ("model=a.gguf", "a.gguf"),
        ("model =   a b.gguf  \t", "a b.gguf"),
        ("  model = a.gguf", "a.gguf"),
        ("model = a.gguf ; a comment", "a.gguf"),
        ("model = a.gguf\t# a comment", "a.gguf"),
        ("model = a;b#c.gguf", "a;b#c.gguf"),
        ("model = https://host/x#fragment", "https://host/x#fragment"),
        ("samplers = top_k;temperature ; in this order", "top_k;temperature"),
        ("model =", ""),
        ("model = ; nothing", ""),
        ("model = #x", ""),
        ("model = a = b", "a = b"),
        ('model = "a ; b"', "a ; b"),
        ('model = "line\\nline" ; comment', "line\nline"),
        ('model = "a" and "b"', '"a" and "b"'),
        ('model = "open', '"open'),
        ("jinja = on", "true"),
        ("jinja = disabled", "false"),
        ("jinja = TRUE", "true"),
        ("no-jinja = true", "false"),
        ("no-jinja = 0", "true"),
        ("LLAMA_ARG_JINJA = 1", "true"),
        ("LLAMA_ARG_NO_JINJA = 1", "false"),
        ("webui = off", "false"),
        ("draft-max = 16", "16"),
        ("verbose = 1", str(2**31 - 1)),
    ],
)
def test_values_of_lines(tmp_path: Path, line: str, value: str) -> None:
    assert one(tmp_path, line) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[m]\nn-gpu-layer = 3\n", "2: unknown key 'n-gpu-layer' (did you mean 'n-gpu-layers'?)"),
        ("[m]\n\n; x\nqqqqqqq = 3\n", "4: unknown key 'qqqqqqq'"),
        ("[m]\nusage = true\n", "2: unknown key 'usage'"),
        ("[m]\njinja = yes\n", "2: jinja: invalid value 'yes': expected on or off"),
        ("[m]\nno-jinja = yes\n", "2: no-jinja: invalid value 'yes': expected on or off"),
        ("[m]\nc = many\n", "2: c: invalid value 'many': expected an integer of at least 0"),
        ("[m]\nstop-timeout = soon\n", "2: stop-timeout: invalid value 'soon': expected a number of at least 0"),
        ("[m]\nctx-size\n", "2: expected KEY = VALUE, found 'ctx-size'"),
        ("[m]\nctx-size: 5\n", "2: expected KEY = VALUE, found 'ctx-size: 5'"),
        ("[m]\n= 5\n", "2: expected KEY = VALUE, found '= 5'"),
        ("[m\nc = 5\n", "1: expected [name], found '[m'"),
        ("[]\n", "1: expected [name], found '[]'"),
        ("[a] b\n", "1: expected [name], found '[a] b'"),
        ("[m]\nctx-size-draft = 5\n", "2: ctx-size-draft: this option was removed: the draft model uses"),
        ("[m]\nmodel = a\u2028b\n", "2: line separator U+2028 inside a line"),
        (b"[m]\r\nmodel = a\r\nalias = \xff\xfe\r\n", "3: not UTF-8 text"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert fault_of(tmp_path, text).startswith(f"{tmp_path}/models.ini:{message}")


def test_a_fault_for_all_models_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(tmp_path, "[*]\nport = 70000\n")
    message = "2: port: invalid value '70000': expected an integer from 0 to 65535"
    assert str(raised.value).startswith(f"{tmp_path}/models.ini:{message}")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ini: no such file"):
        read_presets(tmp_path / "none.ini")


def test_a_directory_and_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a directory, not a file"):
        read_presets(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        read_presets("a\0b")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_newline_and_a_byte_order_mark(tmp_path: Path, newline: str) -> None:
    file = parse(tmp_path, b"\xef\xbb\xbf" + newline.join(["[a]", "c = 1", "", "[b]", "c = 2"]).encode())
    assert [(section.name, section.line, values(section)) for section in file.sections] == [
        ("a", 1, {"ctx_size": "1"}),
        ("b", 4, {"ctx_size": "2"}),
    ]


def test_the_last_line_wins_among_spellings_of_one_option(tmp_path: Path) -> None:
    (section,) = parse(tmp_path, "[m]\nctx-size = 1\nLLAMA_ARG_CTX_SIZE = 2\nc = 3\n").sections
    assert values(section) == {"ctx_size": "3"}
    (section,) = parse(tmp_path, "[m]\nc = 3\nctx-size = 1\n").sections
    assert values(section) == {"ctx_size": "1"}


def test_keys_before_any_header_are_a_model_called_default(tmp_path: Path) -> None:
    (section,) = parse(tmp_path, "version = 1\nmodel = a.gguf\n").sections
    assert (section.name, values(section)) == ("default", {"model": "a.gguf"})
    assert parse(tmp_path, "version = 1\n[default]\nversion = 2\n").sections == ()
    assert parse(tmp_path, "").sections == ()


def test_a_section_without_keys_is_a_model(tmp_path: Path) -> None:
    (section,) = parse(tmp_path, "[user/model-GGUF]\n").sections
    assert (section.name, section.layer) == ("user/model-GGUF", {})


def test_a_repeated_section_replaces_the_earlier_one_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "corral.presets"):
        file = parse(tmp_path, "[a/b:Q8_0]\nc = 1\nkeep = 1\n[a/b:Q8_0]\nc = 2\n")
    assert [(section.line, values(section)) for section in file.sections] == [(4, {"ctx_size": "2"})]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/models.ini:4: [a/b:Q8_0] replaces the section of that name in line 1"
    ]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model", "model"),
        ("user/model:q4_k_m", "user/model:Q4_K_M"),
        ("user/model:UD-Q4_K_XL", "user/model:Q4_K_XL"),
        ("user/model:ud.iq2_xxs", "user/model:IQ2_XXS"),
        ("a:b:c-d", "a:b:D"),
        ("user/model:latest!", "user/model:LATEST!"),
        ("*", "*"),
    ],
)
def test_tags_in_section_names_become_canonical(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


def test_section_names_are_trimmed_and_may_contain_any_text(tmp_path: Path) -> None:
    file = parse(tmp_path, "[ a ; b#c ] ; comment\nc = 1\n[\tü ]\n")
    assert [section.name for section in file.sections] == ["a ; b#c", "ü"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_can_be_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert one(folder, f"model = {ini_value(text)}") == text


@given(st.binary(max_size=60) | st.text('[]=;#\n" ab*\\', max_size=60).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse(tmp_path_factory.getbasetemp(), data)
