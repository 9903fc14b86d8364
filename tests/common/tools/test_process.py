"""Processes of tools: their limits, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llama_corral.common.tools.process import Processes
from router_tools import is_alive, until

SHELL = ("sh", "-c")


async def gone(pid: int) -> None:
    await until(lambda: not is_alive(pid))


async def test_output_errors_and_exit_code() -> None:
    processes = Processes(os.environ)
    done = await processes.run((*SHELL, "cat; echo oops >&2; exit 3"), seconds=20, limit=100, stdin=b"in")
    assert (done.exit_code, done.output, done.errors, done.timed_out) == (3, b"in", b"oops\n", False)
    merged = await processes.run((*SHELL, "echo a; echo b >&2"), seconds=20, limit=100, merge_errors=True)
    assert merged.output == b"a\nb\n"
    killed = await processes.run((*SHELL, "kill -TERM $$"), seconds=20, limit=100)
    assert killed.exit_code == 128 + signal.SIGTERM


async def test_output_is_limited_and_forwarded() -> None:
    pieces: list[bytes] = []
    done = await Processes(os.environ).run(
        (*SHELL, "head -c 1000000 /dev/zero; echo end"), seconds=20, limit=1000, on_output=pieces.append
    )
    assert (len(done.output), done.is_cut, done.exit_code) == (1000, True, 0)
    assert b"".join(pieces) == done.output


async def test_an_endless_command_is_killed_with_its_children() -> None:
    script = "sleep 1000 & echo $!; exec sleep 1000"
    done = await Processes(os.environ).run((*SHELL, script), seconds=0.3, limit=100)
    assert done.timed_out
    assert done.exit_code == 128 + signal.SIGKILL
    await gone(int(done.output))


async def test_background_processes_end_with_the_command() -> None:
    done = await Processes(os.environ).run((*SHELL, "sleep 1000 & echo $!"), seconds=20, limit=100)
    assert not done.timed_out
    await gone(int(done.output))


async def test_a_process_outside_the_group_with_open_pipes_causes_no_wait() -> None:
    began = time.monotonic()
    code = """
import os
read, write = os.pipe()
if os.fork():
    os.read(read, 1)
else:
    os.setsid()
    print(os.getpid(), flush=True)
    os.write(write, b".")
    os.execvp("sleep", ["sleep", "60"])
"""
    done = await Processes(os.environ).run((sys.executable, "-c", code), seconds=20, limit=100)
    assert time.monotonic() - began < 20
    assert is_alive(int(done.output))
    os.kill(int(done.output), signal.SIGKILL)


async def test_cancelling_and_closing_kill() -> None:
    processes = Processes(os.environ)
    said: list[bytes] = []
    command = (*SHELL, "echo $$; exec sleep 1000")
    for end in ("cancel", "close"):
        said.clear()
        task = asyncio.create_task(processes.run(command, seconds=100, limit=100, on_output=said.append))
        await until(lambda: bool(said))
        if end == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            processes.close()
            assert (await task).exit_code == 128 + signal.SIGKILL
        await gone(int(said[0]))
    with pytest.raises(OSError, match="stopping"):
        await processes.run(command, seconds=1, limit=1)


async def test_a_failed_start_raises_and_leaks_no_descriptor() -> None:
    processes = Processes(os.environ)
    await processes.run(("true",), seconds=20, limit=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(OSError):  # noqa: PT011
            await processes.run(("true",), seconds=1, limit=1, cwd="/nowhere/at/all")
        with pytest.raises(ValueError, match="NUL"):
            await processes.run(("true", "\0"), seconds=1, limit=1)
        missing = await processes.run(("no-such-program-4711",), seconds=20, limit=1)
        assert missing.exit_code == 127
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_nothing_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    """The command and its child ignore all signals that can be ignored."""
    script = """
import asyncio, os, sys
from llama_corral.common.tools.process import Processes
command = ("sh", "-c", "trap '' TERM HUP; sleep 1000 & echo $$ $!; sleep 1000")
on_output = lambda data: (sys.stdout.write(data.decode()), sys.stdout.flush())
asyncio.run(Processes(os.environ).run(command, seconds=1000, limit=100, on_output=on_output))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(word) for word in server.stdout.readline().split()]
        assert all(is_alive(pid) for pid in pids)
        server.kill()

    for pid in pids:
        await gone(pid)
