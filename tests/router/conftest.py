"""Fixtures for the router's tests."""

from __future__ import annotations

import pytest
from llama_corral.router import watcher


@pytest.fixture
def quick_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the watcher look often and wait little, for tests of what it notices and not of how soon."""
    monkeypatch.setattr(watcher, "POLL_S", 0.2)
    monkeypatch.setattr(watcher, "SETTLE_S", 0.05)
