"""Threads for calls that block: results, errors, limits, and that a call that hangs delays no end of the program."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from llama_corral.common.base.daemon_threads import DaemonThreads

HANGING = """
import asyncio, threading, sys, time
from llama_corral.common.base.daemon_threads import use_daemon_threads
async def main():
    use_daemon_threads()
    started = threading.Event()
    def hang():
        started.set()
        threading.Event().wait()
    task = asyncio.create_task(asyncio.to_thread(hang))
    await asyncio.to_thread(started.wait)
    print("ending", flush=True)
{run}(main())
print("ended", flush=True)
"""


@pytest.mark.parametrize("run", ["asyncio.run", "__import__('uvloop').run"])
def test_a_program_ends_although_a_call_hangs(run: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING.replace("{run}", run)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["ending", "ended"]
    assert done.returncode == 0, done.stderr


async def test_results_and_errors() -> None:
    asyncio.get_running_loop().set_default_executor(pool := DaemonThreads(2))
    assert await asyncio.gather(*(asyncio.to_thread(pow, n, 2) for n in range(50))) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 / 0)
    assert await asyncio.to_thread(lambda: threading.current_thread().daemon)
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(int)


def test_no_more_threads_than_calls_and_than_the_limit() -> None:
    pool, gate = DaemonThreads(3), threading.Event()
    names = [pool.submit(lambda: (gate.wait(), threading.current_thread().name)[1]) for _ in range(9)]
    last = pool.submit(int)
    assert last.cancel()
    gate.set()
    assert {name.result(60) for name in names} <= {"blocking-0", "blocking-1", "blocking-2"}
    pool.shutdown()


def test_the_shutdown_waits_for_a_call_that_ends() -> None:
    pool, results = DaemonThreads(patience=60), list[int]()
    pool.submit(lambda: (time.sleep(0.1), results.append(1)))
    pool.shutdown()
    assert results == [1]
