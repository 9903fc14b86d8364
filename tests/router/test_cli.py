"""Test the command `llama-corral`: printed texts, serving one model, exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from programs import Program, Programs, clean_environment, wait_until

COMMAND = str(Path(sys.executable).with_name("llama-corral"))
Start = Callable[..., Program]


def ask(tmp_path: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = clean_environment(tmp_path / "home", env)
    return subprocess.run([COMMAND, *args], capture_output=True, text=True, env=environ, timeout=60)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--help", "--models-preset"),
        ("-h", "LLAMA_ARG_MODELS_DIR"),
        ("--version", "llama-corral"),
        ("--completion-bash", "complete"),
        ("--cache-list", "number of models in cache: 0"),
        ("--list-devices", "Available devices:"),
    ],
)
def test_printed_texts(flag: str, said: str, tmp_path: Path) -> None:
    result = ask(tmp_path, flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert said in result.stdout


def test_output_pipe_closed_early_is_no_error(tmp_path: Path) -> None:
    environ = clean_environment(tmp_path / "home", {})
    result = subprocess.run(f"{COMMAND} --help | head -1", shell=True, capture_output=True, text=True, env=environ)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (["--bogus"], {}, "unknown option '--bogus'"),
        (["--port", "x"], {}, "--port: invalid value 'x'"),
        (["--port"], {}, "--port: the value is missing"),
        (["stray"], {}, "unexpected argument 'stray'"),
        ([], {"LLAMA_ARG_PORT": "99999"}, "environment variable LLAMA_ARG_PORT"),
        (["--models-preset", "/nowhere.ini"], {}, "/nowhere.ini"),
        (["--models-dir", "/nowhere"], {}, "/nowhere"),
        (["--host", "192.0.2.1", "--port", "1"], {}, "192.0.2.1:1"),
        (["--api-key-file", "/nowhere"], {}, "--api-key-file"),
        (["--log-file", "/nowhere/log"], {}, "--log-file"),
        (["--path", "/nowhere"], {}, "--path"),
        (["--ssl-key-file", "/nowhere"], {}, "--ssl-cert-file"),
        (["-hf", "no user and no repo"], {}, "no user and no repo"),
    ],
)
def test_user_errors_are_one_line(args: list[str], env: dict[str, str], said: str, tmp_path: Path) -> None:
    result = ask(tmp_path, *args, **env)
    assert result.returncode == 1
    assert result.stdout == ""
    *warnings, error = result.stderr.splitlines()
    assert error.startswith("llama-corral: ")
    assert said in error
    assert [line for line in warnings if not re.match(r"[-\d]{10} [:.\d]{12} warning: no model found", line)] == []


def test_error_in_a_presets_file_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "presets.ini"
    file.write_text("version = 1\n\n[m]\nmodel = x.gguf\nctx-sise = 5\n")
    result = ask(tmp_path, "--models-preset", str(file), "--presets-strict")
    assert result.returncode == 1
    assert f"{file}:5: " in result.stderr
    assert "ctx-size" in result.stderr


def test_more_models_at_startup_than_models_max(tmp_path: Path) -> None:
    file = tmp_path / "presets.ini"
    file.write_text("[*]\nload-on-startup = on\n[a]\nmodel = x.gguf\n[b]\nmodel = x.gguf\n")
    result = ask(tmp_path, "--models-preset", str(file), "--models-max", "1", "--port", "0")
    assert result.returncode == 1
    assert "exceeds models_max (1)" in result.stderr.splitlines()[-1]


def test_busy_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = ask(tmp_path, "--port", str(port))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"llama-corral: 127.0.0.1:{port} is already in use")


def test_without_models_the_log_explains_how_to_name_one(start_gateway: Start) -> None:
    gateway = start_gateway()
    assert gateway.models() == {}
    assert "--demo" in gateway.log_text
    assert "listening on http://127.0.0.1:" in gateway.log_text
    assert gateway.stop() == 0


def test_one_model_needs_no_router(start_gateway: Start, models: Path) -> None:
    flags = start_gateway(
        "--model", str(models / "tiny-llama.gguf"), "--alias", "tiny", "--parallel", "2", "--ctx-size", "512"
    )
    environment = start_gateway("--ctx-size", "512", env={"LLAMA_ARG_MODEL": str(models / "tiny-llama.gguf")})
    for program in (flags, environment):
        pid = program.process.pid
        assert program.client.get("/props").json()["model_path"].endswith("tiny-llama.gguf")
        assert [process.pid for process in program.family()] == [pid], "it is the worker, not its parent"
        assert program.stop(signal.SIGINT) == 0
    assert flags.argv[0] == COMMAND


@pytest.mark.parametrize("moment", ["router.process.zygote_start.start_early", "router.command.run"])
def test_an_interrupt_during_the_start_prints_nothing(tmp_path: Path, moment: str) -> None:
    module, name = f"llama_corral.{moment}".rsplit(".", 1)
    program = (
        f"import os, signal, {module} as module\n"
        "from llama_corral.router.cli import main\n"
        f"module.{name} = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "main()"
    )
    environ = clean_environment(tmp_path / "home", {})
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60)
    assert (result.returncode, result.stderr) == (130, "")


def test_a_default_model_may_have_any_spelling_that_requests_may_have(start_gateway: Start) -> None:
    warning = "no model has this name or alias now"
    sections = "[tiny]\nmodel = {models}/tiny-llama.gguf\n"
    assert warning not in start_gateway("--default-model", "tiny:latest", presets=sections).log_text
    assert warning in start_gateway("--default-model", "tin", presets=sections).log_text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_router_and_workers(number: int, start_gateway: Start) -> None:
    gateway = start_gateway(presets="[tiny]\nmodel = {models}/tiny-llama.gguf\nctx-size = 256\nload-on-startup = on\n")
    gateway.wait_for_status("tiny", "loaded")
    assert gateway.stop(number) == 0
    wait_until(lambda: not gateway.family(), "the worker to end")


def test_api_keys_of_the_environment_do_not_reach_the_worker(start_gateway: Start) -> None:
    key = {"Authorization": "Bearer from-flag"}
    presets = "[tiny]\nmodel = {models}/tiny-llama.gguf\nctx-size = 256\n"
    gateway = start_gateway("--api-key", "from-flag", presets=presets, env={"LLAMA_API_KEY": "from-environment"})
    response = gateway.client.post("/tokenize", json={"model": "tiny", "content": "a"}, headers=key)
    assert response.status_code == 200
    assert gateway.client.get("/models").status_code == 401
    assert "from-flag" not in gateway.log_text


@pytest.mark.skipif(os.name != "posix", reason="pipes have no paths")
def test_api_keys_from_a_pipe_are_required_beyond_this_machine(start_gateway: Start, tmp_path: Path) -> None:
    """A pipe gives its text once, and a second reading would not end."""
    os.mkfifo(pipe := tmp_path / "keys")
    gateway = start_gateway("--host", "0.0.0.0", "--api-key-file", str(pipe), wait="nothing")
    Thread(target=pipe.write_text, args=("secret\n",), daemon=True).start()
    gateway.wait("ready")
    assert gateway.client.get("/models").status_code == 401
    assert gateway.client.get("/models", headers={"X-Api-Key": "secret"}).status_code == 200
    assert "without an API key" not in gateway.log_text
    assert gateway.stop() == 0


def test_command_line_overrides_the_environment_with_a_warning(start_gateway: Start) -> None:
    gateway = start_gateway(env={"LLAMA_ARG_HOST": "192.0.2.1"})
    assert "LLAMA_ARG_HOST is set, but --host overrides it" in gateway.log_text


def test_unix_socket(programs: Programs, tmp_path: Path) -> None:
    path = str(tmp_path / "corral.sock")
    gateway = programs.start([COMMAND, "--host", path], address=path, wait="nothing")
    wait_until(lambda: "listening on unix://" in gateway.log_text, "the socket to be there")
    assert gateway.client.get("/props").json()["role"] == "router"
    assert gateway.stop() == 0
    assert not os.path.exists(path)


def test_demo(start_gateway: Start) -> None:
    gateway = start_gateway("--demo")
    assert len(gateway.models()) >= 2


def test_old_python_is_one_line(tmp_path: Path) -> None:
    """The version check comes before any code that an older Python cannot parse."""
    code = "import sys; sys.version_info = (3, 9); sys.version = '3.9.1 (x)'; import llama_corral.router.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "llama-corral needs Python 3.11 or newer, and this is 3.9.1\n"
