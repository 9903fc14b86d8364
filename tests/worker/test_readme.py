"""Checks the worker's README against the worker's routes and files."""

from __future__ import annotations

import re
from pathlib import Path

from llama_corral.worker.app import COMPUTING, MONITORING, RESUMING, STORED, STREAMING

WORKER = Path(__file__).resolve().parents[2] / "worker"
README = (WORKER / "README.md").read_text()


def test_every_endpoint_is_named() -> None:
    described = set(re.findall(r"`(/[^`]*)`", README))
    routes = (*MONITORING, *STREAMING, *RESUMING, *STORED, *COMPUTING)
    shared = {"/tools", "/cors-proxy"}
    served = {path.replace(":.+", "") for _, path, _ in routes} | shared
    assert not served - described
    assert not described - served - {"/"}


def test_every_file_exists_and_each_handler_is_described() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)`", README))
    assert all((WORKER / name).is_file() or (WORKER.parent / name).is_file() for name in named)
    handlers = {path.relative_to(WORKER).as_posix() for path in WORKER.rglob("*.py")} - named
    undescribed = {name for name in handlers if name.startswith(("api/", "chat/")) and not name.endswith("__init__.py")}
    shared = {"answers/dialect", "request/generation_settings", "metrics", "answers/results"}
    assert undescribed == {f"api/{name}.py" for name in shared}
