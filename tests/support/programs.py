"""Runs the real programs for the tests: a free address, a log file, waiting for /health, an end without leftovers."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import psutil

T = TypeVar("T")
Wait = Literal["ready", "listening", "nothing"]

START_SECONDS = 40.0  # two cores under load; a tiny model is ready within one second
STOP_SECONDS = 20.0
MARK = "LLAMA_CORRAL_TEST_MARK"  # an environment variable by which a program's descendants are found again


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(10_000 + 500 * _WORKER, 10_000 + 500 * (_WORKER + 1)))


def free_port() -> int:
    """A port that is free now, and that nothing else takes before the program that it is for.

    Each process of the test run has a range of its own, below the ports that the system gives to outgoing connections.
    """
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], T], what: str, seconds: float = START_SECONDS) -> T:
    """The first true value of `condition`; AssertionError when the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)
    return value


def clean_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the machine's own configuration, caches or hub reaches the program."""
    private = ("LLAMA_", "HF_", "HUGGING", "XDG_", "GGML_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    home.mkdir(exist_ok=True)
    return environ | {"HOME": str(home), "HF_HUB_OFFLINE": "1"} | dict(extra)


class Program:
    """One running program. `client` speaks to it, `stop()` ends it as Ctrl-C would."""

    def __init__(self, argv: Sequence[str], *, address: str, log: Path, environ: Mapping[str, str]) -> None:
        """`address` is a TCP port of 127.0.0.1 or the path of a unix socket."""
        self.argv = list(argv)
        self.log = log
        self.mark = uuid.uuid4().hex
        self.address = address
        unix = not address.isdigit()
        self.url = "http://localhost" if unix else f"http://127.0.0.1:{address}"
        transport = httpx.HTTPTransport(uds=address) if unix else None
        self.client = httpx.Client(base_url=self.url, transport=transport, timeout=60.0, trust_env=False)
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.PIPE, stdout=out, stderr=out, env={**environ, MARK: self.mark}
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def is_listening(self) -> bool:
        return self._health() is not None

    def is_ready(self) -> bool:
        health = self._health()
        return health is not None and health.status_code == 200

    def _health(self) -> httpx.Response | None:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.argv} ended with {self.process.returncode}:\n{self.log_text[-4000:]}")
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health")
        return None

    def wait(self, wait: Wait) -> None:
        if wait != "nothing":
            wait_until(self.is_ready if wait == "ready" else self.is_listening, f"{self.argv} to be {wait}")

    def family(self) -> list[psutil.Process]:
        """The program and everything that it started, wherever it stands in the process tree now."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def models(self) -> dict[str, dict[str, Any]]:
        """The router's entries by id."""
        return {entry["id"]: entry for entry in self.client.get("/models").raise_for_status().json()["data"]}

    def status(self, model: str) -> str:
        return str(self.models()[model]["status"]["value"])

    def wait_for_status(self, model: str, value: str) -> None:
        wait_until(lambda: self.status(model) == value, f"{model} to be {value}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal; kills it and fails when it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.argv} did not end after signal {number}") from None

    def exit_code(self, seconds: float = STOP_SECONDS) -> int:
        """Waits for it to end by itself."""
        return self.process.wait(seconds)

    def close(self) -> None:
        """Stops it and fails if anything that it started is still there."""
        try:
            self.stop()
            wait_until(lambda: not self.family(), f"the children of {self.argv} to end", STOP_SECONDS)
        finally:
            self.client.close()
            if self.process.stdin:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()
            for process in self.family():
                with contextlib.suppress(psutil.Error):
                    process.kill()


def _mark_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        mark: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
    return mark


def post(program: Program, path: str, body: Any, status: int = 200) -> Any:
    """The JSON body of the answer, which must have that status."""
    response = program.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def complete(gateway: Program, model: str, **fields: object) -> httpx.Response:
    """A short greedy completion by `model`."""
    body = {"model": model, "prompt": "Once upon a time", "n_predict": 4, "temperature": 0, **fields}
    return gateway.client.post("/completion", json=body)


class Programs:
    """Starts programs in a directory of their own and ends them all."""

    def __init__(self, directory: Path, models: Path) -> None:
        self.directory = directory
        self.models = models
        self.started: list[Program] = []

    def start(
        self, argv: Sequence[str], *, address: str, env: Mapping[str, str] | None = None, wait: Wait = "ready"
    ) -> Program:
        log = self.directory / f"program-{len(self.started)}.log"
        environ = clean_environment(self.directory / "home", env or {})
        program = Program(argv, address=address, log=log, environ=environ)
        self.started.append(program)
        program.wait(wait)
        return program

    def worker(
        self,
        *args: str,
        model: str | None = "tiny-llama.gguf",
        env: Mapping[str, str] | None = None,
        wait: Wait = "ready",
    ) -> Program:
        """A worker by itself; `model` is a file of the models directory, or None when `args` say it all."""
        port = str(free_port())
        return self.start([*self.worker_command(model), "--port", port, *args], address=port, env=env, wait=wait)

    def worker_command(self, model: str | None) -> list[str]:
        chosen = ["--model", str(self.models / model)] if model else []
        return [sys.executable, "-P", "-m", "llama_corral.worker", *chosen, "--host", "127.0.0.1"]

    def gateway(
        self,
        *args: str,
        presets: str | None = None,
        env: Mapping[str, str] | None = None,
        wait: Wait = "ready",
        port: int | None = None,
    ) -> Program:
        """`llama-corral`; `presets` is the text of a presets file, with `{models}` for the models directory."""
        address = str(port or free_port())
        command = str(Path(sys.executable).with_name("llama-corral"))
        argv = [command, "--host", "127.0.0.1", "--port", address, *args]
        if presets is not None:
            file = self.directory / f"presets-{len(self.started)}.ini"
            file.write_text(presets.replace("{models}", str(self.models)))
            argv += ["--models-preset", str(file)]
        return self.start(argv, address=address, env=env, wait=wait)

    def close(self) -> None:
        errors: list[AssertionError] = []
        for program in reversed(self.started):
            try:
                program.close()
            except AssertionError as error:
                errors.append(error)
        self.started.clear()
        if errors:
            raise errors[0]

    def report(self) -> str:
        """The ends of all logs, for a failed test."""
        return "\n".join(f"$ {' '.join(p.argv)}\n{p.log_text[-6000:]}" for p in self.started)
