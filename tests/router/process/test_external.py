"""Test external programs instead of workers (`cmd`): parsing of presets, and programs under the real router."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.backends import Backend
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import load_presets
from llama_corral.router.process import external_shim
from llama_corral.router.proxy.model_field import with_model, with_model_in_form
from local_hub import LocalHub
from programs import Program, Programs, free_port, wait_until
from router_tools import is_alive

FAKE_BACKEND = str(Path(__file__).resolve().parents[2] / "support" / "fake_backend.py")
FAKE = shlex.join([sys.executable, FAKE_BACKEND, "${PORT}"])

# -- from files to presets -------------------------------------------------------------------------------------------


def read(directory: Path, text: str, *, is_strict: bool = False, **given: Any) -> dict[str, Preset]:
    path = directory / "presets.ini"
    path.write_text(text)
    environ = {"HOME": str(directory), "LLAMA_CACHE": str(directory / "none"), "TOKEN": "a b"}
    return load_presets(Settings.of(models_preset=str(path), presets_strict=is_strict), {}, environ, **given)


def backend(directory: Path, text: str) -> Backend:
    found = read(directory, f"[b]\n{text}\n")["b"].backend
    assert found is not None
    return found


def test_parsed_command_lines(tmp_path: Path) -> None:
    there = tmp_path / "a folder"
    there.mkdir()
    found = backend(
        there,
        "model = ${here}/m.gguf\n"
        "cmd = ${here}/serve -m ${MODEL} \"--name=${MODEL_ID} it\" --port ${PORT} --key ${env.TOKEN} '$(rm x)' ; why\n"
        "cmd-stop = stop ${PID} ${PORT}\n"
        'env = A=1 B="two words" C=${PORT}\n'
        "use-model-name = org/model\nmemory = 2G\ndevice-memory = 512M\nhealth = none\nload-timeout = 3.5\n"
        "proxy = http://[::1]:${PORT}/base/",
    )
    assert found == Backend(
        command=(
            f"{there}/serve",
            "-m",
            f"{there}/m.gguf",
            "--name=b it",
            "--port",
            "${PORT}",
            "--key",
            "a b",
            "$(rm x)",
        ),
        stop_command=("stop", "${PID}", "${PORT}"),
        environ=(("A", "1"), ("B", "two words"), ("C", "${PORT}")),
        address="[::1]:${PORT}",
        path="/base",
        health="",
        load_timeout=3.5,
        model_name="org/model",
        host_bytes=2 << 30,
        device_bytes=(512 << 20,),
    )


def test_a_section_with_a_command_needs_no_model_and_hides_its_variables(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "[*]\nctx-size = 64\nsystem-prompt = Hi\n[org/name:Q8_0]\ncmd = vllm serve\nenv = KEY=secret\nalias = v\n",
    )
    preset = found["org/name:Q8_0"]
    assert (preset.aliases, set(preset.layer)) == (("v",), {"alias"}), "no repository by its name, no options of ours"
    assert "cmd = vllm serve" in preset.ini_text
    assert "secret" not in preset.ini_text
    assert not preset.defaults


def test_a_worker_option_in_a_section_with_a_command_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path, "[b]\ncmd = serve\nctx-size = 64\npin = on\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/presets.ini:3: ctx-size: has no effect together with cmd"
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("cmd = serve 'x", "2: cmd: not a command line: No closing quotation"),
        ("cmd = serve ${MODEL}", r"2: cmd: \$\{MODEL\}: this section has no model file"),
        ("cmd = serve ${PROT}", r"2: cmd: \$\{PROT\}: unknown macro"),
        ("cmd = serve ${PID}", r"2: cmd: \$\{PID\}: unknown macro"),
        ("cmd = serve ${env.NOBODY}", r"\$\{env.NOBODY\}: this environment variable is not set"),
        ('cmd = ""', "does not say which model it is"),
        ("cmd = s\nenv = 1A=2", "3: env: expected NAME=VALUE, separated by spaces, found '1A'"),
        ("cmd = s\nproxy = https://127.0.0.1:1", "3: proxy: invalid value 'https://127.0.0.1:1': expected http://HOST"),
        ("cmd = s\nproxy = http://127.0.0.1", "3: proxy: invalid value"),
        ("cmd = s\nhealth = x", "3: health: invalid value 'x': expected a path, or none"),
        ("cmd = s\nload-timeout = 0", "3: load-timeout: invalid value '0'"),
        ("cmd = s\nmemory = much", "3: memory: invalid value 'much'"),
        ("cmd = s\nsystem-prompt = Hi", "3: system-prompt: not supported together with cmd"),
        ("model = x.gguf\nhealth = /up", "3: health: 'health' is only for sections with cmd"),
        ("cmd = s\n[c]\nbase = b", "4: base: 'b' has a cmd: only our own worker can serve several presets"),
        ("cmd = s\n[*]\ncmd = t", r"4: cmd: not allowed in \[\*\]"),
    ],
)
def test_invalid_sections_are_refused(tmp_path: Path, lines: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path, f"[b]\n{lines}\n", is_strict=True)


def test_a_downloaded_presets_file_cannot_run_programs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2: cmd: a downloaded presets file may not run programs"):
        read(tmp_path, "[b]\ncmd = rm\n", may_run_commands=False, is_strict=True)
    refused = read(tmp_path, "[b]\ncmd = rm\n", may_run_commands=False)["b"]
    assert (refused.backend, "cmd" in refused.ini_text) == (None, False)
    assert "may not run programs" in refused.unavailable
    assert read(tmp_path, "[b]\nmodel = x.gguf\n", may_run_commands=False)


def test_the_model_field_is_replaced() -> None:
    body = b'{"big": 1.0e400, "model" : "x", "text": "\\u00e9", "n": 12345678901234567890123}'
    assert with_model(body, "é") == (
        '{"big":1.0e400,"model":"é","text":"\\u00e9","n":12345678901234567890123}'.encode()
    )
    assert with_model(b"[1]", "y") == b"[1]"
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n'
    assert with_model_in_form(form, "multipart/form-data; boundary=b", "longer") == form.replace(
        b"x\r\n--", b"longer\r\n--"
    )
    assert with_model_in_form(b"--b--", "multipart/form-data; boundary=b", "y") == b"--b--"


# -- under the router ------------------------------------------------------------------------------------------------


@pytest.fixture
def start(programs: Programs) -> Callable[..., Program]:
    def start(presets: str, *args: str, **given: Any) -> Program:
        return programs.gateway(*args, presets=presets.replace("{fake}", FAKE), **given)

    return start


def chat(gateway: Program, model: str, **fields: Any) -> httpx.Response:
    return gateway.client.post("/v1/chat/completions", json={"model": model, "messages": [], **fields})


def test_a_program_has_the_states_of_a_worker(start: Callable[..., Program]) -> None:
    gateway = start(
        "[slow]\ncmd = {fake} loading=0.3 child\nalias = s\nenv = GREETING='good day' PORT_TOO=${PORT}\nmemory = 1M\n"
        "[tiny]\nmodel = {models}/tiny-llama.gguf\nthreads = 1\nctx-size = 256\n",
        *("--models-max", "1"),
    )
    assert gateway.models()["slow"]["status"]["args"][-3:] == ["${PORT}", "loading=0.3", "child"]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: chat(gateway, "s", temperature=0.5).json(), range(4)))
    assert len({answer["pid"] for answer in answers}) == 1
    answer = answers[0]
    assert (answer["path"], answer["body"]["model"], answer["body"]["temperature"]) == (
        "/v1/chat/completions",
        "s",
        0.5,
    )
    assert chat(gateway, "slow").json()["peer"] == chat(gateway, "slow").json()["peer"], "the connection is kept"
    entry = gateway.models()["slow"]
    assert entry["status"]["value"] == "loaded"
    assert entry["memory"]["expected"] == {"host": 1 << 20, "device": 0, "devices": {}}
    port = entry["status"]["args"][-3]
    environ = gateway.client.get("/props", params={"model": "slow"}).json()["environ"]
    assert (environ["GREETING"], environ["PORT_TOO"]) == ("good day", port)
    assert not [name for name in environ if "CONTROL" in name]
    with gateway.client.stream("POST", "/v1/chat/completions", json={"model": "slow", "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data")]
    assert lines == [f'data: {{"n": {n}, "model": "slow"}}' for n in range(3)] + ["data: [DONE]"]
    assert "/slow] the backend listens" in gateway.log_text

    completion = {"model": "tiny", "prompt": "A", "n_predict": 1}
    assert gateway.client.post("/completion", json=completion).status_code == 200, "evicts it"
    gateway.wait_for_status("slow", "unloaded")
    assert "failed" not in gateway.models()["slow"]["status"], "SIGTERM was the router's wish"
    assert not is_alive(answer["pid"])
    assert chat(gateway, "slow").json()["pid"] != answer["pid"]
    wait_until(lambda: gateway.status("tiny") == "unloaded", "tiny to leave")


def test_requests_have_the_programs_model_name_and_path(start: Callable[..., Program]) -> None:
    gateway = start(
        "[one]\ncmd = {fake} base=/deep\nproxy = http://127.0.0.1:${PORT}/deep\nuse-model-name = org/one\n",
        env={"LLAMA_ARG_API_PREFIX": "/up"},
        wait="nothing",
    )
    wait_until(lambda: gateway_answers(gateway, "/up/health"), "the gateway")
    answer = gateway.client.post("/up/v1/completions?x=1", json={"model": "one", "prompt": "A"}).json()
    assert answer["path"] == "/deep/v1/completions?x=1"
    assert answer["raw"] == '{"model":"org/one","prompt":"A"}'
    assert int(answer["headers"]["Content-Length"]) == len(answer["raw"])
    form = gateway.client.post("/up/v1/audio/transcriptions", data={"model": "one"}, files={"file": b"\0\1"}).json()
    assert "\r\n\r\norg/one\r\n" in form["form"]


def gateway_answers(gateway: Program, path: str) -> bool:
    try:
        return gateway.client.get(path).status_code == 200
    except httpx.TransportError:
        return False


MESSAGES = [{"role": "user", "content": "Hi"}]
ANSWERS_WITH_A_NAME = [
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 3, "stream": True}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3, "stream": True}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3}),
    ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": 3}}),
]


def test_our_own_worker_as_an_external_program(start: Callable[..., Program], programs: Programs) -> None:
    command = shlex.join(programs.worker_command("tiny-llama.gguf"))
    gateway = start(f"[foreign]\ncmd = {command} --port ${{PORT}} -t 1 -c 512 --alias inner\nuse-model-name = inner\n")
    body = {"model": "foreign", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": False}
    answer = gateway.client.post("/v1/chat/completions", json=body).json()
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("foreign", 4)
    body = {"model": "foreign", "prompt": "A", "max_tokens": 3, "stream": True}
    with gateway.client.stream("POST", "/v1/completions", json=body) as stream:
        *chunks, last = [line for line in stream.iter_lines() if line]
    assert last == "data: [DONE]"
    assert {json.loads(chunk[6:])["model"] for chunk in chunks} == {"foreign"}
    for path, body in ANSWERS_WITH_A_NAME:
        with gateway.client.stream("POST", path, json={"model": "foreign", **body}) as stream:
            told = stream.read().decode()
        assert '"inner"' not in told, path
        assert '"foreign"' in told, path
    assert gateway.models()["foreign"]["memory"]["measured"]["host"] > 1 << 20
    assert gateway.client.post("/models/unload", json={"model": "foreign"}).status_code == 200
    gateway.wait_for_status("foreign", "unloaded")
    assert "failed" not in gateway.models()["foreign"]["status"]


@pytest.mark.parametrize(
    ("lines", "status", "told"),
    [
        ("cmd = {fake} code=4", 500, "code 4; its last lines: the backend has no mind to start"),
        ("cmd = {fake} code=0", 500, "it ended before it was ready"),
        (
            "cmd = {fake} mute\nload-timeout = 0.3",
            500,
            "not ready within 0.3 s (load-timeout): GET /health answers 503",
        ),
        ("cmd = /no/such/program", 500, "/no/such/program: No such file or directory"),
    ],
)
def test_loads_that_fail(start: Callable[..., Program], lines: str, status: int, told: str) -> None:
    gateway = start(f"[bad]\n{lines}\n")
    refused = chat(gateway, "bad")
    assert refused.status_code == status
    assert told in refused.json()["error"]["message"]
    gateway.wait_for_status("bad", "unloaded")
    assert gateway.models()["bad"]["status"]["failed"]
    wait_until(lambda: len(gateway.family()) <= 2, "its end")  # the router and its zygote


def test_programs_that_die(start: Callable[..., Program]) -> None:
    gateway = start("[die]\ncmd = {fake} die\n[live]\ncmd = {fake}\n")
    with gateway.client.stream("POST", "/v1/chat/completions", json={"model": "die", "stream": True}) as stream:
        told = [line for line in stream.iter_lines() if line.startswith("data")]
    assert "ended in the middle of its answer" in told[-1]
    wait_until(lambda: gateway.models()["die"]["status"].get("exit_code") == 3, "its exit code")
    os.kill(chat(gateway, "live").json()["pid"], signal.SIGKILL)
    wait_until(lambda: gateway.models()["live"]["status"].get("failed"), "its end to be known")
    assert "SIGKILL" in gateway.models()["live"]["status"]["error"]
    assert chat(gateway, "live").status_code == 200, "started again"


@pytest.mark.parametrize("flag", ["broken", "hangs-up"])
def test_a_healthy_program_that_only_fails_is_restarted_and_backs_off(start: Callable[..., Program], flag: str) -> None:
    gateway = start(f"[x]\ncmd = {{fake}} {flag}\nrestart-after-errors = 2\n")

    def fail(model: str, status: int) -> None:
        assert chat(gateway, model).status_code == status

    status = 502 if flag == "hangs-up" else 500
    fail("x", status)
    assert gateway.models()["x"]["status"]["errors"] == 1
    pid = gateway.models()["x"]["status"]["args"]
    fail("x", status)
    wait_until(lambda: gateway.models()["x"]["status"].get("failed"), "the program to be stopped")
    assert f"its last 2 answers were errors (HTTP {status})" in gateway.models()["x"]["status"]["error"]
    assert "(restart-after-errors)" in gateway.log_text
    fail("x", status)
    assert gateway.models()["x"]["status"]["args"] != pid, "the next request starts it again"
    fail("x", status)
    wait_until(lambda: gateway.models()["x"]["status"].get("failures") == 2, "the second failure")
    refused = chat(gateway, "x")
    assert (refused.status_code, "failed 2 times in a row" in refused.text) == (503, True)
    assert int(refused.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_program_that_breaks_off_its_answers_is_restarted(start: Callable[..., Program], is_stream: bool) -> None:
    gateway = start("[x]\ncmd = {fake} cuts\nrestart-after-errors = 2\n")
    for errors in (1, 2):
        answer = chat(gateway, "x", stream=is_stream)
        assert answer.status_code == (200 if is_stream else 502)
        assert "model 'x' ended in the middle of its answer" in answer.text
        if errors == 1:
            assert gateway.models()["x"]["status"]["errors"] == 1
    wait_until(lambda: gateway.models()["x"]["status"].get("failed"), "the program to be stopped")
    assert "its last 2 answers were errors (HTTP 502)" in gateway.models()["x"]["status"]["error"]


def test_the_log_has_the_error_with_which_a_program_ends_a_stream(start: Callable[..., Program]) -> None:
    gateway = start("[x]\ncmd = {fake} fails\n")
    assert chat(gateway, "x", stream=True).text.endswith('data: {"error": {"message": "out of ideas"}}')
    wait_until(lambda: "out of ideas" in gateway.log_text, "the log of the failure")


def test_a_program_gets_the_default_model_in_every_dialect(start: Callable[..., Program]) -> None:
    gateway = start("[x]\ncmd = {fake}\n", "--default-model", "x")
    for path in ("/v1/chat/completions", "/api/chat"):
        assert gateway.client.post(path, json={"messages": [{}]}).json()["body"]["model"] == "x", path
    form = gateway.client.post("/v1/audio/transcriptions", files={"file": b"a\r\n--b"}).json()["form"]
    assert 'form-data; name="model"\r\n\r\nx\r\n--' in form
    assert 'name="file"' in form
    assert form.count("form-data") == 2


def test_answers_that_are_no_faults_do_not_restart_a_program(start: Callable[..., Program]) -> None:
    gateway = start(
        "[unable]\ncmd = {fake} broken=501\nrestart-after-errors = 2\n"
        "[mixed]\ncmd = {fake} broken=500/400\nrestart-after-errors = 2\n"
        "[allowed]\ncmd = {fake} broken\nrestart-after-errors = 0\n"
    )
    for model in ("unable", "mixed", "allowed"):
        told = [chat(gateway, model).status_code for _ in range(6)]
        assert told == {"unable": [501] * 6, "mixed": [500, 400] * 3, "allowed": [500] * 6}[model]
        assert gateway.status(model) == "loaded"


def test_ways_to_stop(start: Callable[..., Program]) -> None:
    stop = shlex.join([sys.executable, "-c", "import os, sys; os.kill(int(sys.argv[1]), 9)"])
    gateway = start(
        "[deaf]\ncmd = {fake} deaf child\nstop-timeout = 0.2\n"
        f"[asked]\ncmd = {{fake}} deaf\ncmd-stop = {stop} ${{PID}}\n"
        "[wrong]\ncmd = {fake}\ncmd-stop = /no/such/program\n"
        "[vain]\ncmd = {fake}\ncmd-stop = false\n"
    )
    for name in ("deaf", "asked", "wrong", "vain"):
        pid = chat(gateway, name).json()["pid"]
        gateway.client.post("/models/unload", json={"model": name})
        gateway.wait_for_status(name, "unloaded")
        wait_until(lambda: not is_alive(pid), f"{name} to be gone")  # noqa: B023
        assert ("failed" in gateway.models()[name]["status"]) == (name == "deaf"), name
    assert "force-killing name=deaf" in gateway.log_text
    assert "cmd-stop: /no/such/program: No such file or directory; sending SIGTERM instead" in gateway.log_text
    assert "cmd-stop ended with 1; sending SIGTERM instead" in gateway.log_text


def test_the_client_of_a_program_that_is_unloaded_is_told_so(start: Callable[..., Program]) -> None:
    gateway = start("[slow]\ncmd = {fake} pause=0.1\n")
    body = {"model": "slow", "messages": [], "stream": True, "n": 1000}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        gateway.client.post("/models/unload", json={"model": "slow"})
        last = list(lines)[-1]
    assert "model 'slow' ended in the middle of its answer: it was unloaded: unload was requested" in last


def test_no_program_outlives_a_killed_router(start: Callable[..., Program]) -> None:
    gateway = start("[one]\ncmd = {fake} child deaf\n")
    pid = chat(gateway, "one").json()["pid"]
    gateway.stop(signal.SIGKILL)
    wait_until(lambda: not gateway.family(), "all to end")
    assert not is_alive(pid)


def test_no_program_outlives_a_killed_shim(start: Callable[..., Program]) -> None:
    gateway = start("[one]\ncmd = {fake} child\n")
    pid = chat(gateway, "one").json()["pid"]
    os.kill(psutil.Process(pid).parents()[1].pid, signal.SIGKILL)
    wait_until(lambda: gateway.models()["one"]["status"].get("failed"), "its end to be known")
    wait_until(lambda: not is_alive(pid), "the program to end")


def test_a_load_fails_if_another_program_listens_on_a_fixed_port(start: Callable[..., Program]) -> None:
    port = free_port()
    gateway = start(f"[one]\ncmd = {FAKE.replace('${PORT}', str(port))}\nproxy = http://127.0.0.1:{port}\n")
    with socket.create_server(("127.0.0.1", port)):
        refused = chat(gateway, "one")
        assert (refused.status_code, refused.json()["error"]["type"]) == (500, "server_error")
        assert f"another program already listens on 127.0.0.1:{port}" in refused.json()["error"]["message"]
    assert chat(gateway, "one").status_code == 200


def test_a_load_fails_if_another_program_listens_on_the_chosen_port(start: Callable[..., Program]) -> None:
    idle = shlex.join([sys.executable, "-c", "import time; time.sleep(60)"])
    gateway = start(f"[one]\ncmd = {idle} ${{PORT}}\n")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(chat, gateway, "one")
        gateway.wait_for_status("one", "loading")
        wait_until(lambda: [p for p in gateway.family() if p.cmdline()[1:2] == ["-c"]], "the program to run")
        port = int(gateway.models()["one"]["status"]["args"][-1])
        with ThreadingHTTPServer(("127.0.0.1", port), Healthy) as stranger:
            pool.submit(stranger.serve_forever)
            refused = waiting.result()
            stranger.shutdown()
    assert refused.status_code == 500
    assert f"process {os.getpid()}) listens on 127.0.0.1:{port}" in refused.json()["error"]["message"]
    gateway.wait_for_status("one", "unloaded")


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_only_a_process_that_is_no_descendant_is_a_foreign_listener(programs: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        assert external_shim.foreign_listener(ours.getsockname()[1]) == ""
    port = free_port()
    assert external_shim.foreign_listener(port) == "", "no program listens there"
    argv = [sys.executable, FAKE_BACKEND, str(port)]
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"
    program = programs.start([sys.executable, "-c", starter, *argv], address=str(port))
    assert external_shim.foreign_listener(port) == "", "a descendant, in whatever session"
    for process in program.family():
        process.kill()
    orphan = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    port = free_port()
    argv[-1] = str(port)
    program = programs.start([sys.executable, "-c", orphan, *argv], address=str(port), wait="nothing")
    program.exit_code()
    wait_until(lambda: gateway_answers(program, "/health"), "it to listen")
    assert "python" in external_shim.foreign_listener(port)
    for process in program.family():
        process.kill()


def test_a_changed_command_restarts_only_its_own_model(start: Callable[..., Program]) -> None:
    gateway = start("[a]\ncmd = {fake}\n[b]\ncmd = {fake}\n")
    pids = {name: chat(gateway, name).json()["pid"] for name in "ab"}
    file = Path(gateway.argv[gateway.argv.index("--models-preset") + 1])
    text = file.read_text()
    file.write_text(text.replace("[b]", "use-model-name = z\n[b]") + "env = X=1\n")
    wait_until(lambda: gateway.status("b") == "unloaded", "b to leave")
    a, b = chat(gateway, "a").json(), chat(gateway, "b").json()
    assert a["pid"] == pids["a"]
    assert json.loads(a["raw"])["model"] == "z"
    assert b["pid"] != pids["b"]


def test_presets_of_a_repository_cannot_run_commands(programs: Programs, tmp_path: Path) -> None:
    with LocalHub({"user/presets": {"preset.ini": b"[one]\ncmd = touch it\n"}}) as hub:
        env = {"LLAMA_CACHE": str(tmp_path), "MODEL_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        gateway = programs.gateway("-hf", "user/presets", "--presets-strict", env=env, wait="nothing")
        assert gateway.exit_code() == 1
    assert "preset.ini:2: cmd: a downloaded presets file may not run programs" in gateway.log_text
