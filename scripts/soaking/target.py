"""Runs the tested gateway with tiny models: edits its presets file, finds its processes, stops it.

Knows nothing of requests.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import psutil

MAKER = Path(__file__).resolve().parent.parent / "make_test_models.py"
MODELS_MAX = 3
MODELS_MEMORY = "150M"  # two or three of these workers, depending on how much they grow
MARK = "LLAMA_CORRAL_SOAK_MARK"  # environment variable by which all descendants of a gateway are found
STOP_S = 30.0  # the gateway ends streams that still run long before that
NOT_INHERITED = ("LLAMA_", "HF_", "XDG_", "PYTHONPATH")

SAID_BY = re.compile(rb"^[-\d]{10} [:.\d]{12} (?:\w+: )?\[(\d+)/([^]\n]+)\] ", re.MULTILINE)
ALIASES = {"cattle": "herd"}
CHATS = ("fox", "herd", "window", "state", "sleeper", "demo")
EMBEDDER = "compass"
FAULT = "no-such-key = what\n"


class Breakage(Enum):
    """The first two make the presets file unreadable, the third makes only one model unavailable."""

    NO_FILE = "removed"
    GLOBAL = "with a fault in [*]"
    SECTION = "with a fault in a section"


@dataclass
class PresetsFile:
    """The presets file. An edit changes one section and repairs a broken file."""

    file: Path
    models: Path
    demo: Path
    temperatures: dict[str, float] = field(default_factory=dict)
    contexts: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        files = {
            "fox": self.models / "tiny-llama.gguf",
            "herd": self.models / "tiny-llama-b.gguf",
            "window": self.models / "tiny-gemma3.gguf",
            "state": self.models / "tiny-mamba.gguf",
            "sleeper": self.models / "tiny-llama.gguf",
            "demo": self.demo / "demo-chat.gguf",
            EMBEDDER: self.models / "tiny-bert.gguf",
        }
        more = {
            "sleeper": "sleep-idle-seconds = 1\n",
            "herd": "alias = cattle\n",
            EMBEDDER: "embeddings = true\n",
            "window": "ttl = 1\n",
        }
        lines = ["[*]\nthreads = 1\nparallel = 2\ncache-ram = 8\nttl = 4\nstop-timeout = 5\n"]
        for name, file in files.items():
            context = self.contexts.get(name, 1024)
            lines.append(f"[{name}]\nmodel = {file}\nctx-size = {context}\n{more.get(name, '')}")
            if name != EMBEDDER:
                lines.append(f"temp = {self.temperatures.get(name, 0.8)}\n")
        return "\n".join(lines)

    def write(self) -> None:
        """Write a new file and rename it, as editors do."""
        new_file = self.file.with_suffix(".new")
        new_file.write_text(self.text())
        new_file.replace(self.file)

    def edit(self, chance: random.Random) -> None:
        name = chance.choice(CHATS)
        if chance.random() < 0.5:
            self.contexts[name] = chance.choice((768, 1024, 1280))
        else:
            self.temperatures[name] = chance.choice((0.2, 0.5, 0.8, 1.0))
        self.write()

    def break_it(self, chance: random.Random) -> Breakage:
        match breakage := chance.choice(tuple(Breakage)):
            case Breakage.NO_FILE:
                self.file.unlink(missing_ok=True)
            case Breakage.GLOBAL:
                self.file.write_text(f"{self.text()}\n[*]\n{FAULT}")
            case Breakage.SECTION:
                header = f"[{chance.choice(CHATS)}]\n"
                self.file.write_text(self.text().replace(header, header + FAULT))
        return breakage


class Target:
    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "gateway.log"
        models = folder / "models"
        subprocess.run([sys.executable, str(MAKER), str(models)], check=True, stdout=subprocess.DEVNULL)
        demo = Path(__file__).resolve().parents[2] / "presets" / "demo"
        self.presets = PresetsFile(folder / "presets.ini", models, demo)
        self.presets.write()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.mark = uuid.uuid4().hex
        self._argv = [program, "--host", "127.0.0.1", "--port", str(self.port)]
        self._argv += ["--models-preset", str(self.presets.file), "--models-max", str(MODELS_MAX)]
        self._argv += ["--models-memory", MODELS_MEMORY]
        self.process: subprocess.Popen[bytes]
        self._read_up_to = 0
        self._pids: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the gateway; at the end kill all its processes that still run."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
        own = {"HOME": str(self.folder), "HF_HUB_OFFLINE": "1", MARK: self.mark}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=inherited | own
            )
        try:
            yield
        finally:
            for process in [*self.family(), psutil.Process(self.process.pid)] if self.process.poll() is None else []:
                with suppress(psutil.Error):
                    process.kill()
            self.process.wait()

    def stop(self) -> int | None:
        """Send SIGTERM and return the exit code, or None if the gateway did not exit."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return None

    def family(self) -> list[psutil.Process]:
        """Return the gateway and all its descendants, orphans too. Slow: it reads every process of the machine."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def router(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def zygote(self) -> psutil.Process | None:
        return next((child for child in _children(self.router()) if _is_zygote(child)), None)

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes, including zombies."""
        zygote = self.zygote()
        spawned = [child for child in _children(self.router()) if not _is_zygote(child)]
        return spawned + (_children(zygote) if zygote else [])

    def worker_of(self, model: str) -> psutil.Process | None:
        """Return the model's worker. Found by its log lines, `[pid/model] …`: a fork has its parent's command line."""
        with self.log.open("rb") as log:
            log.seek(self._read_up_to)
            lines, _, rest = log.read().rpartition(b"\n")
            self._read_up_to = log.tell() - len(rest)
        self._pids |= {name.decode(): int(pid) for pid, name in SAID_BY.findall(lines)}
        pid = self._pids.get(model)
        return next((process for process in self.workers() if process.pid == pid), None)

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children()
    except psutil.Error:
        return []
    return children


def _is_zygote(process: psutil.Process) -> bool:
    try:
        return any("zygote" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _mark_of(process: psutil.Process) -> str | None:
    try:
        mark: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
    return mark
