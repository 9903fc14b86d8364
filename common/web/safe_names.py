"""Names of files that a request gives: which of them stay where they belong, on every system. Pure.

The rules are llama-server's. Asked by whoever opens a file for a request, who still has to look at what is opened.
"""

from __future__ import annotations

import re

_LONGEST = 255
"""Bytes."""
_FORBIDDEN = re.compile(
    '[\\x00-\\x1f\\x7f-\\x9f:*?"<>|'  # controls, and what Windows refuses
    "\uff0e\u2215\u2216\ufffd\ufeff\ud800-\udfff]"  # lookalikes of dot and separators, what is no character
)


def is_safe_path(name: str) -> bool:
    """Whether it can only lead downwards."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= _LONGEST
        and not _FORBIDDEN.search(name)
        and not name.startswith(" ")
        and not name.endswith((" ", "."))
        and ".." not in name
    )


def is_safe_name(name: str) -> bool:
    """Whether it names a file right in its directory."""
    return is_safe_path(name) and "/" not in name and "\\" not in name
