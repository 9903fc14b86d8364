"""The version and build strings for `--version`, `/props`, `/api/version` and `system_fingerprint`."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

try:
    VERSION = version("llama-corral")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0"

BUILD_INFO = f"b0-llama-corral-{VERSION}"
"""Clients expect llama-server's format: a leading b and a number."""
UNKNOWN = "unknown"


@functools.cache
def build_origin() -> tuple[str, str]:
    """Return the commit from which the package was installed, and when (ISO 8601, UTC); each may be UNKNOWN."""
    try:
        installed = distribution("llama-corral")
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        metadata = next(path for path in installed.files or () if path.name == "METADATA")
        date = datetime.fromtimestamp(Path(metadata.locate()).stat().st_mtime, UTC).isoformat(timespec="seconds")
    except (PackageNotFoundError, StopIteration, OSError, ValueError):
        return UNKNOWN, UNKNOWN
    return str(origin.get("vcs_info", {}).get("commit_id", UNKNOWN)), date.replace("+00:00", "Z")
