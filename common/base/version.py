"""The version and build strings for `--version`, `/props` and `system_fingerprint`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("llama-corral")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0"

BUILD_INFO = f"b0-llama-corral-{VERSION}"
"""Clients expect llama-server's format: a leading b and a number."""
