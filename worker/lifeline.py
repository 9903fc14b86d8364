"""The worker's connection to its router: sends reports on the control pipe and reads commands from stdin.

End of file on stdin means that the router has died; the worker then exits. All this applies only if the worker was
started with a control pipe; a worker that a person started does not read stdin. The watcher is a separate thread from
the start, so that the worker exits after its router even if the event loop or the main thread is blocked.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn

from llama_corral.common.base.worker_reports import CONTROL_FD_ENV, WorkerReport, encode

from .parent import die_with_parent

log = logging.getLogger("corral.worker")

ROUTER_DIED = 1  # exit code


class Lifeline:
    """The connection to the router. `report` and `on_exit` are thread-safe; without a router both do nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        number = environ.get(CONTROL_FD_ENV, "")
        self._control = int(number) if number.isdigit() else None
        self._lock = threading.Lock()
        self._exit_reason: str | None = None
        self._on_exit: Callable[[str], object] | None = None

    @property
    def has_router(self) -> bool:
        return self._control is not None

    def start(self) -> None:
        """Start the watcher. Call this before anything slow."""
        if self._control is None:
            return
        os.set_inheritable(self._control, False)
        die_with_parent(os.getppid())
        threading.Thread(target=self._watch, name="stdin", daemon=True).start()

    def report(self, report: WorkerReport) -> None:
        if self._control is None:
            return
        line = encode(report)
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._control, line) :]
            except OSError as error:
                log.warning("cannot send reports to the router any more: %s", error)
                self._control = None

    def on_exit(self, callback: Callable[[str], object]) -> None:
        """Call `callback` with the router's reason when it requests the exit; immediately if it already has.

        It is called on the watcher's thread.
        """
        with self._lock:
            self._on_exit = callback
            reason = self._exit_reason
        if reason is not None:
            callback(reason)

    def _watch(self) -> None:
        pending = b""
        while data := _read_stdin():
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                command, _, reason = line.partition(b" ")
                if command.strip() == b"exit":
                    self._ask_exit(reason.decode(errors="replace").strip())
        os._exit(ROUTER_DIED)

    def _ask_exit(self, reason: str) -> None:
        with self._lock:
            if self._exit_reason is not None:
                return
            self._exit_reason = reason
            callback = self._on_exit
        if callback is not None:
            callback(reason)


def exit_at_once(code: int) -> NoReturn:
    """Exit during a download or load. Neither can be interrupted, and neither needs a cleanup."""
    logging.shutdown()
    os._exit(code)


def _read_stdin() -> bytes:
    try:
        return os.read(0, 4096)
    except OSError:
        return b""
