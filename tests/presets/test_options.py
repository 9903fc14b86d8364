"""The option table: spellings of both generations of llama-server, properties of fields, refused options."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.context_shape import context_shape
from llama_corral.presets.merge import ConfigValue, check, read_argv, read_environment, resolve, unused_option_notices
from llama_corral.presets.options.deprecated import REMOVED, SHORTHANDS, Removed
from llama_corral.presets.options.describe import allowed, default_text, summary
from llama_corral.presets.options.option import Option, OptionReader
from llama_corral.presets.options.settings import GROUPS, Settings
from llama_corral.presets.options.table import (
    ENTRIES,
    FIELDS,
    FLAGS,
    KEYS,
    NOT_OVERLAID,
    OPTIONS,
    PRESET_ONLY,
    ROUTER_OWN,
    VARIABLES,
)

SPELLINGS = (Path(__file__).parent / "llama_server_spellings.txt").read_text(encoding="utf-8").split("\n\n")
"""All flags and variables of llama-server, of the older generation in the requirements and of the current one."""
PRESENT_FLAGS, EARLIER_FLAGS, ENVIRONMENT = (part.split()[1:] for part in SPELLINGS)

VALUES = {
    "tensor_split": "3,1",
    "spec_synth_rates": "0.5,0.25",
    "logit_bias": "15043-1.5",
    "override_kv": "tokenizer.ggml.add_bos_token=bool:false",
    "samplers": "top_k;temperature",
    "lora_scaled": "a.gguf:0.5,b.gguf:-1",
    "control_vector_scaled": "a.gguf:2",
    "control_vector_layer_range": "1 4",
    "sampling_seq": "kt",
    "api_prefix": "/llm",
}


def sample(entry: Option | object) -> str:
    """Return a value that the option accepts."""
    if isinstance(entry, Option):
        words = allowed(entry.field)
        if entry.field in VALUES:
            return VALUES[entry.field]
        if words.startswith("one of "):
            return words.removeprefix("one of ").split(", ")[-1]
        if "JSON" in words:
            return '{"a":1}'
        return default_text(entry.field) or "1"
    return "kt"


@pytest.mark.parametrize("flag", [*PRESENT_FLAGS, *EARLIER_FLAGS])
def test_every_flag_of_both_generations_is_accepted(flag: str) -> None:
    entry = FLAGS[flag].entry
    if isinstance(entry, Removed):
        with pytest.raises(ConfigError, match="this option was removed"):
            read_argv([flag, "1"])
        return
    hint = entry.hint
    arguments = sample(entry).split(" ")[: len(hint.split())] if hint else []
    layer = read_argv([flag, *arguments])
    assert layer or flag in {f for item in SHORTHANDS for f in item.negated}
    check(layer)


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_every_variable_of_both_generations_is_accepted(name: str) -> None:
    entry = VARIABLES[name].entry
    if isinstance(entry, Removed):
        with pytest.raises(ConfigError, match=name):
            read_environment({name: "1"})
        return
    text = sample(entry) if entry.hint else "on"
    layer = read_environment({name: text})
    assert {given.where for given in layer.values()} == {f"environment variable {name}"}


def test_no_two_options_share_a_spelling() -> None:
    spelled = [flag for entry in ENTRIES for flag in (*entry.flags, *getattr(entry, "negated", ()))]
    spelled += [flag for entry in ENTRIES for flag in getattr(entry, "older", ())]
    assert sorted(spelled) == sorted(set(spelled))
    assert len(KEYS) == len(set(KEYS))


@pytest.mark.parametrize("field", OPTIONS)
def test_every_option_has_a_description(field: str) -> None:
    option = OPTIONS[field]
    assert option.field == field, "a field is named after the last long spelling"
    assert summary(field).strip(" .") == summary(field) != ""
    assert allowed(field)
    assert not (option.unsupported and option.notice)
    assert option.is_switch == ("bool" in str(FIELDS[field].annotation)) or option.hint == "0|1"
    if option.is_switch and option.reader not in (OptionReader.PROGRAM, OptionReader.PRESET):
        assert option.negated or option.flags[-1].startswith("--no-"), "a higher layer must be able to turn it off"


def test_every_default_is_valid_when_typed() -> None:
    plain = Settings.of()
    for field in OPTIONS:
        text = default_text(field)
        if text and field != "dry_sequence_breaker":
            assert check({field: ConfigValue(text, "test")}).value(field) == plain.value(field), field


def test_settings_are_frozen_and_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTX_SIZE", "1")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    settings = Settings.of(model="x.gguf")
    assert settings.context.ctx_size == 0
    with pytest.raises(ValueError, match="frozen"):
        settings.context.ctx_size = 5  # type: ignore[misc]
    with pytest.raises(ValueError, match="no_such_option"):
        Settings.of(no_such_option=1)


def test_each_option_is_in_one_group() -> None:
    fields = [field for group in GROUPS for field in group.model_fields]
    assert sorted(fields) == sorted(OPTIONS)


def test_options_of_the_router_only() -> None:
    assert {
        "api_key",
        "api_key_file",
        "models_autoload",
        "models_dir",
        "models_max",
        "models_preset",
        "ssl_cert_file",
        "ssl_key_file",
    } <= ROUTER_OWN
    assert ROUTER_OWN | {"model", "alias", "hf_repo", "log_file"} | PRESET_ONLY <= NOT_OVERLAID
    assert {"ctx_size", "metrics", "slots", "temperature", "api_prefix", "offline"}.isdisjoint(NOT_OVERLAID)
    assert {
        "load_on_startup",
        "stop_timeout",
        "pin",
        "ttl",
        "base",
        "system_prompt",
        "dedup_cache_models",
    } <= PRESET_ONLY


@pytest.mark.parametrize("field", sorted(PRESET_ONLY))
def test_a_preset_only_key_is_not_a_flag(field: str) -> None:
    key = OPTIONS[field].name
    assert key in KEYS
    with pytest.raises(ConfigError, match=f"unknown option '--{key}'"):
        read_argv([f"--{key}", "1"])


# --- what this version can't do


UNSUPPORTED = [field for field, option in OPTIONS.items() if option.unsupported]


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_an_unsupported_option_is_refused_with_its_reason(field: str) -> None:
    option = OPTIONS[field]
    text = {"reasoning_format": "deepseek", "spec_type": "ngram-mod,draft-dflash"}.get(field)
    text = text or ("true" if option.is_switch else '{"a":1}' if "JSON" in allowed(field) else "7")
    with pytest.raises(ConfigError) as refusal:
        resolve({field: ConfigValue(text, f"--{option.name}")})
    assert str(refusal.value) == f"--{option.name}: not supported: {option.unsupported}"
    check({field: ConfigValue(text, "models.ini:3")})  # a presets file with it can still be read


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_an_unsupported_option_may_have_its_default(field: str) -> None:
    resolve({field: ConfigValue(default_text(field), "test")})


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-context-shift"],
        ["--spec-type", "none"],
        ["--no-mmproj"],
        ["--reasoning-format", "none"],
        ["--reasoning-budget", "-1"],
        ["--no-ui-mcp-proxy"],
        ["--no-agent"],
        ["--no-slots", "--no-jinja", "--cache-ram", "0", "--sleep-idle-seconds", "1"],
        ["--no-cache-idle-slots", "--ctx-checkpoints", "0"],
    ],
    ids=" ".join,
)
def test_supported_values_are_accepted(argv: list[str]) -> None:
    assert unused_option_notices(resolve(read_argv(argv))) == []


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["--perf"], "--perf"),
        (["--defrag-thold", "0.1"], "--defrag-thold"),
        (["--threads-http", "4"], "--threads-http"),
        (["--backend_sampling"], "--backend-sampling"),
        (["--draft-p-split", "0.2"], "--draft-p-split"),
        (["--prio", "2"], "--prio"),
    ],
)
def test_a_setting_without_effect_gets_a_notice(argv: list[str], option: str) -> None:
    (notice,) = unused_option_notices(resolve(read_argv(argv)))
    assert notice.startswith(f"{option} has no effect: ")


@pytest.mark.parametrize("argv", [[], ["--no-perf"], ["--cache-ram", "8192"], ["--fit", "on"]], ids=str)
def test_a_default_gets_no_notice(argv: list[str]) -> None:
    assert unused_option_notices(resolve(read_argv(argv))) == []


@pytest.mark.parametrize("removed", REMOVED, ids=lambda removed: removed.flags[-1])
def test_a_removed_option_says_what_to_use_instead(removed: Removed) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_argv([removed.flags[-1]])
    assert str(refusal.value) == f"{removed.flags[-1]}: this option was removed: {removed.instead}"


def test_the_option_table_imports_little() -> None:
    """Modules that only help or the server needs must not be imported with the table."""
    code = "import sys, llama_corral.presets.merge; print({'rich', 'aiohttp', 'llama_cpp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- nothing is swallowed


PACKAGES = Path(sys.modules[Settings.__module__].__file__ or "").parents[2]
TABLE = {
    "option",
    "values",
    "settings",
    "table",
    "layer",
    "merge",
    "describe",
    "help",
    "reference",
    "render",
    "deprecated",
}
READ_ELSEWHERE = {"escape"}
"""Options that are applied while layers are read: the texts in the settings are already unescaped."""


def sources(*packages: str) -> str:
    files = [path for package in packages for path in (PACKAGES / package).rglob("*.py")]
    return "\n".join(path.read_text() for path in files if path.stem not in TABLE and path.parent.name != "options")


@pytest.mark.parametrize("reader", OptionReader, ids=lambda reader: reader.value)
def test_every_option_is_used_or_has_a_reason(reader: OptionReader) -> None:
    packages = {OptionReader.ROUTER: ["router"], OptionReader.WORKER: ["worker"]}.get(
        reader, ["router", "worker", "common/tools"]
    )
    text = sources("common/base", "common/hub", "common/web", "presets", *packages)
    mute = [
        field
        for field, option in OPTIONS.items()
        if option.reader is reader and not option.unsupported and not option.notice
        if not re.search(rf"\.{field}\b", text)
    ]
    assert set(mute) <= READ_ELSEWHERE


@pytest.mark.parametrize(
    ("text", "value"), [("auto", -1), ("-1", -1), ("off", 0), ("0", 0), ("40G", 40 << 30), ("5 MiB", 5 << 20)]
)
def test_limits_of_memory(text: str, value: int) -> None:
    assert resolve(read_argv(["--models-memory", text])).router.models_memory == value


def test_invalid_limits_of_memory() -> None:
    with pytest.raises(ConfigError, match="auto, off, or a number of bytes"):
        resolve(read_argv(["--models-memory", "much"]))


NEGATIVE = {
    "models_max": 0,
    "models_queue": 0,
    "models_ttl": 0.0,
    "models_memory_margin": 0,
    "worker_timeout": 0.0,
    "timeout": 0,
    "cache_reuse": 0,
    "swa_checkpoints": 0,
    "kv_unified_per_slot": 0,
    "ubatch_size": 0,
    "log_verbosity": 0,
    "mtmd_batch_max_tokens": 0,
    "max_queue": 0,
    "concurrency": 0,
    "dry_base": 1.75,
    "slot_prompt_similarity": -1.0,
    "poll": -1,
    "main_gpu": -1,
    "keep": -1,
    "n_predict": -1,
    "cache_ram": -1,
    "parallel": -1,
    "sse_ping_interval": -1,
    "sleep_idle_seconds": -1,
    "embd_normalize": -1,
    "reasoning_budget": -1,
}
"""What -1 means, where llama-server accepts it or 0 means that there is no limit."""


@pytest.mark.parametrize(("field", "value"), NEGATIVE.items())
def test_minus_one_is_accepted_where_llama_server_accepts_it(field: str, value: float) -> None:
    assert check({field: ConfigValue("-1", "test")}).value(field) == value


@pytest.mark.parametrize("field", ["dry_base", "ubatch_size", "mtmd_batch_max_tokens", "models_memory_margin"])
def test_zero_is_accepted_where_llama_server_accepts_it(field: str) -> None:
    assert check({field: ConfigValue("0", "test")}).value(field) == NEGATIVE[field]


def test_a_physical_batch_of_zero_is_the_logical_batch() -> None:
    for argv in (["-ub", "0"], ["-ub", "-1"], ["-ub", "0", "--embeddings"]):
        shape = context_shape(resolve(read_argv([*argv, "-b", "300"])))
        assert (shape.n_batch, shape.n_ubatch) == (300, 300)
