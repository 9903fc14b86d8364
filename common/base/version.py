"""Which build this is, as `--version`, `/props` and `system_fingerprint` say it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("llama-corral")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0"

BUILD_INFO = f"b0-llama-corral-{VERSION}"
"""Clients tell llama-server's builds by a leading b and a number."""
