"""A small process between the router and another program that serves a model.

Started as `python -m llama_corral.router.process.external_shim`.

It has a worker's pipes. It starts the program, polls it until it is ready and reports that, then reports whether it
still answers (`health_probe`). It forwards a request to stop, ends when the program ends, and ends the program when the
router dies. It shares the program's process group, so that the router's SIGKILL reaches both. It does not know models
or requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec
import psutil
from llama_corral.common.base.open_files import restore_limit
from llama_corral.common.base.user_signals import ignore_user_signals_here
from llama_corral.common.base.worker_reports import CONTROL_FD_ENV, MemoryUsage, WorkerReport, encode

from .health_probe import HealthProbe
from .shim_plan import ShimPlan

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
"""Seconds between two readiness checks: at first and at most."""
ANSWER_S = 2.0
"""Timeout in seconds of a readiness check. The shim does nothing else while it waits for the answer."""
PORT_FORWARDERS = frozenset(
    {"docker-proxy", "rootlesskit", "rootlessport", "conmon", "slirp4netns", "pasta", "gvproxy"}
)
"""Programs that listen on behalf of containers, whose processes are not children of the program that started them."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FAILED = 1


class ProgramFailed(Exception):
    """The program failed; the text is a reason for the user."""


class ExternalShim:
    def __init__(self, plan: ShimPlan, control: int) -> None:
        self._plan = plan
        self._control = control
        host, _, port = plan.endpoint.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._is_ready = self._is_asked = False
        self._why_not = "it was not checked yet"
        self._stopper: subprocess.Popen[bytes] | None = None
        self._health_probe: HealthProbe | None = None
        self._wake = _wake_on_exits()
        if _libc is not None:  # orphans of the program become our children; a container's init may not reap
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> int:
        """Run the program and return its exit code; negative: the signal that ended it. Raises ProgramFailed."""
        if _accepts(self._address):
            raise ProgramFailed(f"another program already listens on {self._plan.endpoint}")
        self._program = _start(self._plan.command)
        deadline = time.monotonic() + self._plan.load_timeout
        pause = FIRST_PAUSE_S
        while (code := self._program.poll()) is None:
            self._check_stopper()
            self._listen(None if self._is_ready or self._is_asked else pause)
            self._check_health()
            if self._is_ready or self._is_asked:
                continue
            self._ask()
            pause = min(pause * 1.3, LONGEST_PAUSE_S)
            if not self._is_ready and time.monotonic() > deadline:
                raise ProgramFailed(f"not ready within {self._plan.load_timeout:g} s (load-timeout): {self._why_not}")
        if self._is_asked:
            return 0
        if not self._is_ready and code == 0:
            raise ProgramFailed("it ended before it was ready")
        return code

    # -- the router ---------------------------------------------------------------------------------------------------

    def _listen(self, seconds: float | None) -> None:
        """Wait for a line from the router, the end of a child, the health check, or until `seconds` have passed."""
        answers, questions = self._health_probe.descriptors if self._health_probe else ([], [])
        pause = self._health_probe.seconds_left if self._health_probe else seconds
        ready, _, _ = select.select([0, self._wake, *answers], questions, [], pause)
        if self._wake in ready:
            os.read(self._wake, 512)
            self._reap_adopted()
        if 0 in ready:
            words = os.read(0, 512)
            if not words:
                self.clear()
                os._exit(_FAILED)  # the router has died: no process reads our reports
            if b"exit" in words and not self._is_asked:
                self._is_asked = True
                if self._health_probe is not None:
                    self._health_probe.close()
                    self._health_probe = None
                self._stop()

    def report(self, report: WorkerReport) -> None:
        os.write(self._control, encode(report))

    # -- the program --------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if not self._plan.stop_command:
            self._program.terminate()
            return
        pid = str(self._program.pid)
        try:
            self._stopper = _start([word.replace("${PID}", pid) for word in self._plan.stop_command])
        except ProgramFailed as error:
            _log_line(f"cmd-stop: {error}; sending SIGTERM instead")
            self._program.terminate()

    def _check_health(self) -> None:
        if self._health_probe is not None and (sign := self._health_probe.advance()):
            self.report(WorkerReport("alive", msgspec.structs.asdict(sign)))

    def _check_stopper(self) -> None:
        """If the stop command failed, send SIGTERM."""
        if self._stopper is None or (code := self._stopper.poll()) is None:
            return
        self._stopper = None
        if code != 0:
            _log_line(f"cmd-stop ended with {code}; sending SIGTERM instead")
            self._program.terminate()

    def _reap_adopted(self) -> None:
        ours = {process.pid for process in (self._program, self._stopper) if process is not None}
        while _libc is not None:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in ours:  # their exit codes are read with poll()
                return
            os.waitpid(ended.si_pid, 0)

    def clear(self) -> None:
        """Kill and reap all processes that the program left running."""
        while left := psutil.Process().children(recursive=True):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            with contextlib.suppress(ChildProcessError):
                os.wait()

    def _ask(self) -> None:
        self._why_not = self._not_ready_reason()
        if self._why_not or self._program.poll() is not None:
            return
        if self._plan.owns_port and (stranger := foreign_listener(self._address[1])):
            raise ProgramFailed(f"another program ({stranger}) listens on {self._plan.endpoint}")
        self._is_ready = True
        if self._plan.ask_every:
            with contextlib.suppress(OSError):  # it ended just now; the main loop notices that
                self._health_probe = HealthProbe(self._address, self._plan.health, self._plan.ask_every)
        self.report(WorkerReport("ready", {}, MemoryUsage(_resident_bytes()) if self._plan.measures else None))

    def _not_ready_reason(self) -> str:
        """Return the reason why the program is not ready, or "" once it is."""
        if not self._plan.health:
            return "" if _accepts(self._address) else f"no process listens on {self._plan.endpoint}"
        connection = http.client.HTTPConnection(*self._address, timeout=ANSWER_S)
        try:
            connection.request("GET", self._plan.health)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return f"GET {self._plan.health}: {error or type(error).__name__}"
        finally:
            connection.close()
        return "" if answer.status // 100 == 2 else f"GET {self._plan.health} answers {answer.status}"


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command in our process group, with our log but without our pipes. Raises ProgramFailed."""
    environ = {name: value for name, value in os.environ.items() if name != CONTROL_FD_ENV}
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environ, preexec_fn=_set_parent_death_signal)
    except OSError as error:
        raise ProgramFailed(f"{command[0]}: {error.strerror or error}") from None


def _set_parent_death_signal() -> None:
    """Called between fork and exec, which is safe because this process has one thread."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def _wake_on_exits() -> int:
    """Return a descriptor that becomes readable when a child has ended."""
    wake, awake = os.pipe()
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(awake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake


def _accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, ANSWER_S).close()
    except OSError:
        return False
    return True


