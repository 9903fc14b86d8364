"""Checks file names from requests: a safe name cannot leave its directory, on any system. Pure functions.

The rules are llama-server's. Code that opens a file for a request must check the name here and the opened file itself.
"""

from __future__ import annotations

import re

_LONGEST = 255
"""Bytes."""
_FORBIDDEN = re.compile(
    '[\\x00-\\x1f\\x7f-\\x9f:*?"<>|'  # control characters, and characters that Windows refuses
    "\uff0e\u2215\u2216\ufffd\ufeff\ud800-\udfff]"  # lookalikes of dot and separators, and invalid characters
)


def is_safe_path(name: str) -> bool:
    """Return True if the relative path cannot leave its directory."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= _LONGEST
        and not _FORBIDDEN.search(name)
        and not name.startswith(" ")
        and not name.endswith((" ", "."))
        and ".." not in name
    )


def is_safe_name(name: str) -> bool:
    """Return True if the name is a file directly in its directory."""
    return is_safe_path(name) and "/" not in name and "\\" not in name
