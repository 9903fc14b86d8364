"""Tools in the real programs: router and worker, keys, CORS, and a shutdown that does not wait for tools."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import Program, wait_until
from tools_http import fake_mcp, mcp_json

Start = Callable[..., Program]
SLEEP = {"tool": "exec_shell_command", "params": {"command": "sleep 60", "timeout": 60}}


@pytest.fixture(params=["router", "worker"])
def start(request: pytest.FixtureRequest, start_gateway: Start, start_worker: Start) -> Start:
    def start_it(*args: str, **given: Any) -> Program:
        if request.param == "worker":
            return start_worker(*args, **given)
        return start_gateway(*args, presets="[m]\nmodel = {models}/tiny-llama.gguf\n", **given)

    return start_it


def test_tools_are_off_by_default(start: Start) -> None:
    program = start()
    for path in ("/tools", "/cors-proxy?url=http://127.0.0.1:1"):
        for method in ("GET", "POST"):
            assert program.client.request(method, path).status_code == 403
    assert program.client.get("/props").json()["cors_proxy_enabled"] is False


def test_disabled_features_are_not_imported() -> None:
    import subprocess

    code = (
        "import sys, llama_corral.router.app;"
        "print([n for n in sys.modules if n.startswith('llama_corral.common.tools')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['llama_corral.common.tools', 'llama_corral.common.tools.routes']"


def test_keys_and_origins_apply_to_tools(start: Start) -> None:
    program = start("--tools", "get_info", "--ui-mcp-proxy", "--api-key", "sk-1", wait="listening")
    key = {"Authorization": "Bearer sk-1"}
    wait_until(lambda: program.client.get("/tools", headers=key).status_code == 200, "the tools")
    for method, path in (("GET", "/tools"), ("POST", "/tools"), ("GET", "/cors-proxy?url=http://127.0.0.1:1")):
        assert program.client.request(method, path).status_code == 401
    answer = program.client.post("/tools", headers=key, json={"tool": "get_info"})
    assert set(answer.json()) == {"os", "cwd"}
    local = program.client.get("/tools", headers={**key, "Origin": "http://localhost:3000"})
    assert local.headers["access-control-allow-origin"] == "http://localhost:3000"
    foreign = program.client.get("/tools", headers={**key, "Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers
    assert program.client.get("/props", headers=key).json()["cors_proxy_enabled"] is True


def test_shutdown_does_not_wait_for_tools(start: Start, tmp_path: Path) -> None:
    servers = mcp_json(q=fake_mcp("quick"), stubborn=fake_mcp("stubborn"))
    program = start("--agent", "--mcp-servers-json", servers)
    answers: list[httpx.Response] = []

    def ask(body: dict[str, Any]) -> None:
        answers.append(httpx.post(program.url + "/tools", json=body, timeout=60, trust_env=False))

    assert program.client.post("/tools", json={"tool": "q_echo", "params": {"message": "x"}}).status_code == 200
    bodies = [SLEEP, {"tool": "q_hang", "params": {"mark": str(tmp_path / "hangs")}}]
    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    wait_until(lambda: any("sleep" in process.name() for process in program.family()), "the command to run")
    wait_until((tmp_path / "hangs").exists, "the server to hang")
    began = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - began < 5
    for thread in threads:
        thread.join(20)
    assert sorted(answer.status_code for answer in answers) == [200, 503]
    assert {"error" in answer.json() for answer in answers} == {True}


def test_tools_end_with_a_killed_server(start: Start) -> None:
    program = start("--agent", "--mcp-servers-json", mcp_json(q=fake_mcp("quick")))

    def ask() -> None:
        with pytest.raises(httpx.HTTPError):
            program.client.post("/tools", json=SLEEP)

    thread = threading.Thread(target=ask)
    httpx.post(program.url + "/tools", json={"tool": "q_pid"}, timeout=60, trust_env=False)
    thread.start()
    wait_until(lambda: any("sleep" in process.name() for process in program.family()), "the command to run")
    program.process.kill()
    program.process.wait()
    thread.join(20)
    wait_until(lambda: not program.family(), "everything to end")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tools", "read_file,nonsense"], "unknown tool 'nonsense'"),
        (["--mcp-servers-json", "not json"], "--mcp-servers-json"),
        (["--mcp-servers-config", "/no/where.json"], "--mcp-servers-config /no/where.json"),
        (["--agent", "--tools-root", "/"], "exec_shell_command"),
        (["--tools", "all", "--tools-runtime", "ssh:-x"], "invalid ssh target"),
    ],
)
def test_wrong_options_end_the_program_with_one_line(start_gateway: Start, options: list[str], said: str) -> None:
    program = start_gateway(*options, presets="[m]\nmodel = {models}/tiny-llama.gguf\n", wait="nothing")
    assert program.exit_code() == 1
    assert said in program.log_text
    assert len(program.log_text.strip().splitlines()) == 1


def test_wrong_options_end_a_worker_too(start_worker: Start) -> None:
    program = start_worker("--tools", "nonsense", wait="nothing")
    assert program.exit_code() == 1
    assert "unknown tool 'nonsense'" in program.log_text
    assert "Traceback" not in program.log_text
