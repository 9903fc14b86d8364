"""The limit of open files (descriptors): raised at the start, because each connection needs a descriptor.

The mains of router and worker raise it. Programs that are not ours start with the original limit, since some of them
use select(), which fails above 1024, or close every possible descriptor at their start.
"""

from __future__ import annotations

import contextlib
import functools

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MOST = 1 << 20
"""The limit is not raised above this, also if the system sets no hard limit."""


@functools.cache
def original_limit() -> int | None:
    """Return the limit with which this process was started; None: unlimited or unknown."""
    return current_limit()


def current_limit() -> int | None:
    """Return how many descriptors this process may have open now; None: unlimited or unknown."""
    if resource is None:
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit to the hard limit, or to MOST. If the system refuses that, keep the limit."""
    soft = original_limit()
    if resource is None or soft is None:
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if wanted > soft:
        with contextlib.suppress(OSError, ValueError):  # macOS has another limit that is lower
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def restore_limit(soft: int | None) -> None:
    """Lower the soft limit of this process to `soft`, the original limit of the process that started it."""
    if resource is not None and soft is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
