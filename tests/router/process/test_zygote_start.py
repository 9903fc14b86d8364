"""Test the early start of the zygote: when it happens, what its process inherits, and forks during its imports."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from llama_corral.common.base.library_environment import zygote_environ
from llama_corral.presets import merge
from llama_corral.presets.options.option import Option
from llama_corral.presets.options.table import FLAGS, OPTIONS, VARIABLES
from llama_corral.router.process import zygote_start
from llama_corral.router.process.launcher import LaunchSpec
from llama_corral.router.process.zygote import ZYGOTE_COMMAND, ZygoteLauncher
from llama_corral.router.process.zygote_start import end_early, is_probably_router, start_early, take_early
from router_tools import FAKE_COMMAND, TESTS, Recorder, is_alive, python_path, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has a zygote")

ONE_MODEL = ("model", "model_url", "hf_repo", "docker_repo")
TEXTS = ("usage", "version", "completion_bash", "cache_list", "list_devices")
COMMAND = Path(sys.executable).with_name("llama-corral")


@pytest.fixture
def no_early_zygote() -> Iterator[None]:
    end_early()
    yield
    end_early()


def test_flags_of_other_tasks_start_no_zygote() -> None:
    entries = [OPTIONS[field] for field in (*ONE_MODEL, *TEXTS)]
    flags = [flag for flag, spelling in FLAGS.items() if spelling.entry in entries]
    assert len(flags) >= len(entries)
    for flag in flags:
        assert not is_probably_router(["--port", "1", flag, "x"], {}), flag
        assert not is_probably_router([f"{flag}=x"], {}), flag


def test_shorthands_for_one_model_start_no_zygote() -> None:
    for flag, spelling in FLAGS.items():
        if spelling.negated or getattr(spelling.entry, "hint", None) or isinstance(spelling.entry, Option):
            continue
        try:
            settings = merge.resolve(merge.read_argv([flag]))
        except Exception:
            continue
        if not settings.is_router:
            assert not is_probably_router([flag], {}), flag


def test_variables_that_name_one_model_start_no_zygote() -> None:
    names = [name for name, spelling in VARIABLES.items() if spelling.entry in [OPTIONS[field] for field in ONE_MODEL]]
    assert names
    for name in names:
        assert not is_probably_router([], {name: "x"}), name
        assert is_probably_router([], {name: ""}), name


@pytest.mark.parametrize("argv", [[], ["--models-dir", "/m"], ["--models-preset=/p.ini", "--port", "8"], ["--demo"]])
def test_arguments_of_a_router_start_a_zygote(argv: list[str]) -> None:
    assert is_probably_router(argv, {"PATH": "/bin"})


def test_the_environment_of_a_zygote_has_no_options_and_no_secrets() -> None:
    private = [
        name for name, spelling in VARIABLES.items() if isinstance(spelling.entry, Option) and spelling.entry.router_own
    ]
    given = dict.fromkeys((*private, "HF_TOKEN", "AIP_MODE", "NOTIFY_SOCKET"), "secret")
    kept = zygote_environ({**given, "LD_LIBRARY_PATH": "/l", "LLAMA_CPP_LIB_PATH": "/c", "GOMP_SPINCOUNT": "7"})
    assert "secret" not in kept.values()
    assert (kept["LD_LIBRARY_PATH"], kept["LLAMA_CPP_LIB_PATH"]) == ("/l", "/c")
    assert kept["GOMP_SPINCOUNT"] == "7", "the user's own value"
    assert zygote_environ({})["GOMP_SPINCOUNT"] == "20000"


@pytest.mark.usefixtures("no_early_zygote")
def test_an_unused_early_zygote_is_killed() -> None:
    start_early([], os.environ)
    (started,) = zygote_start._early
    assert is_alive(started.process.pid)
    end_early()
    assert started.process.returncode == -signal.SIGKILL
    assert take_early() is None


@pytest.mark.usefixtures("no_early_zygote")
async def test_the_launcher_uses_the_early_zygote_once() -> None:
    others = set(psutil.Process().children())  # programs of other tests
    start_early([], os.environ)
    (started,) = zygote_start._early
    launcher = ZygoteLauncher(os.environ)
    launcher.start()
    assert take_early() is None
    assert [child.pid for child in psutil.Process().children() if child not in others] == [started.process.pid]
    await launcher.close()
    await until(lambda: not is_alive(started.process.pid))


@pytest.mark.parametrize("imports", ["--program", "--later"])
async def test_a_zygote_that_still_imports_does_not_delay_the_end(imports: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\n")
    with (tmp_path / "slow.py").open("a") as module:
        module.write("time.sleep(1000)\n")
    given = ("--program", "slow:run") if imports == "--program" else ("--program", "fake_worker:run", "--later", "slow")
    launcher = ZygoteLauncher(
        {**os.environ, "PYTHONPATH": python_path(TESTS, tmp_path)}, (*ZYGOTE_COMMAND, *given), FAKE_COMMAND
    )
    launcher.start()
    await until((tmp_path / "begun").exists)
    async with asyncio.timeout(1):
        await launcher.close()


def test_an_early_zygote_dies_with_a_command_that_fails(tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path), "EARLY_ZYGOTE_TEST": str(tmp_path)}
    failed = subprocess.run([COMMAND, "--bogus"], capture_output=True, text=True, env=environ, timeout=60)
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    for process in psutil.process_iter():
        try:
            left = process.environ().get("EARLY_ZYGOTE_TEST") == str(tmp_path) and is_alive(process.pid)
        except psutil.Error:
            continue
        assert not left, process


async def test_a_zygote_forks_during_its_imports_and_stops_if_they_start_threads(tmp_path: Path) -> None:
    """A worker that is forked already stays; later ones are spawned."""
    (tmp_path / "threads_later.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    )
    environ = {**os.environ, "PYTHONPATH": python_path(TESTS, tmp_path)}
    command = (*ZYGOTE_COMMAND, "--program", "fake_worker:run", "--later", "json", "threads_later")
    launcher = ZygoteLauncher(environ, command, FAKE_COMMAND)
    first, second = Recorder(), Recorder()
    forked = launcher.launch(LaunchSpec("a", ("--model", "", "--alias", "a")), first.callbacks)
    await first.state("ready")
    assert forked.pid is not None
    assert psutil.Process(forked.pid).ppid() != os.getpid()
    await until(lambda: launcher._is_unsafe)
    spawned = launcher.launch(LaunchSpec("b", ("--model", "", "--alias", "b")), second.callbacks)
    await second.state("ready")
    assert spawned.pid is not None
    assert psutil.Process(spawned.pid).ppid() == os.getpid()
    assert is_alive(forked.pid)
    for worker, recorder in ((forked, first), (spawned, second)):
        worker.stop()
        assert await recorder.exited() == 0
    await launcher.close()
