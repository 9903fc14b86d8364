"""Test worker processes, forked and spawned: start, reports, logs, failures and exit."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from llama_corral.router.process import zygote
from llama_corral.router.process.launcher import Launcher, LaunchSpec, Worker
from llama_corral.router.process.pipes import MAX_LOG_LINES, LineReader
from llama_corral.router.process.spawn import SpawnLauncher
from llama_corral.router.process.zygote import ZYGOTE_COMMAND, ZygoteLauncher
from router_tools import FAKE_COMMAND, KINDS, TESTS, Kind, Recorder, fake_launcher, is_alive, python_path, until

every_kind = pytest.mark.parametrize("kind", KINDS)


def spec(flags: str = "", name: str = "fake") -> LaunchSpec:
    return LaunchSpec(name, ("--model", flags, "--alias", name))


@asynccontextmanager
async def launched(kind: Kind, flags: str = "") -> AsyncIterator[tuple[Worker, Recorder]]:
    launcher = fake_launcher(kind)
    recorder = Recorder()
    worker = launcher.launch(spec(flags), recorder.callbacks)
    try:
        yield worker, recorder
    finally:
        await end(launcher, worker, recorder)


async def end(launcher: Launcher, worker: Worker, recorder: Recorder) -> None:
    worker.kill()
    await recorder.exited()
    await launcher.close()


async def get(endpoint: str, path: str) -> dict[str, object]:
    reader, writer = await asyncio.open_unix_connection(endpoint)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    value: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return value


@every_kind
async def test_worker_is_stopped_for_a_reason_that_is_not_valid_text(kind: Kind) -> None:
    async with launched(kind, "code=5") as (worker, recorder):
        await recorder.state("ready")
        worker.stop("it cannot be loaded again: '\udcff' is not UTF-8 text")
        await recorder.exited()


@every_kind
async def test_worker_serves_and_exits_on_request(kind: Kind) -> None:
    async with launched(kind, "code=5") as (worker, recorder):
        ready = await recorder.state("ready")
        assert ready.payload["id"] == "fake"
        assert recorder.reports[0].state == "loading"
        answer = await get(worker.endpoint, "/props")
        assert isinstance(answer["worker"], dict)
        assert answer["worker"]["pid"] == worker.pid
        assert worker.arguments == (*FAKE_COMMAND, *answer["worker"]["argv"])
        directory = Path(worker.endpoint).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        worker.stop()
        assert await recorder.exited() == 5
        assert os.listdir(directory) == []
    await until(lambda: not directory.exists())


@every_kind
async def test_last_log_lines_of_a_worker_that_dies_while_loading_are_kept(kind: Kind) -> None:
    async with launched(kind, "die-loading") as (worker, recorder):
        assert await recorder.exited() == 3
        assert worker.last_lines[-2:] == ("about to fall", "cannot go on: no reason")


@every_kind
async def test_report_of_failure_arrives_before_the_exit(kind: Kind) -> None:
    async with launched(kind, "fail-load=no such file") as (_, recorder):
        assert await recorder.exited() == 1
        assert recorder.reports[-1].payload == {"message": "no such file"}


@every_kind
async def test_kill_ends_the_whole_process_group(kind: Kind) -> None:
    async with launched(kind, "grandchild,ignore-exit") as (worker, recorder):
        await recorder.state("ready")
        await until(lambda: any("grandchild" in line for line in worker.last_lines))
        grandchild = int(worker.last_lines[0].split()[1])
        worker.stop()
        await until(lambda: "asked to leave, and stays" in worker.last_lines)
        assert not recorder.exit.done()
        worker.kill()
        assert await recorder.exited() == -signal.SIGKILL
        await until(lambda: not is_alive(grandchild))


@every_kind
async def test_grandchild_does_not_outlive_a_worker_that_exits(kind: Kind) -> None:
    async with launched(kind, "grandchild") as (worker, recorder):
        await recorder.state("ready")
        worker.stop()
        assert await recorder.exited() == 0
        grandchild = int(worker.last_lines[0].split()[1])
        await until(lambda: not is_alive(grandchild))


@every_kind
async def test_kill_right_after_launch(kind: Kind) -> None:
    async with launched(kind, "never-ready") as (worker, recorder):
        worker.kill()
        assert await recorder.exited() == -signal.SIGKILL
        worker.kill()
        worker.stop()


@every_kind
async def test_flooded_log_is_drained_and_its_end_kept(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="corral.workers"):
        async with launched(kind, "flood=20000,endless-line=3000000") as (worker, recorder):
            await recorder.state("ready")
            worker.stop()
            assert await recorder.exited() == 0
            assert len(worker.last_lines) == MAX_LOG_LINES
            assert max(map(len, worker.last_lines)) < 500
            prefix = f"[{worker.pid}/fake] flood 19999"
    assert any(message.startswith(prefix) for message in caplog.messages)
    assert len(caplog.messages) >= 20000


@every_kind
async def test_garbage_on_the_control_pipe_is_logged_and_skipped(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    async with launched(kind, "garbage") as (_, recorder):
        await recorder.state("ready")
        assert {report.state for report in recorder.reports} == {"loading", "ready"}
    assert sum("invalid report" in message for message in caplog.messages) == 4


@every_kind
async def test_environment_reaches_the_worker(kind: Kind) -> None:
    launcher = fake_launcher(kind, GGML_NO_BACKTRACE="0")
    recorder = Recorder()
    worker = launcher.launch(LaunchSpec("e", ("--model", "", "--alias", "e"), {"MINE": "1"}), recorder.callbacks)
    await recorder.state("ready")
    assert worker.pid is not None
    environ = (await get(worker.endpoint, "/environ"))["environ"]
    assert isinstance(environ, dict)
    assert environ["MINE"] == "1"
    assert environ["GOMP_SPINCOUNT"] == "20000"
    assert environ["GGML_NO_BACKTRACE"] == "0"
    await end(launcher, worker, recorder)


async def test_missing_program() -> None:
    launcher = SpawnLauncher(os.environ, ("/nowhere/at/all",))
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            launcher.launch(spec(), Recorder().callbacks)
        assert psutil.Process().num_fds() == before + 1, "the lock of the directory for sockets"
    await launcher.close()
    assert psutil.Process().num_fds() == before


@every_kind
async def test_no_descriptor_leaks(kind: Kind) -> None:
    launcher = fake_launcher(kind)
    launcher.start()
    before = psutil.Process().num_fds()
    for _ in range(3):
        recorder = Recorder()
        worker = launcher.launch(spec(), recorder.callbacks)
        await recorder.state("ready")
        worker.stop()
        await recorder.exited()
    assert psutil.Process().num_fds() == before
    await launcher.close()


@every_kind
async def test_worker_inherits_no_descriptor_but_its_own(kind: Kind) -> None:
    launcher = fake_launcher(kind)
    pairs = []
    for number in range(3):
        recorder = Recorder()
        pairs.append((launcher.launch(spec(name=str(number)), recorder.callbacks), recorder))
        await recorder.state("ready")
    counts = {psutil.Process(worker.pid).num_fds() for worker, _ in pairs}
    assert len(counts) == 1, "the later ones hold more than the first"
    for worker, recorder in pairs:
        worker.stop()
        await recorder.exited()
    await launcher.close()


async def test_line_reader_joins_drops_and_flushes() -> None:
    lines: list[bytes] = []
    end, writer = os.pipe()
    reader = LineReader(end, lines.append)
    os.write(writer, b"one\ntwo")
    await until(lambda: lines == [b"one"])
    os.write(writer, b" halves\n\nlast")
    os.close(writer)
    await until(lambda: lines == [b"one", b"two halves", b"", b"last"])
    reader.close()


# -- the zygote alone --------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has a zygote")


def zygote_pid() -> int | None:
    zygotes = [p for p in psutil.Process().children() if "llama_corral.worker.zygote" in " ".join(p.cmdline())]
    return zygotes[0].pid if zygotes else None


@linux
async def test_workers_die_with_their_zygote_and_the_next_launch_starts_another() -> None:
    launcher = fake_launcher("zygote")
    first = Recorder()
    launcher.launch(spec("ignore-exit"), first.callbacks)
    await first.state("ready")
    pid = zygote_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await first.exited() == -signal.SIGKILL
    second = Recorder()
    worker = launcher.launch(spec(), second.callbacks)
    await second.state("ready")
    assert zygote_pid() not in (None, pid)
    await end(launcher, worker, second)


@linux
async def test_a_zygote_that_stops_answering_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that it has forked serves on; the one that it was to fork comes from another zygote."""
    launcher = fake_launcher("zygote")
    first, second = Recorder(), Recorder()
    worker = launcher.launch(spec("code=5", name="first"), first.callbacks)
    await first.state("ready")
    pid = zygote_pid()
    assert pid is not None
    monkeypatch.setattr(zygote, "ANSWER_S", 0.3)
    os.kill(pid, signal.SIGSTOP)
    other = launcher.launch(spec(name="second"), second.callbacks)
    await second.state("ready")
    assert (await get(worker.endpoint, "/props"))["worker"]
    assert psutil.Process(other.pid).ppid() not in (pid, os.getpid())
    worker.stop()
    assert await first.exited() == 5, "as its parent would have reported it"
    await until(lambda: not psutil.pid_exists(pid))
    await end(launcher, other, second)


