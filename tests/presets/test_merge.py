"""Layers: how command line, environment and system configuration are read, merged, rendered and refused."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.ini import read_presets
from llama_corral.presets.layer_source import LayerSource, settings_of
from llama_corral.presets.merge import (
    ConfigValue,
    Layer,
    merge,
    overridden,
    read_argv,
    read_environment,
    read_system_config,
    resolve,
    settings_from,
)
from llama_corral.presets.options.deprecated import Removed
from llama_corral.presets.options.describe import allowed, choices, default_text
from llama_corral.presets.options.option import OptionReader, Repeat
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.options.table import FLAGS, OPTIONS, is_free_text, takes_value
from llama_corral.presets.options.values import join_many, many
from llama_corral.presets.render import masked, to_argv, to_ini


def texts(layer: Layer) -> dict[str, str]:
    return {field: given.text for field, given in layer.items()}


def words(text: str) -> list[str]:
    return text.split()


def refusal(argv: list[str], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(read_environment(environ or {}), read_argv(argv))
    return str(caught.value)


# --- command line


def test_all_spellings_of_an_option_are_equivalent() -> None:
    for flag in ("-ngl", "--gpu-layers", "--n-gpu-layers", "--n_gpu_layers", "--gpu_layers"):
        assert texts(read_argv([flag, "7"])) == {"n_gpu_layers": "7"}
    assert texts(read_argv(["--n-gpu-layers=7"])) == {"n_gpu_layers": "7"}


def test_negations() -> None:
    assert texts(read_argv(["--no-warmup", "-nkvo", "-no-kvu", "--jinja"])) == {
        "warmup": "false",
        "kv_offload": "false",
        "kv_unified": "false",
        "jinja": "true",
    }
    assert resolve(read_argv(["--no-mmproj"])).media.mmproj_auto is False
    assert resolve(read_argv(["--metrics", "--no-metrics"])).endpoints.metrics is False, (
        "every switch can be turned off"
    )


def test_the_last_value_wins_and_lists_are_appended() -> None:
    assert resolve(read_argv(["-c", "1", "--ctx-size", "2"])).context.ctx_size == 2
    assert resolve(read_argv(["-r", "User:", "-r", "\\n\\n", "-r", '["x"]'])).endpoints.reverse_prompt == (
        "User:",
        "\n\n",
        '["x"]',
    )
    keys = resolve(read_argv(["--api-key", "a", "--api-key", "b,c"])).http.api_key
    assert tuple(key.get_secret_value() for key in keys) == ("a", "b", "c")
    assert resolve(read_argv(["-l", "5+1", "-l", "6-0.5"])).sampling.logit_bias == ((5, 1.0), (6, -0.5))
    assert resolve(read_argv(["--override-kv", "a=int:1", "--override-kv", "b=bool:true"])).main_model.override_kv == (
        "a=int:1",
        "b=bool:true",
    )


def test_texts_keep_their_backslashes_without_escape() -> None:
    assert resolve(read_argv(["-r", "\\n", "--no-escape"])).endpoints.reverse_prompt == ("\\n",)


def test_sequence_breakers_replace_the_defaults() -> None:
    assert resolve(read_argv(["--dry-sequence-breaker", "none"])).sampling.dry_sequence_breaker == ()
    assert resolve(
        read_argv(["--dry-sequence-breaker", "\\n", "--dry-sequence-breaker", "x"])
    ).sampling.dry_sequence_breaker == (
        "\n",
        "x",
    )


def test_values_are_converted_to_their_types() -> None:
    argv = words(
        "-fa 1 -sp --samplers top-k;nucleus;temp --seed -1 --temp -3 --alias a,,b --max-body 2M -ngl all "
        "-ts 3/1 --reasoning off --chat-template-kwargs {} --numa distribute --cpu-strict 0"
    )
    seen = resolve(read_argv(argv))
    assert (seen.context.flash_attn, seen.endpoints.special, seen.sampling.samplers) == (
        "on",
        True,
        ("top_k", "top_p", "temperature"),
    )
    assert (seen.sampling.seed, seen.sampling.temperature, seen.main_model.alias, seen.corral.max_body) == (
        0xFFFFFFFF,
        0.0,
        ("a", "b"),
        2 << 20,
    )
    assert (seen.load.n_gpu_layers, seen.load.tensor_split, seen.chat.reasoning) == ("all", (3.0, 1.0), "off")
    assert resolve(read_argv(["--sampling-seq", "kpt"])).sampling.samplers == ("top_k", "top_p", "temperature")
    assert resolve(read_argv(["-lv", "1", "-v"])).log.log_verbosity > 1000


def test_shorthands_set_options_that_later_flags_override() -> None:
    seen = resolve(read_argv(["--fim-qwen-3b-default", "--port", "9000"]))
    assert (seen.main_model.hf_repo, seen.context.batch_size, seen.http.port) == (
        "ggml-org/Qwen2.5-Coder-3B-Q8_0-GGUF",
        1024,
        9000,
    )
    assert not seen.is_router


def test_options_with_the_same_meaning_replace_each_other() -> None:
    below = read_argv(["--chat-template", "chatml"])
    above = read_argv(["--chat-template-file", "x.jinja"])
    assert texts(merge(below, above)) == {"chat_template_file": "x.jinja"}
    assert texts(merge(above, below)) == {"chat_template": "chatml"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ctx-size"], "--ctx-size: the value is missing: --ctx-size N"),
        (["--control-vector-layer-range", "1"], "--control-vector-layer-range: the value is missing: "),
        (["--ctx-sizes", "1"], "unknown option '--ctx-sizes' (did you mean '--ctx-size'?)"),
        (["-nglx"], "unknown option '-nglx' (did you mean '-ngl'?)"),
        (["model.gguf"], "unexpected argument 'model.gguf'"),
        (["--metrics=on"], "--metrics: a value after = is not allowed"),
        (["--ctx-size", "many"], "--ctx-size: invalid value 'many': expected an integer of at least 0"),
        (["--port", "70000"], "--port: invalid value '70000': expected an integer from 0 to 65535"),
        (["-np", "0"], "-np: invalid value '0': expected -1 or an integer above 0"),
        (["--sleep-idle-seconds", "0"], "--sleep-idle-seconds: invalid value '0': expected -1 or an integer above 0"),
        (["-fa", "maybe"], "-fa: invalid value 'maybe': expected on, off or auto"),
        (["-sm", "rows"], "-sm: invalid value 'rows': expected one of none, layer, row, tensor"),
        (["--repeat-penalty", "0"], "--repeat-penalty: invalid value '0': expected a number above 0"),
        (["--adaptive-target", "2"], "--adaptive-target: invalid value '2': expected a number of at most 1"),
        (["--api-prefix", "api"], "--api-prefix: invalid value 'api': expected a path that begins with /"),
        (["--override-kv", "x=1"], "--override-kv: invalid value 'x=1': expected KEY=TYPE:VALUE"),
        (["--sampling-seq", "kq"], "--sampling-seq: invalid value 'kq': --samplers as letters"),
        (["--samplers", "top_q"], "--samplers: invalid value 'top_q': expected names separated by ';'"),
        (["--chat-template-kwargs", "[1]"], "--chat-template-kwargs: invalid value '[1]': expected a JSON object"),
        (["--max-body", "0"], "--max-body: invalid value '0': expected a number of bytes above 0"),
        (["--host", ","], "--host: invalid value ',': expected an address, or several"),
        (["-c", ""], "-c: the value is missing: expected an integer of at least 0"),
        (["-fa="], "unknown option '-fa='"),
        (["--flash-attn="], "--flash-attn: the value is missing: expected on, off or auto"),
        (["-fa", "-ngl", "99"], "-fa: invalid value '-ngl': expected on, off or auto"),
        (["--no-mmap", "-c", "--jinja"], "-c: invalid value '--jinja': expected an integer of at least 0"),
        (["-m", "-ngl", "99"], "-m: the value is missing: -m FILE, found the option '-ngl'"),
        (["--alias", "--ctx_size=5"], "--alias: the value is missing: --alias NAMES, found the option '--ctx_size=5'"),
        (["--jinja", "true"], "--jinja: unexpected value 'true': it takes no value (--no-jinja: off)"),
        (["-c", "x", "99"], "-c: invalid value 'x': expected an integer of at least 0"),
        (["-c", "5", "99"], "unexpected argument '99' after -c"),
        (["-fa", "--unknown"], "-fa: invalid value '--unknown': expected on, off or auto"),
        (["--api-key", "a", "b"], "unexpected argument after --api-key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_of_the_command_line(argv: list[str], message: str) -> None:
    assert refusal(argv).startswith(message)


VALUED = [flag for flag, spelling in FLAGS.items() if takes_value(spelling.entry)]
SWITCHES = [flag for flag, spelling in FLAGS.items() if not isinstance(spelling.entry, Removed) and flag not in VALUED]


@pytest.mark.parametrize("flag", VALUED)
def test_a_forgotten_value_is_reported_at_its_option(flag: str) -> None:
    assert refusal([flag]).startswith(f"{flag}: the value is missing: {flag} ")
    if not is_free_text(FLAGS[flag].entry):
        message = refusal([flag, "-ngl", "99"])
        assert message.startswith((f"{flag}: invalid value", f"{flag}: the value is missing: ")), message


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_value_of_a_switch_is_reported_at_the_switch(flag: str) -> None:
    assert refusal([flag, "true"]).startswith(f"{flag}: unexpected value 'true': it takes no value")
    assert refusal([f"{flag}=true"]).startswith((f"{flag}: a value after = is not allowed", f"unknown option '{flag}="))


@pytest.mark.parametrize("flag", [flag for flag in VALUED if is_free_text(FLAGS[flag].entry)])
def test_a_text_may_look_like_an_option(flag: str) -> None:
    ((_, given),) = read_argv([flag, "--jinja"]).items()
    assert given.text == "--jinja"


# --- environment


def test_variables_and_their_negations() -> None:
    environ = {
        "LLAMA_ARG_CTX_SIZE": "512",
        "LLAMA_ARG_NO_KV_OFFLOAD": "0",
        "LLAMA_ARG_JINJA": "off",
        "LLAMA_API_KEY": "secret",
        "HF_TOKEN": "hf_x",
        "LLAMA_ARG_THREADS": "",
        "LLAMA_ARG_UNHEARD_OF": "1",
        "PATH": "/bin",
    }
    assert texts(read_environment(environ)) == {
        "ctx_size": "512",
        "kv_offload": "false",
        "jinja": "false",
        "api_key": "secret",
        "hf_token": "hf_x",
    }


def test_precedence_of_older_current_and_negated_variables() -> None:
    environ = {"LLAMA_ARG_WEBUI": "false", "LLAMA_ARG_UI": "true"}
    assert resolve(read_environment(environ)).http.ui is True
    assert resolve(read_environment(environ | {"LLAMA_ARG_NO_UI": ""})).http.ui is False


def test_errors_name_the_variable() -> None:
    assert refusal([], {"LLAMA_ARG_JINJA": "yes"}).startswith(
        "environment variable LLAMA_ARG_JINJA: invalid value 'yes': expected on or off"
    )
    assert refusal([], {"LLAMA_ARG_CTX_SIZE": "x"}).startswith(
        "environment variable LLAMA_ARG_CTX_SIZE: invalid value 'x': expected an integer"
    )


def test_a_secret_is_never_shown() -> None:
    layer = read_argv(["--api-key", "swordfish", "-c", "1"])
    assert "swordfish" not in to_ini(masked(layer))
    assert "swordfish" not in str(to_argv(masked(layer)))
    assert texts(masked(layer))["ctx_size"] == "1"


# --- precedence


def system(tmp_path: Path, text: str) -> dict[str, str]:
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "config.ini").write_text(text)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_precedence_of_command_line_environment_and_system_configuration(tmp_path: Path) -> None:
    environ = system(tmp_path, "c = 1\nb = 11\n[*]\nubatch-size = 111\nb = 12\n[some-model]\nkeep = 5\n")
    environ |= {"LLAMA_ARG_CTX_SIZE": "2", "LLAMA_ARG_BATCH": "22"}
    seen = settings_from(["-c", "3"], environ)
    assert (seen.context.ctx_size, seen.context.batch_size, seen.context.ubatch_size, seen.context.keep) == (
        3,
        22,
        111,
        0,
    )


def test_unknown_options_in_the_system_configuration_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = system(tmp_path, "prompt-cache-all = true\nrpc = localhost:1\nthreads = 3\n")
    assert texts(read_system_config(environ)) == {"threads": "3"}
    assert [record.message.split("config.ini:")[1] for record in caplog.records] == [
        "1: prompt-cache-all: ignored: this program has no such option",
        "2: rpc: ignored: llama-cpp-python builds llama.cpp without the RPC backend",
    ]


def test_the_system_configuration_may_be_missing(tmp_path: Path) -> None:
    assert read_system_config({"HOME": str(tmp_path)}) == {}
    assert read_system_config({}) == {}


def test_an_overridden_variable_is_reported() -> None:
    lower = read_environment({"LLAMA_ARG_HOST": "192.0.2.1", "LLAMA_ARG_PORT": "1"})
    assert list(overridden(read_argv(["--host", "127.0.0.1"]), lower)) == [
        "environment variable LLAMA_ARG_HOST is set, but --host overrides it"
    ]


# --- the earlier switches that --load-mode replaced


@pytest.mark.parametrize(
    ("layers", "mode"),
    [
        ([["--mmap"]], "mmap"),
        ([["--no-mmap"]], "none"),
        ([["--mlock"]], "mmap+mlock"),
        ([["--mlock", "--no-mmap"]], "mlock"),
        ([["--no-mmap", "--mlock"]], "mlock"),
        ([["--mlock", "--mmap"]], "mmap+mlock"),
        ([["--direct-io"]], "dio"),
        ([["-dio", "--mmap"]], "mmap"),
        ([["--no-direct-io"]], "auto"),
        ([["--mlock"], ["--no-mmap"]], "mlock"),
        ([["--mlock"], ["--load-mode", "auto"]], "auto"),
        ([["--load-mode", "mmap"], ["--mlock"]], "mmap+mlock"),
        ([["--no-mmap"], ["--mlock"], ["--no-mlock"]], "none"),
        ([["--load-mode", "dio"], ["--no-direct-io"]], "auto"),
    ],
    ids=str,
)
def test_earlier_load_switches_modify_lower_layers(layers: list[list[str]], mode: str) -> None:
    merged = merge(*(read_argv(argv) for argv in layers))
    assert merged.get("load_mode", ConfigValue("auto", "")).text == mode
    assert merged.keys() <= {"load_mode"}


def test_a_variable_of_the_earlier_switches() -> None:
    assert resolve(read_environment({"LLAMA_ARG_NO_MMAP": "1", "LLAMA_ARG_MLOCK": "1"})).load.load_mode == "mlock"


# --- rendering


def test_argv_is_ordered_and_spelled_as_llama_server_shows_it() -> None:
    layer = read_argv(words("--no-warmup -c 512 --jinja -a x --special -r a -r b --control-vector-layer-range 1 4"))
    layer["load_on_startup"] = ConfigValue("true", "models.ini:3")
    assert to_argv(layer) == words(
        "--control-vector-layer-range 1 4 --jinja --no-warmup --alias x --ctx-size 512 --reverse-prompt a "
        "--reverse-prompt b --special"
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
LINE = st.text(string.printable, min_size=1)


@st.composite
def layers(draw: st.DrawFn, are_valid: bool = False) -> dict[str, ConfigValue]:
    """Generate layers of any options with any texts (a command line parses only switches), or with valid values."""
    fields = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True))
    layer = {}
    for field in fields:
        option = OPTIONS[field]
        if option.reader is OptionReader.PROGRAM or any(other in layer for other in option.replaces):
            continue
        if option.is_switch:
            text = draw(st.sampled_from(["true", "false"]))
        elif option.repeat is Repeat.MANY:
            text = join_many(draw(st.lists(TEXT, min_size=1)))
        elif choices(field):
            text = draw(st.sampled_from(choices(field)))
        elif len((option.hint or "").split()) > 1:
            text = "1 4"
        elif are_valid and allowed(field) != "text":
            text = default_text(field)
        else:
            text = draw(TEXT | LINE)
        layer[field] = ConfigValue(text, "test")
    return layer


@given(layers())
@settings(max_examples=150)
def test_a_layer_survives_the_command_line(layer: dict[str, ConfigValue]) -> None:
    expected = {
        field: text
        for field, text in texts(layer).items()
        if OPTIONS[field].reader is not OptionReader.PRESET and not (field == "no_host" and text == "false")
    }
    assert texts(read_argv(to_argv(layer))) == expected


@given(layer=layers(are_valid=True))
@settings(max_examples=150)
def test_a_layer_survives_a_presets_file(
    tmp_path_factory: pytest.TempPathFactory, layer: dict[str, ConfigValue]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.ini"
    path.write_text(f"[a-model]\n{to_ini(layer)}", encoding="utf-8", newline="")
    (section,) = read_presets(path).sections
    assert texts(section.layer) == texts(layer)


@given(st.lists(TEXT, min_size=1))
def test_several_values_survive_encoding_as_one_text(items: list[str]) -> None:
    assert many(join_many(items)) == items


def test_settings_record_which_options_were_set() -> None:
    assert resolve(read_argv(["-c", "0"])).options_set == {"ctx_size"}
    assert Settings.of(ctx_size=0).options_set == {"ctx_size"}


@given(layers(), st.integers(0, 10))
def test_one_layer_gives_the_settings_that_it_gives_together_with_others(
    layer: dict[str, ConfigValue], start: int
) -> None:
    """A single layer is validated without pydantic-settings, which takes most of the time."""
    halves = dict(list(layer.items())[:start]), dict(list(layer.items())[start:])

    def outcome(*parts: Layer) -> Settings | str:
        try:
            return settings_of([LayerSource(part) for part in parts])
        except ConfigError as error:
            return str(error)

    alone, split = outcome(layer), outcome(*halves, {})
    assert alone == split
    if isinstance(alone, Settings) and isinstance(split, Settings):
        assert alone.options_set == split.options_set == layer.keys()


def test_a_change_of_settings_leaves_the_shared_defaults_alone() -> None:
    changed = resolve({}).with_options({"ctx_size": 7}).with_options({}, unset=["ctx_size"])
    assert (changed.context.ctx_size, changed.options_set) == (0, set())
    assert (resolve({}).context.ctx_size, resolve({}).options_set) == (0, set())
