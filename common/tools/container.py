"""The container of `--tools-runtime docker:IMAGE`: started with the server, restarted if it dies, ended with it.

The container runs a shell that reads from our pipe: when this server ends in any way, the shell and the container end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path

from ..base.errors import ConfigError
from .process import Processes, ProcessGroup
from .runtimes import Image

log = logging.getLogger("corral.tools")

START_S = 60.0
"""Time limit until the engine reports the container's id; it may have to download the image first."""
STOP_S = 1.0
POLL_S = 0.05
"""Interval for checking the file with the container's id, since the engine does not notify us."""


class OwnContainer:
    def __init__(self, image: Image, processes: Processes) -> None:
        self._image = image
        self._processes = processes
        self._group: ProcessGroup | None = None
        self._identifier = ""
        self._lock = asyncio.Lock()

    async def runtime(self) -> str:
        """Return the running container in the format of a request's header; start it if needed. Raise ConfigError."""
        async with self._lock:
            if self._group is None or self._group.exited.is_set():
                if self._group is not None:
                    log.warning("the tools' container %s ended, starting a new one", self._identifier[:12])
                    await self._processes.finish(self._group)
                self._group = None
                await self._start()
        return f"{self._image.engine}-container:{self._identifier}"

    async def _start(self) -> None:
        said = bytearray()
        with tempfile.TemporaryDirectory(prefix="corral-tools-") as folder:
            file = Path(folder, "cid")
            command = [self._image.engine, "run", "--rm", "-i", "--cidfile", str(file), self._image.name, "sh"]
            group = await self._processes.start(command, lambda _, data: said.extend(data[:4096]))
            try:
                self._identifier = await _identifier(file, group)
            except BaseException:
                await self._processes.finish(group)
                raise
            if not self._identifier:
                await self._processes.finish(group)
                why = said.decode("utf-8", "replace").strip() or "no answer"
                raise ConfigError(f"--tools-runtime: {self._image.engine} could not run {self._image.name}: {why}")
        self._group = group
        log.info("tools run in %s container %s of %s", self._image.engine, self._identifier[:12], self._image.name)

    async def close(self) -> None:
        if self._group is None:
            return
        self._group.close_stdin()
        if not await self._group.ends_within(STOP_S):
            command = (self._image.engine, "rm", "-f", self._identifier)
            with contextlib.suppress(OSError):
                await self._processes.run(command, seconds=STOP_S, limit=0)
        await self._processes.finish(self._group)


async def _identifier(file: Path, group: ProcessGroup) -> str:
    """Return the container's id; "" if the engine fails or does not report it in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while not group.exited.is_set():
                if found := _read(file):
                    return found
                await asyncio.sleep(POLL_S)
    return ""


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