def foreign_listener(port: int) -> str:
    """Return names and pids of the processes that listen on `port`; "" if one is our program's or none is known."""
    session = os.getsid(0)
    owners = _listeners(port)
    if any(pid == os.getpid() or _session_of(pid) == session for pid in owners):
        return ""
    descendants = {child.pid for child in psutil.Process().children(recursive=True)}
    names = [_name(pid) for pid in owners]
    if not owners or descendants & set(owners) or PORT_FORWARDERS & set(names):
        return ""
    return ", ".join(f"{name}, process {pid}" for name, pid in zip(names, owners, strict=True))


def _listeners(port: int) -> list[int]:
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return sorted(
        {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid}
    )


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "?"


def _resident_bytes() -> int:
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += int(child.memory_info().rss)
        except psutil.Error:
            continue
    return total


def _log_line(text: str) -> None:
    print(f"shim: {text}", file=sys.stderr, flush=True)


def main() -> int:
    ignore_user_signals_here()
    plan = msgspec.json.decode(sys.argv[1], type=ShimPlan)
    restore_limit(plan.open_files)
    shim = ExternalShim(plan, int(os.environ[CONTROL_FD_ENV]))
    try:
        code = shim.run()
    except ProgramFailed as error:
        _log_line(str(error))
        shim.report(WorkerReport("failed", {"message": str(error)}))
        return _FAILED
    finally:
        shim.clear()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no second core dump: the program may have written its own
        with contextlib.suppress(OSError):  # SIGKILL cannot have a handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
