"""A worker process: its reports and commands, failed loads, and the ways in which it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
from llama_corral.common.base.worker_reports import CONTROL_FD_ENV, WorkerReport, decode
from programs import Program, clean_environment, wait_until

FAST = ("--threads", "1", "--ctx-size", "512", "--no-warmup")


class Routed:
    """A worker with the pipes that a router creates for it."""

    def __init__(self, directory: Path, *args: str) -> None:
        self.socket = directory / "w.sock"
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "llama_corral.worker", "--host", str(self.socket), *FAST, *args]
        environ = clean_environment(directory / "home", {CONTROL_FD_ENV: str(writing)})
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env=environ,
        )
        os.close(writing)
        self._reports = open(reading, "rb")  # noqa: SIM115 (closed by `close`)
        self.client = httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(self.socket)))

    def reports_until(self, state: str) -> list[WorkerReport]:
        """Return the reports up to the first one of this state or the end of the pipe.

        Heartbeats are omitted unless they are requested.
        """
        reports = []
        for line in self._reports:
            report = decode(line)
            if report.state == state:
                return [*reports, report]
            if report.state != "alive":
                reports.append(report)
        return reports

    def order(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._reports):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self.client.close()


@contextlib.contextmanager
def routed(directory: Path, *args: str) -> Iterator[Routed]:
    worker = Routed(directory, *args)
    try:
        yield worker
    finally:
        worker.close()


@pytest.fixture
def model(models: Path) -> str:
    return str(models / "tiny-llama.gguf")


def test_it_reports_progress_and_then_its_model(tmp_path: Path, model: str) -> None:
    with routed(tmp_path, "--model", model, "--alias", "mine", "--tags", "a,b") as worker:
        *loading, ready = worker.reports_until("ready")
        assert loading
        assert {report.state for report in loading} == {"loading"}
        assert loading[-1].payload["value"] == 1.0
        assert (ready.payload["id"], ready.payload["tags"]) == ("mine", ["a", "b"])
        assert ready.payload["meta"]["n_ctx"] == 512
        assert worker.client.get("/health").json() == {"status": "ok"}
        worker.order(b"nonsense\nexit\n")
        assert worker.process.wait(10) == 0
        assert not worker.socket.exists()


def test_it_sends_heartbeats(tmp_path: Path, model: str) -> None:
    with routed(tmp_path, "--model", model) as worker:
        assert worker.reports_until("alive")[-1].payload["busy"] is False, "from the start, before it is loaded"
        worker.reports_until("ready")
        before = worker.reports_until("alive")[-1].payload
        assert worker.client.post("/completion", json={"prompt": "a", "n_predict": 8}).status_code == 200
        after = worker.reports_until("alive")[-1].payload
        assert after["steps"] >= before["steps"] + 8
        assert after["cpu"] >= before["cpu"] > 0


def test_it_exits_immediately_when_its_router_ends(tmp_path: Path, model: str) -> None:
    with routed(tmp_path, "--model", model) as worker:
        worker.reports_until("loading")
        worker.hang_up()
        assert worker.process.wait(10) == 1


def test_it_exits_on_request_while_loading(tmp_path: Path, model: str) -> None:
    with routed(tmp_path, "--model", model) as worker:
        worker.order(b"exit\n")
        assert worker.process.wait(10) == 0


def test_it_reports_sleeping_and_waking(tmp_path: Path, model: str) -> None:
    with routed(tmp_path, "--model", model, "--sleep-idle-seconds", "1") as worker:
        worker.reports_until("ready")
        assert worker.reports_until("sleeping")[-1].payload == {}
        assert worker.client.get("/props").json()["is_sleeping"] is True
        assert worker.client.get("/models").json()["data"][0]["meta"]["n_vocab"] == 512
        assert worker.client.post("/tokenize", json={"content": "Hi"}).status_code == 200
        assert [(r.state, r.payload) for r in worker.reports_until("ready")] == [("loading", {}), ("ready", {})]


def test_a_disconnect_while_the_model_wakes_does_not_stop_the_waking(tmp_path: Path, model: str) -> None:
    with routed(tmp_path, "--model", model, "--sleep-idle-seconds", "1") as worker:
        worker.reports_until("sleeping")
        with pytest.raises(httpx.ReadTimeout):
            worker.client.post("/tokenize", json={"content": "Hi"}, timeout=httpx.Timeout(10.0, read=0.001))
        assert worker.reports_until("ready")[-1].state == "ready"
        assert worker.client.post("/tokenize", json={"content": "Hi"}).status_code == 200
        assert worker.reports_until("sleeping")[-1].state == "sleeping"


@pytest.mark.parametrize(
    ("file", "words"),
    [("missing.gguf", "missing.gguf"), ("not-a-model.gguf", "not-a-model.gguf"), ("truncated.gguf", "truncated.gguf")],
)
def test_a_failed_load_reports_its_reason(tmp_path: Path, models: Path, file: str, words: str) -> None:
    with routed(tmp_path, "--model", str(models / file)) as worker:
        failed = worker.reports_until("failed")[-1]
        assert failed.state == "failed"
        assert words in failed.payload["message"]
        assert worker.process.wait(10) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--unheard-of",), "--unheard-of"),
        (("--ctx-size", "many"), "--ctx-size"),
        (("--chat-template", "{% for %}"), "chat template"),
        (("--chat-template-file", "/nowhere/at.all"), "--chat-template-file"),
        (("--docker-repo", "x"), "--docker-repo"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    tmp_path: Path, model: str, args: tuple[str, ...], words: str
) -> None:
    with routed(tmp_path, "--model", model, *args) as worker:
        assert words in worker.reports_until("failed")[-1].payload["message"]
        assert worker.process.wait(10) == 1
        assert worker.process.stdout is not None
        output = worker.process.stdout.read().decode()
        assert "Traceback" not in output
        assert words in output


def test_a_busy_port_is_reported_in_one_line(start_worker: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = start_worker(*FAST, "--port", str(taken.getsockname()[1]), wait="nothing")
        assert program.exit_code() == 1
    assert "already in use" in program.log_text
    assert "Traceback" not in program.log_text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_gracefully(start_worker: Callable[..., Program], number: int) -> None:
    assert start_worker(*FAST).stop(number) == 0


def test_a_stream_is_ended_when_the_worker_stops(start_worker: Callable[..., Program]) -> None:
    program = start_worker(*FAST)
    body = {"prompt": "Once", "stream": True, "ignore_eos": True, "n_predict": 400, "n_keep": 4}
    with program.client.stream("POST", "/completion", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        program.process.send_signal(signal.SIGTERM)
        wait_until(lambda: program.process.poll() is not None, "the worker to end", 10)
    assert program.process.returncode == 0


def test_requests_before_the_model_is_loaded_get_503(start_worker: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a hub that never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.gguf"
        program = start_worker("--model-url", url, model=None, wait="listening", env={"HF_HUB_OFFLINE": "0"})
        for path in ("/health", "/v1/models", "/props"):
            response = program.client.get(path)
            assert response.status_code == 503
            assert response.json()["error"] == {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        assert program.client.get("/").status_code == 200
        assert program.stop() == 0


def test_an_invalid_option_of_the_http_server_ends_a_worker_that_loads(tmp_path: Path, model: str) -> None:
    """The server is built while the model loads; the load must not delay the exit."""
    with routed(tmp_path, "--model", model, "--slot-save-path", "/nowhere/at/all") as worker:
        assert "/nowhere/at/all" in worker.reports_until("failed")[-1].payload["message"]
        assert worker.process.wait(10) == 1
        assert worker.process.stdout is not None
        assert b"Traceback" not in worker.process.stdout.read()


@pytest.mark.skipif(os.name != "posix", reason="pipes have no paths")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_api_keys_from_a_pipe_are_required(start_worker: Callable[..., Program], tmp_path: Path, host: str) -> None:
    """A pipe gives its text once."""
    os.mkfifo(pipe := tmp_path / "keys")
    program = start_worker(*FAST, "--host", host, "--api-key-file", str(pipe), wait="nothing")
    Thread(target=pipe.write_text, args=("secret\n",), daemon=True).start()
    program.wait("ready")
    assert program.client.post("/tokenize", json={"content": "a"}).status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert program.client.post("/tokenize", json={"content": "a"}, headers=key).status_code == 200
    assert "without an API key" not in program.log_text


def test_below_a_router_pages_are_not_checked_again(tmp_path: Path, model: str) -> None:
    """The router has checked them and does not forward what a check needs."""
    with routed(tmp_path, "--model", model) as worker:
        worker.reports_until("ready")
        foreign = {"Origin": "http://foreign.example", "Sec-Fetch-Site": "cross-site", "Host": "foreign.example"}
        assert worker.client.delete("/v1/stream?conv_id=a", headers=foreign).status_code == 204
