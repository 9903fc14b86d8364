"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def llama(models: Path) -> Path:
    return models / "tiny-llama.gguf"