@linux
@pytest.mark.parametrize("is_killed", [True, False])
async def test_the_exit_of_a_worker_is_noticed_without_its_zygote(
    monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    """The zygote stops while nothing is to be forked. Without its report an unload would never end."""
    launcher = fake_launcher("zygote")
    recorder = Recorder()
    worker = launcher.launch(spec("code=5"), recorder.callbacks)
    await recorder.state("ready")
    pid = zygote_pid()
    assert pid is not None
    monkeypatch.setattr(zygote, "ANSWER_S", 0.3)
    os.kill(pid, signal.SIGSTOP)
    worker.kill() if is_killed else worker.stop()
    assert await recorder.exited() == (-signal.SIGKILL if is_killed else 5)
    await until(lambda: not psutil.pid_exists(pid))
    await launcher.close()


@linux
async def test_a_zygote_that_goes_on_later_leaves_no_second_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = fake_launcher("zygote")
    first, second = Recorder(), Recorder()
    worker = launcher.launch(spec(name="first"), first.callbacks)
    await first.state("ready")
    pid = zygote_pid()
    assert pid is not None
    monkeypatch.setattr(zygote, "ANSWER_S", 0.3)
    os.kill(pid, signal.SIGSTOP)
    other = launcher.launch(spec(name="second"), second.callbacks)
    await second.state("ready")
    kill, killed = os.kill, list[int]()
    monkeypatch.setattr(os, "kill", lambda pid, number: (killed.append(pid), kill(pid, number)))
    kill(pid, signal.SIGCONT)
    await until(lambda: killed)
    await until(lambda: psutil.Process(pid).children() == [psutil.Process(worker.pid)])
    assert (await get(other.endpoint, "/props"))["worker"]
    worker.stop()
    assert await first.exited() == 0
    await end(launcher, other, second)


@linux
async def test_a_zygote_that_never_answers_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "FIRST_ANSWER_S", 0.3)
    environ = {**os.environ, "PYTHONPATH": python_path(TESTS)}
    launcher = ZygoteLauncher(environ, (sys.executable, "-c", "import time; time.sleep(1000)"), FAKE_COMMAND)
    recorder = Recorder()
    worker = launcher.launch(spec(), recorder.callbacks)
    await recorder.state("ready")
    assert psutil.Process(worker.pid).ppid() == os.getpid(), "it is spawned"
    await end(launcher, worker, recorder)


