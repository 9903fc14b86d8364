"""One section, name or group with a fault makes only its own models unavailable; names are used as they are written."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.layer import ConfigValue
from llama_corral.presets.merge import read_argv, resolve
from llama_corral.presets.names import settle
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import PresetReader, load_presets
from local_hub import cache_repo

GOOD = "[good]\nmodel = good.gguf\nalias = fine\n"


@pytest.fixture
def reader(tmp_path: Path) -> Callable[..., PresetReader]:
    """Return `reader(*argv)`, which reads `presets.ini`, `models` and `cache` in the test's directory."""
    (tmp_path / "models").mkdir()

    def new(*argv: str) -> PresetReader:
        layer = read_argv(
            ["--models-preset", str(tmp_path / "presets.ini"), "--models-dir", str(tmp_path / "models"), *argv]
        )
        return PresetReader(resolve(layer), layer, {"LLAMA_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)})

    return new


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Return `write(ini, *models)`, which replaces the presets file, and adds models to the directory."""

    def run(ini: str, *models: str) -> None:
        (tmp_path / "presets.ini").write_text(ini)
        for name in models:
            (tmp_path / "models" / f"{name}.gguf").write_bytes(b"GGUF")

    return run


Reader = Callable[..., PresetReader]
Write = Callable[..., None]


def faults(presets: dict[str, Preset]) -> dict[str, str]:
    """Return the faults by model, each without the directory."""
    found = {name: preset.unavailable for name, preset in presets.items() if preset.unavailable}
    return {name: re.sub(r"\S*/presets", "presets", fault) for name, fault in found.items()}


# -- faults ----------------------------------------------------------------------------------------------------------


def test_a_section_without_a_model_takes_down_no_other(
    reader: Reader, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("[*]\nc = 512\n\n[A]\ntemp = 0.1\n\n[GLM-4.5-Air]\njinja = true\nalias = glm\n", "A", "B")
    found = reader()()
    assert list(found) == ["A", "B", "GLM-4.5-Air"]
    assert (found["A"].unavailable, found["B"].unavailable) == ("", "")
    assert "presets.ini:7: [GLM-4.5-Air] does not say which model it is" in found["GLM-4.5-Air"].unavailable
    assert found["GLM-4.5-Air"].aliases == ("glm",)
    assert "model GLM-4.5-Air cannot be loaded: " in caplog.text
    assert "presets.ini:7: " in caplog.text
    with pytest.raises(ConfigError, match=r"presets\.ini:7: \[GLM"):
        reader("--presets-strict")()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("[global]\nc = 1\nngl = 9", {"global": "[global] does not say which model it is"}),
        ("[x]\nmodel = x.gguf\nmodle = y", {"x": "6: unknown key 'modle'"}),
        ("[x]\nmodel = x.gguf\nc = many", {"x": "6: c: invalid value 'many'"}),
        ("[x]\nmodel = x.gguf\nrpc = host:1", {"x": "6: rpc: not supported"}),
        ("[x]\nmodel = x.gguf\nc 5\nalias = y", {"x": "6: expected KEY = VALUE"}),
        ("[x\nmodel = x.gguf", {"x": "4: expected [name], found '[x'"}),
        ("[x] y\nc = 1", {"x": "4: expected [name]"}),
        ("[]\nc = 1", {}),
        ("[x]\nbase = gone\ntemp = 1", {"x": "5: base: there is no model 'gone'"}),
        ("[y]\nbase = x\n[x]\nbase = y", {"x": "are each other's base", "y": "are each other's base"}),
        (
            "[z]\nbase = y\n[y]\nbase = x\n[x]\nc = 1",
            {"x": "does not", "y": "base 'x' cannot", "z": "base 'x' cannot"},
        ),
        ("[z]\nbase = y\n[y]\nbase = good\nc = 1", {"y": "8: c: not allowed", "z": "its base 'y' cannot be loaded"}),
        ("[y]\nbase = good\ntemp = warm", {"y": "6: temp: invalid value 'warm'"}),
        ("[x]\ncmd = serve 'x", {"x": "5: cmd: not a command line"}),
        ("[x]\ncmd = serve\nproxy = y", {"x": "6: proxy: invalid value"}),
        ('[x]\nmodel = "a\\u0000b"', {"x": "5: model: the value contains U+0000"}),
        ('[x]\nmmproj = "\\ud800"\nmodel = y', {"x": "5: mmproj: the value contains U+D800"}),
        ("[group:g]\nswop = on\n[x]\nmodel = x.gguf\ngroup = g", {"x": "5: unknown key 'swop' of a group"}),
        ("[group:g]\nswop = on\n[group:]\nswap = on", {}),
        ("c = 1\n[x]\nmodel = y.gguf\nc = 1", {}),
    ],
)
def test_a_fault_makes_only_its_models_unavailable(
    reader: Reader, write: Write, section: str, expected: dict[str, str]
) -> None:
    write(GOOD + section + "\n[last]\nmodel = last.gguf\n", "B")
    found = reader()()
    usable = {name: preset for name, preset in found.items() if not preset.unavailable}
    assert {"B", "good", "last"} <= usable.keys()
    assert found["good"].aliases == ("fine",)
    actual = faults(found)
    assert actual.keys() == expected.keys()
    assert [name for name, fault in expected.items() if fault not in actual[name]] == []
    if expected or "[]" in section or "swop" in section:
        with pytest.raises(ConfigError, match=r"presets\.ini:\d+: "):
            reader("--presets-strict")()


@pytest.mark.parametrize("line", ["modle = x", "c = many", "rpc = host:1", "base = a", "no value", "env = A=b"])
def test_a_fault_for_all_models_stays_an_error(reader: Reader, write: Write, line: str) -> None:
    write(f"[A]\ntemp = 0.1\n[*]\n{line}\n", "A")
    with pytest.raises(ConfigError, match=r"presets\.ini:4: "):
        reader()()


def test_a_line_that_is_not_utf_8_is_a_fault_of_its_section(reader: Reader, write: Write, tmp_path: Path) -> None:
    write("")
    (tmp_path / "presets.ini").write_bytes(b"; \xfcber\n[x]\nmodel = \xfc.gguf\n[\xfc]\nc = 1\n" + GOOD.encode())
    found = reader()()
    assert not found["good"].unavailable
    assert faults(found) == {"x": "presets.ini:3: not UTF-8 text", "?": "presets.ini:4: not UTF-8 text"}


@given(st.text('[]=;#"\\ab*:/\n\0', max_size=40) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_section_takes_down_the_others(tmp_path_factory: pytest.TempPathFactory, garbage: str) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.ini"
    path.write_text(f"[first]\nmodel = a.gguf\n[second]\n{garbage}\n[last]\nmodel = b.gguf\n", encoding="utf-8")
    settings = Settings.of(models_preset=str(path))
    try:
        found = load_presets(settings, {}, {"LLAMA_CACHE": str(path.parent / "none")})
    except ConfigError as error:
        if not re.search(r"\[[ \t]*\*", garbage):
            pytest.fail(str(error))
        return
    for name, line in (("first", "[first]"), ("last", "[last]")):
        assert line in garbage or not found[name].unavailable


def test_a_repaired_section_is_available_again(reader: Reader, write: Write) -> None:
    read = reader()
    write("[N]\nc = 1\n", "A")
    assert list(faults(read())) == ["N"]
    write("[N]\nc = 1\n", "C", "N")
    found = read()
    assert list(found) == ["A", "C", "N"]
    assert not faults(found)


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3.1:8b", "qwen3.5:27b-fast", "user/model:8b", "a:b:c-d"])
def test_names_are_as_written(reader: Reader, write: Write, name: str) -> None:
    write(f"[{name}]\nmodel = x.gguf\n[v]\nbase = {name}\n")
    found = reader()()
    assert list(found) == sorted([name, "v"])
    assert found["v"].base == name


def test_a_section_is_the_cached_repository_in_upper_and_lower_case(
    reader: Reader, write: Write, tmp_path: Path
) -> None:
    cache_repo(tmp_path / "cache", "user/Model-GGUF", "m-Q8_0.gguf")
    write("[User/model-gguf:q8_0]\ntemp = 0\n[v]\nbase = USER/model-gguf:Q8_0\n[other]\nhf = user/MODEL-gguf:Q8_0\n")
    found = reader()()
    assert not faults(found)
    assert list(found) == ["other", "user/Model-GGUF:Q8_0", "v"]
    assert found["user/Model-GGUF:Q8_0"].layer["temperature"].text == "0"
    assert found["v"].base == "user/Model-GGUF:Q8_0"


def test_sections_that_differ_in_writing_never_replace_each_other(reader: Reader, write: Write, tmp_path: Path) -> None:
    cache_repo(tmp_path / "cache", "user/m", "m-Q8_0.gguf", "m-Q4_0.gguf")
    write(
        "[m:8b]\nmodel = a.gguf\n[m:8B]\nmodel = b.gguf\n[user/m:q8_0]\ntemp = 0\n[user/m:Q8_0]\ntemp = 1\n"
        "[user/m:q4_0]\nhf-repo = user/m:q4_0\ntemp = 2\n[user/other:UD-Q4_K_XL]\n"
        "[v]\nbase = user/m:q4_0\n[w]\nbase = user/m:q8_0\n"
    )
    found = reader()()
    temperatures = {name: preset.layer.get("temperature") for name, preset in found.items()}
    assert {name: given.text for name, given in temperatures.items() if given} == {
        "user/m:q8_0": "0", "user/m:Q8_0": "1", "user/m:Q4_0": "2", "v": "2", "w": "0"
    }  # fmt: skip
    assert found.keys() - {"v", "w"} == {
        "m:8b", "m:8B", "user/m:q8_0", "user/m:Q8_0", "user/m:Q4_0", "user/other:Q4_K_XL"
    }  # fmt: skip
    assert (found["v"].base, found["w"].base) == ("user/m:Q4_0", "user/m:q8_0")


def test_a_file_added_later_does_not_take_a_name(
    reader: Reader, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    read = reader()
    write("[A]\nalias = gpt-4\n[v]\nbase = A\n", "A")
    read()
    write("[A]\nalias = gpt-4\n[v]\nbase = A\n", "B", "gpt-4", "v")
    for found in (read(), read(), reader()()):
        assert list(found) == ["A", "B", "v"]
        assert (found["A"].aliases, found["v"].base) == (("gpt-4",), "A")
    assert "model gpt-4 (models_dir) is left out: " in caplog.text
    assert "presets.ini:2: alias: alias 'gpt-4' of model 'A' is the name of another model" in caplog.text
    assert "presets.ini:4: base: 'v' is already a separate model" in caplog.text
    with pytest.raises(ConfigError, match="'v' is already"):
        reader("--presets-strict")()


def test_a_section_edited_later_does_not_take_a_name(reader: Reader, write: Write) -> None:
    read = reader()
    write("[b]\nmodel = b.gguf\nalias = x\n", "B", "C")
    read()
    write("[b]\nmodel = b.gguf\nalias = x, B\n[a]\nmodel = a.gguf\nalias = x, y\n[C]\nbase = b\n[x]\nmodel = x\n")
    found = read()
    assert list(found) == ["B", "C", "a", "b"], "the name x belongs to b"
    assert (found["a"].aliases, found["b"].aliases, found["C"].base) == (("y",), ("x",), "")
    assert not faults(found)


NAMES = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def claims(draw: st.DrawFn) -> dict[str, Preset]:
    found = {}
    for name in draw(st.sets(NAMES)):
        aliases = tuple(sorted(draw(st.sets(NAMES)) - {name}))
        source = draw(st.sampled_from(["preset", "models_dir"]))
        layer = {"alias": ConfigValue(",".join(aliases), "f:1: alias")}
        found[name] = Preset(name, source, layer, aliases=aliases, unavailable=draw(st.sampled_from(["", "f:2: no"])))  # type: ignore[arg-type]
    return found


@given(claims(), claims())
def test_each_name_has_one_owner_and_keeps_it(before: dict[str, Preset], after: dict[str, Preset]) -> None:
    known = settle(before, {}, lambda fault, effect: None)
    found = settle(after, known, lambda fault, effect: None)
    names = [*found, *(alias for preset in found.values() for alias in preset.aliases)]
    assert len(names) == len(set(names))
    claimed = {*after, *(alias for preset in after.values() for alias in preset.aliases)}
    assert found.keys() <= after.keys()
    for name, preset in known.items():
        if name in after and not after[name].unavailable:
            assert name in found, "an owner that still claims its name has it"
            kept = {alias for alias in preset.aliases if alias in after[name].aliases}
            assert kept <= set(found[name].aliases)
    assert settle(found, found, lambda fault, effect: pytest.fail(fault)) == found
    assert claimed >= set(names)


# -- keys and values -------------------------------------------------------------------------------------------------


def test_keys_may_have_underscores(reader: Reader, write: Write) -> None:
    write(
        "[*]\nn_gpu_layers = 9\n[a]\nmodel = x.gguf\nctx_size = 64\nno_cont_batching = on\nstop_timeout = 3\n"
        "load_on-startup = on\ncache_prompt = off\nLLAMA_ARG_TOP_K = 3\n"
    )
    preset = reader("--presets-strict")()["a"]
    assert {field: given.text for field, given in preset.layer.items()} == {
        "n_gpu_layers": "9", "model": "x.gguf", "ctx_size": "64", "cont_batching": "false", "cache_prompt": "false",
        "top_k": "3",
    }  # fmt: skip
    assert (preset.stop_timeout, preset.load_on_startup) == (3.0, True)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('"Stop thinking."', '"Stop thinking."'),
        ('"Stop." ; comment', '"Stop."'),
        ("Stop.", "Stop."),
        ('"Stop.\\nAnswer:"', "Stop.\nAnswer:"),
        ('" Stop. "', " Stop. "),
        ('"\\"Stop.\\""', '"Stop."'),
    ],
)
def test_the_budget_message_keeps_its_quotes_unless_it_needs_them(
    reader: Reader, write: Write, value: str, read: str
) -> None:
    write(f"[a]\nmodel = x.gguf\nreasoning-budget-message = {value}\n[b]\nmodel = {value}\n")
    found = reader()()
    assert found["a"].layer["reasoning_budget_message"].text == read
    write(found["a"].ini_text)
    assert reader()()["a"].layer["reasoning_budget_message"].text == read, "it is written as it is read"


def test_the_log_names_each_fault_once(reader: Reader, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    write("[x]\nmodle = a\nmodel = b\n[y]\nbase = x\n")
    with caplog.at_level(logging.WARNING):
        reader()()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "model x cannot be loaded",
        "model y cannot be loaded",
    ]
