"""Fixtures for all tests: the tiny models, and the real programs that run on them.

`programs`, `module_programs` and `session_programs` start workers and gateways and end them with the test, the module
or the session; `start_worker` and `start_gateway` are short forms of the first. `worker` and `embedder` are shared by
the whole session: tests may send requests, but must not change their state. The report of a failed test contains the
logs of all programs that it used.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop
from programs import Program, Programs
from pytest_asyncio import is_async_test

ROOT = Path(__file__).resolve().parents[1]

# no deadline, so that tests do not fail on a busy machine
PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("patient", PATIENT)
hypothesis.settings.register_profile("thorough", PATIENT, max_examples=500)

COROUTINE_LIMIT = 100.0
"""Time limit of a test's coroutine in seconds. Less than --timeout, so a hanging test is cancelled and cleans up."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too, and more examples of each property")


def pytest_configure(config: pytest.Config) -> None:
    everything = config.getoption("--all")
    hypothesis.settings.load_profile("thorough" if everything else "patient")
    package = importlib.util.find_spec("ffmpeg")
    if everything and package and package.submodule_search_locations:
        programs = Path(package.submodule_search_locations[0]) / "binaries"
        os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    slow = {item for item in items if item.get_closest_marker("slow")}
    config.hook.pytest_deselected(items=list(slow))
    items[:] = [item for item in items if item not in slow]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on uvloop, like the programs."""
    return {"uvloop": uvloop.new_event_loop}


def _limited(
    test: Callable[..., Coroutine[Any, Any, None]], seconds: float
) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        await asyncio.wait_for(test(*args, **kwargs), seconds)

    return limited


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Limit the time of a test's coroutine; in a property test, of each example.

    pytest-timeout cannot do this: uvloop discards the exception that its signal handler raises.
    """
    if not is_async_test(item):
        return (yield)
    owner, name = (item.obj.hypothesis, "inner_test") if hasattr(item.obj, "hypothesis") else (item, "obj")
    mark = item.get_closest_marker("timeout")
    seconds = float(mark.args[0]) if mark and mark.args else COROUTINE_LIMIT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, _limited(getattr(owner, name), seconds))
        return (yield)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny models from scripts/make_test_models.py. Copy a file before changing it."""
    out = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, ROOT / "scripts" / "make_test_models.py", out], check=True)
    return out


def _programs(directory: Path, models: Path) -> Iterator[Programs]:
    group = Programs(directory, models)
    yield group
    group.close()


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Programs]:
    yield from _programs(tmp_path_factory.mktemp("programs"), models)


@pytest.fixture(scope="module")
def module_programs(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Programs]:
    yield from _programs(tmp_path_factory.mktemp("module-programs"), models)


@pytest.fixture(scope="session")
def session_programs(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Programs]:
    yield from _programs(tmp_path_factory.mktemp("session-programs"), models)


@pytest.fixture
def start_worker(programs: Programs) -> Callable[..., Program]:
    """Return `start_worker(*args, model="tiny-llama.gguf", env=None, wait="ready")`, see Programs.worker."""
    return programs.worker


@pytest.fixture
def start_gateway(programs: Programs) -> Callable[..., Program]:
    """Return `start_gateway(*args, presets=None, env=None, wait="ready")`, see Programs.gateway."""
    return programs.gateway


@pytest.fixture(scope="session")
def worker(session_programs: Programs) -> Program:
    """A worker with tiny-llama.gguf, two slots of 1024 tokens and all monitoring endpoints."""
    return session_programs.worker(
        "--alias", "tiny", "--ctx-size", "2048", "--parallel", "2", "--threads", "1", "--slots", "--metrics", "--props"
    )


@pytest.fixture(scope="session")
def embedder(session_programs: Programs) -> Program:
    return session_programs.worker("--alias", "bert", "--embeddings", "--threads", "1", model="tiny-bert.gguf")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, Programs) and (text := value.report()):
                report.sections.append((f"logs of {name}", text))
            elif isinstance(value, Program):
                report.sections.append((f"log of {name}", value.log_text[-6000:]))
    return report