@every_kind
async def test_paths_and_variables_may_be_any_bytes(kind: Kind) -> None:
    launcher = fake_launcher(kind, ODD="\udcff")
    recorder = Recorder()
    worker = launcher.launch(LaunchSpec("odd", ("--model", "note=\udcfe", "--alias", "odd")), recorder.callbacks)
    await recorder.state("ready")
    process = psutil.Process(worker.pid)
    if kind == "spawn":
        assert process.environ()["ODD"] == "\udcff"
        assert "note=\udcfe" in process.cmdline()
    await end(launcher, worker, recorder)


@every_kind
async def test_the_directory_of_the_sockets_is_made_again(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that tidies up may even delete the directory for temporary files."""
    place = tempfile.mkdtemp()  # its path is short enough for sockets
    monkeypatch.setattr("tempfile.tempdir", place)
    launcher = fake_launcher(kind)
    for _ in range(2):
        recorder = Recorder()
        worker = launcher.launch(spec(), recorder.callbacks)
        await recorder.state("ready")
        worker.stop()
        await recorder.exited()
        shutil.rmtree(place)
    await launcher.close()
    assert not os.path.exists(place)


@linux
@pytest.mark.parametrize("program", ["json:no_such_function", "no_such_module:run", "threads_at_import:run"])
async def test_workers_are_spawned_if_the_zygote_cannot_fork(program: str, tmp_path: Path) -> None:
    (tmp_path / "threads_at_import.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "def run(argv, environ):\n    return 9\n"
    )

    environ = {**os.environ, "PYTHONPATH": python_path(TESTS, tmp_path)}
    launcher = ZygoteLauncher(environ, (*ZYGOTE_COMMAND, "--program", program), FAKE_COMMAND)
    recorder = Recorder()
    worker = launcher.launch(spec(), recorder.callbacks)
    await recorder.state("ready")
    assert worker.pid is not None
    assert psutil.Process(worker.pid).ppid() == os.getpid()
    await end(launcher, worker, recorder)


@linux
async def test_many_workers_requested_before_the_zygote_is_ready() -> None:
    launcher = fake_launcher("zygote")
    long = "x" * 200_000  # more than the socket buffers, so that requests are sent in parts
    pairs = []
    for number in range(6):
        recorder = Recorder()
        options = ("--model", f"note={long}", "--alias", str(number))
        pairs.append((launcher.launch(LaunchSpec(str(number), options), recorder.callbacks), recorder))
    for number, (_, recorder) in enumerate(pairs):
        assert (await recorder.state("ready")).payload["id"] == str(number)
    for worker, recorder in pairs:
        worker.stop()
        assert await recorder.exited() == 0
    await launcher.close()
