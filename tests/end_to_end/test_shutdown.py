"""Shutdown with open requests: they finish, or end with an error event, and the exit code is 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import Program, Programs, wait_until

Start = Callable[..., Program]
PRESETS = "[tiny]\nmodel = {models}/tiny-llama.gguf\nctx-size = 512\ncontext-shift = on\nparallel = 2\n"
ENDLESS: dict[str, Any] = {"model": "tiny", "prompt": "a", "stream": True, "n_predict": -1, "ignore_eos": True}


class Reader:
    """Reads a stream to its end in the background."""

    def __init__(self, program: Program, body: dict[str, Any], path: str = "/completion") -> None:
        self.lines: list[str] = []
        self.error: httpx.HTTPError | None = None
        self._thread = threading.Thread(target=self._read, args=(program.url, path, body), daemon=True)
        self._thread.start()
        wait_until(lambda: len(self.lines) > 3, "the stream to flow")

    def _read(self, url: str, path: str, body: dict[str, Any]) -> None:
        try:
            with httpx.stream("POST", url + path, json=body, timeout=60, trust_env=False) as response:
                for line in response.iter_lines():
                    if line:
                        self.lines.append(line)
        except httpx.HTTPError as error:
            self.error = error

    def finish(self) -> str:
        """Wait for the end of the stream and return its last line."""
        self._thread.join(30)
        assert self.error is None
        return self.lines[-1]


def start(program: str, programs: Programs, start_gateway: Start, *args: str) -> Program:
    if program == "router":
        return start_gateway(*args, presets=PRESETS)
    return programs.worker("--ctx-size", "512", "--context-shift", "--parallel", "2", *args)


@pytest.mark.parametrize("program", ["router", "worker"])
def test_requests_that_do_not_finish_end_with_an_error_event(
    program: str, programs: Programs, start_gateway: Start
) -> None:
    server = start(program, programs, start_gateway, "--drain-timeout", "1")
    reader = Reader(server, ENDLESS)
    server.client.get("/health")  # leaves a connection open
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "1 requests have 1 s to finish" in server.log_text, "the drain to begin")
    seen = len(reader.lines)
    late = server.client.get("/health")
    assert late.status_code == 503
    assert (late.headers["retry-after"], late.headers["connection"]) == ("1", "close")
    with pytest.raises(httpx.ConnectError):
        server.client.get("/health")
    assert "shutting down" in json.loads(reader.finish().removeprefix("data: "))["error"]["message"]
    assert len(reader.lines) > seen + 1, "it went on until the deadline"
    assert server.exit_code() == 0


@pytest.mark.parametrize("program", ["router", "worker"])
def test_requests_that_finish_in_time_are_completed(program: str, programs: Programs, start_gateway: Start) -> None:
    server = start(program, programs, start_gateway, "--drain-timeout", "100")
    reader = Reader(server, {**ENDLESS, "n_predict": 600}, "/v1/completions")
    server.process.send_signal(signal.SIGTERM)
    assert reader.finish() == "data: [DONE]"
    assert server.exit_code() == 0


@pytest.mark.parametrize("program", ["router", "worker"])
def test_a_second_signal_aborts_requests_immediately(program: str, programs: Programs, start_gateway: Start) -> None:
    server = start(program, programs, start_gateway, "--drain-timeout", "600")
    reader = Reader(server, ENDLESS)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "have 600 s to finish" in server.log_text, "the drain to begin")
    server.process.send_signal(signal.SIGTERM)
    assert "shutting down" in reader.finish()
    assert server.exit_code() == 0


def test_a_third_signal_kills(start_gateway: Start) -> None:
    gateway = start_gateway("--drain-timeout", "600")
    with socket.create_connection(("127.0.0.1", int(gateway.address))) as slow:
        slow.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert gateway.client.get("/health").status_code == 200  # by now the slow request is in its handler
        for said in ("have 600 s to finish", "aborting the running requests"):
            gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda said=said: said in gateway.log_text, said)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.exit_code(2.0) == 1


def test_a_request_that_waits_for_a_model_is_refused_immediately(start_gateway: Start) -> None:
    both = PRESETS + "[other]\nmodel = {models}/tiny-llama.gguf\nctx-size = 512\n"
    gateway = start_gateway("--models-max", "1", "--drain-timeout", "600", "-lv", "5", presets=both)
    reader = Reader(gateway, ENDLESS)
    answers: list[httpx.Response] = []
    ask = {"model": "other", "content": "a"}
    url = f"{gateway.url}/tokenize"
    waiting = threading.Thread(target=lambda: answers.append(httpx.post(url, json=ask, timeout=60, trust_env=False)))
    waiting.start()
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        wait_until(lambda: client.get("/health").status_code == 200, "the router to be there")
    wait_until(lambda: waits(gateway, "other"), "the request to wait")
    gateway.process.send_signal(signal.SIGTERM)
    waiting.join(10)
    assert (answers[0].status_code, answers[0].headers["retry-after"]) == (503, "1")
    gateway.process.send_signal(signal.SIGTERM)
    reader.finish()
    assert gateway.exit_code() == 0


def waits(gateway: Program, model: str) -> bool:
    """Wait until the router has queued the request: at this log level it logs that."""
    return f"name={model}: a request waits" in gateway.log_text


# -- systemd -----------------------------------------------------------------------------------------------------------


@contextmanager
def service_manager(path: Path) -> Iterator[Callable[[], list[str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.setblocking(False)
        told: list[str] = []

        def read() -> list[str]:
            try:
                while True:
                    told.append(manager.recv(4096).decode().partition("\n")[0])
            except BlockingIOError:
                return told

        yield read


def test_the_service_manager_is_notified(tmp_path: Path, programs: Programs, start_gateway: Start) -> None:
    with service_manager(tmp_path / "notify") as told:
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        gateway = start_gateway(presets=PRESETS + "load-on-startup = on\n", env=environ)
        gateway.wait_for_status("tiny", "loaded")
        assert told() == ["READY=1"], "of a worker it hears nothing"
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(told()) == 3, "the reload")
        assert gateway.stop() == 0
        assert told() == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    with service_manager(tmp_path / "other") as told:
        worker = programs.worker(env={"NOTIFY_SOCKET": str(tmp_path / "other")})
        wait_until(lambda: told() == ["READY=1"], "the worker to be ready")
        assert worker.stop() == 0
        assert told() == ["READY=1", "STOPPING=1"]


def test_sigusr1_writes_the_state_into_the_log(start_gateway: Start) -> None:
    gateway = start_gateway(presets=PRESETS)
    assert gateway.client.post("/tokenize", json={"model": "tiny", "content": "a"}).status_code == 200
    gateway.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "<ConnectionPool 1 connections to 1 workers" in gateway.log_text, "the dump")
    pid = next(entry for entry in gateway.models().values())["status"].get("pid", "")
    for part in ("<State 1 models, 1 of at most", f"<Model tiny loaded, <Instance tiny pid {pid}", "<RequestQueue 0 "):
        assert part in gateway.log_text
    assert gateway.stop() == 0


SIGNALS = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}


def handled(pid: int) -> set[int]:
    """Return the signals that a process ignores or handles."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mask = int(lines["SigIgn"], 16) | int(lines["SigCgt"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_signal_of_a_user_ends_a_process(programs: Programs, start_gateway: Start) -> None:
    """From the first moments of the router on, and in all its processes."""
    gateway = start_gateway(presets=PRESETS, wait="nothing")
    wait_until(lambda: handled(gateway.pid) >= SIGNALS, "the first line of the program")
    for number in sorted(SIGNALS):
        gateway.process.send_signal(number)
    gateway.wait("ready")
    assert gateway.client.post("/tokenize", json={"model": "tiny", "content": "a"}).status_code == 200
    pids = {process.pid for process in gateway.family()}
    assert len(pids) == 3, "router, zygote, worker"
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: "SIGUSR2 is ignored" in gateway.log_text, "the router's answer")
    wait_until(lambda: "the state of the router" in gateway.log_text, "the state in the log")
    assert gateway.client.post("/tokenize", json={"model": "tiny", "content": "a"}).status_code == 200
    assert {process.pid for process in gateway.family()} == pids
    alone = programs.worker(wait="nothing")
    wait_until(lambda: handled(alone.pid) >= {signal.SIGUSR1, signal.SIGUSR2}, "the worker's first line")
    alone.process.send_signal(signal.SIGUSR1)
    alone.process.send_signal(signal.SIGUSR2)
    alone.wait("ready")


def test_sighup_reloads_the_presets(programs: Programs, start_gateway: Start) -> None:
    gateway = start_gateway(presets=PRESETS)
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "read again: 1 models" in gateway.log_text, "the reload")
    (file,) = programs.directory.glob("presets-*.ini")
    file.write_text("[*]\nthreads = 1\nctx-sise = 5\n")
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: f"{file}:3: " in gateway.log_text, "the broken line")
    assert "the old presets are kept" in gateway.log_text
    assert set(gateway.models()) == {"tiny"}
    assert gateway.client.post("/tokenize", json={"model": "tiny", "content": "a"}).status_code == 200
