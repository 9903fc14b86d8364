"""Variables outside the environment: `.env`, Docker's and systemd's secrets; and that keys and tokens are not shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.worker_reports import CONTROL_FD_ENV
from llama_corral.presets.layer import ConfigValue
from llama_corral.presets.merge import read_argv, resolve, settings_from, worker_settings
from llama_corral.presets.options.settings import GROUPS_BY_NAME, Settings
from llama_corral.presets.options.table import OPTIONS
from llama_corral.presets.process_sources import file_notices, process_sources, read_dotenv, read_secrets


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_secrets(here: Path, name: str, **files: str) -> Path:
    directory = here / name
    directory.mkdir()
    for file, text in files.items():
        (directory / file).write_text(text)
    return directory


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_from([], environ)
    return str(caught.value)


# --- precedence


def test_each_source_beats_the_ones_below(here: Path) -> None:
    text = "c = 6\nb = 6\nub = 6\nkeep = 6\nport = 6\nthreads = 6"
    with_secrets(here, "llama.cpp", **{"config.ini": text})
    docker = {f"LLAMA_ARG_{name}": "5" for name in ("CTX_SIZE", "BATCH", "UBATCH", "THREADS", "PORT")}
    systemd = {f"LLAMA_ARG_{name}": "4" for name in ("CTX_SIZE", "BATCH", "UBATCH", "PORT")}
    (here / ".env").write_text("LLAMA_ARG_CTX_SIZE=3\nLLAMA_ARG_BATCH=3\nLLAMA_ARG_UBATCH=3\n")
    environ = {
        "XDG_CONFIG_HOME": str(here),
        "LLAMA_CORRAL_SECRETS_DIR": str(with_secrets(here, "docker", **docker)),
        "CREDENTIALS_DIRECTORY": str(with_secrets(here, "systemd", **systemd)),
        "LLAMA_ARG_CTX_SIZE": "2",
        "LLAMA_ARG_BATCH": "2",
    }
    seen = settings_from(["-c", "1"], environ)
    assert (seen.context.ctx_size, seen.context.batch_size, seen.context.ubatch_size) == (1, 2, 3)
    assert (seen.http.port, seen.cpu.threads, seen.context.keep) == (4, 5, 6)


def test_files_that_set_options_are_named_without_values(here: Path) -> None:
    (here / ".env").write_text("LLAMA_API_KEY=secret\nLLAMA_ARG_CTX_SIZE=3\nOTHER=1\n")
    directory = with_secrets(here, "docker", hf_token="secret")
    environ = {"LLAMA_CORRAL_SECRETS_DIR": str(directory), "LLAMA_ARG_PORT": "1"}
    assert file_notices(process_sources([], environ)) == [".env sets api_key, ctx_size", f"{directory} sets hf_token"]
    (here / ".env").unlink()
    assert file_notices(process_sources([], {"LLAMA_ARG_PORT": "1"})) == []


def test_options_that_exclude_each_other_do_so_between_sources(here: Path) -> None:
    (here / ".env").write_text("LLAMA_ARG_CHAT_TEMPLATE=chatml\nLLAMA_ARG_MLOCK=1\n")
    seen = settings_from(["--no-mmap"], {"LLAMA_ARG_CHAT_TEMPLATE_FILE": "x.jinja"})
    assert seen.options_set == {"chat_template_file", "load_mode"}
    assert seen.load.load_mode == "mlock"


# --- .env


def test_the_dotenv_file_may_belong_to_another_program(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = here / ".env"
    path.write_text(
        "# a comment\n\nDATABASE_URL=postgres://x\nPORT=1\nnot a line at all\nexport LLAMA_ARG_CTX_SIZE='512' # ours\n"
        'LLAMA_ARG_UNHEARD_OF=1\nLLAMA_ARG_THREADS=\nLLAMA_ARG_BATCH\nLLAMA_ARG_NO_JINJA=1\nHF_TOKEN="hf_${HOME}"\n'
    )
    assert {field: given.text for field, given in read_dotenv(path).items()} == {
        "ctx_size": "512",
        "jinja": "false",
        "hf_token": "hf_${HOME}",
    }
    assert not caplog.records


def test_an_error_names_the_line_of_the_dotenv_file(here: Path) -> None:
    (here / ".env").write_text("OTHER='two\nlines'\n\n# a comment\n\nLLAMA_ARG_PORT=many\n")
    assert refusal({}).startswith(".env:6: LLAMA_ARG_PORT: invalid value 'many': expected an integer from 0 to 65535")
    (here / ".env").write_text("LLAMA_ARG_JINJA=yes\n")
    assert refusal({}).startswith(".env:1: LLAMA_ARG_JINJA: invalid value 'yes': expected on or off")


@pytest.mark.parametrize("content", [None, b"LLAMA_ARG_CTX_SIZE=\xff"])
def test_an_unreadable_dotenv_file_is_no_reason_to_stop(here: Path, content: bytes | None) -> None:
    path = here / ".env"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert read_dotenv(path) == {}


# --- files with secrets


@pytest.mark.parametrize("name", ["LLAMA_API_KEY", "llama_api_key"])
@pytest.mark.parametrize("variable", ["CREDENTIALS_DIRECTORY", "LLAMA_CORRAL_SECRETS_DIR"])
def test_a_file_with_a_secret_is_named_like_its_variable(here: Path, name: str, variable: str) -> None:
    directory = with_secrets(here, "secrets", **{name: "swordfish\n", "database_password": "x", "hf_token": ""})
    (here / "secrets" / "..data").mkdir()
    seen = settings_from([], {variable: str(directory)})
    assert [key.get_secret_value() for key in seen.http.api_key] == ["swordfish"]
    assert seen.options_set == {"api_key"}


def test_an_error_names_the_file_with_the_secret(here: Path) -> None:
    directory = with_secrets(here, "secrets", llama_arg_port="many")
    message = f"secrets file {directory}/llama_arg_port: invalid value 'many': expected an integer from 0 to 65535"
    assert refusal({"CREDENTIALS_DIRECTORY": str(directory)}) == message
    (directory / "hf_token").write_bytes(b"\xff")
    assert refusal({"CREDENTIALS_DIRECTORY": str(directory)}) == f"{directory}/hf_token: not UTF-8 text"
    (directory / "hf_token").unlink()
    (directory / "hf_token").mkdir()
    assert refusal({"CREDENTIALS_DIRECTORY": str(directory)}).endswith("/hf_token: this is a directory, not a file")
    assert refusal({"LLAMA_CORRAL_SECRETS_DIR": "/nowhere"}).endswith("/nowhere: no such directory")


def test_a_directory_that_is_missing_has_no_secrets() -> None:
    assert read_secrets(Path("/nowhere")) == {}


# --- workers of a router


def test_a_routers_worker_takes_all_but_the_routers_own_options(here: Path) -> None:
    (here / ".env").write_text("LLAMA_API_KEY=swordfish\nLLAMA_ARG_MODELS_MAX=1\nLLAMA_ARG_CTX_SIZE=512\n")
    environ = {CONTROL_FD_ENV: "3"}
    environ["CREDENTIALS_DIRECTORY"] = str(with_secrets(here, "systemd", llama_arg_api_key_file="x", hf_token="hf_x"))
    assert settings_from([], environ).options_set == {"ctx_size", "hf_token"}
    assert settings_from([], {}).options_set == {"ctx_size", "api_key", "models_max"}


def test_the_router_expects_a_worker_with_these_values(here: Path) -> None:
    (here / ".env").write_text("LLAMA_ARG_CTX_SIZE=512\nLLAMA_ARG_BATCH=64\n")
    seen = worker_settings({"batch_size": ConfigValue("32", "models.ini:3")}, {"LLAMA_ARG_UBATCH": "16"})
    assert (seen.context.ctx_size, seen.context.batch_size, seen.context.ubatch_size) == (512, 32, 16)


# --- keys and tokens


def test_keys_and_tokens_are_not_shown(
    here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    directory = with_secrets(here, "systemd", hf_token="swordfish")
    layer = read_argv(["--api-key", "swordfish"])
    seen = settings_from(["--api-key", "swordfish"], {"CREDENTIALS_DIRECTORY": str(directory)})
    assert seen.main_model.hf_token.get_secret_value() == "swordfish"
    for shown in (repr(seen), str(seen), str(seen.http), seen.model_dump_json(), repr(layer), read_secrets(directory)):
        assert "swordfish" not in str(shown)
    assert "CommandLineSource" in caplog.text, "pydantic-settings logs the values of all sources"
    assert "swordfish" not in caplog.text


def test_every_secret_option_has_a_secret_type() -> None:
    for field, option in OPTIONS.items():
        kind = str(next(group for group in GROUPS_BY_NAME.values() if field in group.model_fields).model_fields[field])
        assert ("SecretStr" in kind) == option.secret, field


def test_an_error_about_a_secret_does_not_show_it() -> None:
    with pytest.raises(ValueError, match="valid tuple") as caught:
        Settings.of(api_key={"swordfish": 1})
    assert "swordfish" not in str(caught.value)


# --- groups


def test_no_group_has_the_name_of_an_option() -> None:
    assert not GROUPS_BY_NAME.keys() & OPTIONS.keys()


def test_a_copy_has_other_values_and_the_original_keeps_its_own() -> None:
    seen = resolve(read_argv(["--chat-template", "chatml", "-c", "5"]))
    copy = seen.with_options({"chat_template_file": "x", "port": 9}, unset=["chat_template"])
    assert (copy.chat.chat_template, copy.chat.chat_template_file, copy.http.port) == ("", "x", 9)
    assert copy.options_set == {"chat_template_file", "port", "ctx_size"}
    assert seen.options_set == {"chat_template", "ctx_size"}
    assert seen.chat.chat_template == "chatml"
