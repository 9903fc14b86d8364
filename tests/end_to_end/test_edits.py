"""Edits of a running gateway's files: links that are switched under load, and files with API keys."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from programs import Program, Programs, wait_until


def release(root: Path, models: Path, number: int) -> None:
    """Write a release whose model `tiny` differs from that of other releases, and which has a model of its number."""
    folder = root / f"v{number}"
    folder.mkdir(parents=True)
    tiny = f"model = {models}/tiny-llama.gguf\nthreads = 1\n"
    text = f"[tiny]\n{tiny}ctx-size = {256 * number}\n[r{number}]\n{tiny}ctx-size = 256\n"
    (folder / "models.ini").write_text(text)


def switch(link: Path, target: str) -> None:
    subprocess.run(["ln", "-s", target, f"{link}.new"], check=True)
    subprocess.run(["mv", "-T", f"{link}.new", link], check=True)


class Load:
    """Clients that send requests one after the other until they are stopped."""

    def __init__(self, gateway: Program, clients: int) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._url = gateway.url
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        body = {"model": "tiny", "prompt": "a", "n_predict": 8, "ignore_eos": True}
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._is_over.is_set():
                try:
                    answer = client.post("/completion", json=body)
                    if answer.status_code != 200:
                        self.failed.append(f"{answer.status_code}: {answer.text}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                self.done += 1

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)


@contextmanager
def load(gateway: Program, clients: int) -> Iterator[Load]:
    running = Load(gateway, clients)
    try:
        yield running
    finally:
        running.stop()


def test_a_chain_of_two_links_is_switched_under_load(programs: Programs, tmp_path: Path) -> None:
    root = tmp_path / "rel"
    for number in (1, 2, 3):
        release(root, programs.models, number)
    switch(root / "stage", "v1")
    switch(root / "current", "stage")
    gateway = programs.gateway("--models-preset", str(root / "current/models.ini"), "--models-max", "1")
    with load(gateway, 3) as clients:
        for link, target, number in (("stage", "v2", 2), ("current", "v3", 3), ("current", "stage", 2)):
            seen = clients.done
            wait_until(lambda seen=seen: clients.done > seen + 10, "requests before the switch")
            switch(root / link, target)
            wait_until(lambda number=number: f"r{number}" in gateway.models(), f"release {number}")
            wait_until(lambda number=number: context_of(gateway) == str(256 * number), "the new instance")
    assert not clients.failed
    assert clients.done > 40


def context_of(gateway: Program) -> str:
    arguments = gateway.models()["tiny"]["status"]["args"]
    return str(arguments[arguments.index("--ctx-size") + 1])


@pytest.mark.parametrize("how", ["edit", "SIGHUP", "request"])
def test_keys_are_read_again(how: str, programs: Programs, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    gateway = programs.gateway("--api-key-file", str(file), presets="[tiny]\nmodel = {models}/tiny-llama.gguf\n")

    def status(key: str) -> int:
        return gateway.client.get("/props", headers={"Authorization": f"Bearer {key}"}).status_code

    def read_again() -> None:
        if how == "SIGHUP":
            gateway.process.send_signal(signal.SIGHUP)
        elif how == "request":
            gateway.client.get("/models?reload=1", headers={"Authorization": "Bearer old"})

    assert (status("old"), status("new")) == (200, 401)
    file.write_text("new\n")
    read_again()
    wait_until(lambda: status("new") == 200, "the new key")
    assert status("old") == 401
    if how == "edit":
        file.write_text("# none\n")
        wait_until(lambda: "contains no key; the old API keys are kept" in gateway.log_text, "the empty file")
        file.unlink()
        wait_until(lambda: "the old API keys are kept" in gateway.log_text.rpartition("contains no key")[2], "its end")
        assert (status("new"), status("none")) == (200, 401)
