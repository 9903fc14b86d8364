"""The worker's ties to its router: reports go out on the control pipe, orders and the router's death come in on stdin.

Only a worker that was started with a control pipe has them; one that a person started reads no stdin. The watcher is a
thread of its own from the very start, because nothing that keeps the event loop or the interpreter's main thread busy
may keep a worker alive whose router is gone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping

from llama_corral.common.base.worker_reports import CONTROL_FD_ENV, WorkerReport, encode

from .parent import die_with_parent

log = logging.getLogger("corral.worker")

ROUTER_DIED = 1  # exit code


class Lifeline:
    """`report` and `on_exit` may be called from any thread; without a router both do nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        number = environ.get(CONTROL_FD_ENV, "")
        self._control = int(number) if number.isdigit() else None
        self._lock = threading.Lock()
        self._exit_asked = False
        self._on_exit: Callable[[], object] | None = None

    @property
    def has_router(self) -> bool:
        return self._control is not None

    def start(self) -> None:
        """Called before anything that takes time."""
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
                log.warning("the router does not listen to reports any more: %s", error)
                self._control = None

    def on_exit(self, callback: Callable[[], object]) -> None:
        """`callback` is called on the watcher's thread when the router asks for an end; at once if it has already."""
        with self._lock:
            self._on_exit = callback
            asked = self._exit_asked
        if asked:
            callback()

    def _watch(self) -> None:
        pending = b""
        while data := _read_stdin():
            *lines, pending = (pending + data).split(b"\n")
            if any(line.strip() == b"exit" for line in lines):
                self._ask_exit()
        os._exit(ROUTER_DIED)

    def _ask_exit(self) -> None:
        with self._lock:
            first, self._exit_asked = not self._exit_asked, True
            callback = self._on_exit
        if first and callback is not None:
            callback()


def _read_stdin() -> bytes:
    try:
        return os.read(0, 4096)
    except OSError:
        return b""
