"""Limit the cost of rendering a chat template: time, characters written or copied, and memory.

`sandbox` charges costs around every operation that can create large values. The caller sets the time limit; the limit
of characters grows with the input. Pure, except for the clock, the process's memory and the caller's wish to stop.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from threading import local

from jinja2.utils import Namespace

ALLOWANCE = 1 << 26  # characters; typical prompts need a hundredth of it
QUICK_ALLOWANCE = 1 << 22  # characters of a rendering that other requests wait for
AT_ONCE = 1 << 24  # characters of one operation, which cannot be interrupted
AT_ONCE_PER_CHARACTER = 16  # additional characters of one operation per input character
MAX_GROWTH = 256 << 20  # bytes by which the process may grow while a template writes
PER_CHARACTER = 1024  # additional characters per input character: some templates copy the text for each message
MAX_NODES = 1 << 18  # maximum nodes of a nested value that is compared, sorted or written
SHORT = 64  # characters; texts up to this length are charged in advance, per expression of a loop or macro
_BETWEEN_LOOKS = 64  # charges between two checks of the clock, unless a charge is large
_LARGE = 4096
_ELEMENT = 8  # bytes, counted as characters, of one list element
_SEQUENCES = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_NESTED = (Mapping, Namespace, *_SEQUENCES)


class CostExceeded(Exception):
    """The template exceeds a limit. Not a Jinja error, so that no template can catch it."""


class TimeExceeded(CostExceeded):
    pass


class CostMeter:
    """Count the cost of one rendering. `given`: the input, which increases the limit.

    `quick`: a template that writes much takes too long. `given_up` returns True once the result is not wanted anymore.
    """

    def __init__(
        self, seconds: float, given: object = (), *, quick: bool = False, given_up: Callable[[], bool] | None = None
    ) -> None:
        self._deadline = time.monotonic() + seconds
        self._left = QUICK_ALLOWANCE if quick else ALLOWANCE
        self._quick, self._given_up = quick, given_up
        self._n_to_look = 0
        self._given = given
        self._size: int | None = None  # characters of `given`, once they were counted
        self._extended = False
        self._memory: int | None = None  # bytes of the process when they were first read
        self._unread = 0  # characters since the memory was read

    def charge(self, n: int) -> None:
        """Charge for `n` characters or elements. Raises CostExceeded or TimeExceeded."""
        self._left -= n
        if self._left < 0:
            self._extend()
        self._n_to_look -= 1
        if n > _LARGE or self._n_to_look <= 0:
            self._n_to_look = _BETWEEN_LOOKS
            if time.monotonic() > self._deadline or (self._given_up is not None and self._given_up()):
                raise TimeExceeded("it takes too long")
        self._unread += n
        if self._unread > AT_ONCE:
            self._check_memory()

    def charge_operation(self, n: int) -> None:
        """Charge for one operation. It must be shorter than a rendering, because nothing can interrupt it."""
        if n > AT_ONCE and n > AT_ONCE + AT_ONCE_PER_CHARACTER * self._input_size():
            raise CostExceeded("it writes too much at once")
        self.charge(n)

    def _extend(self) -> None:
        if self._quick:
            raise TimeExceeded("it takes too long")
        if not self._extended:
            self._extended = True
            self._left += PER_CHARACTER * self._input_size()
        if self._left < 0:
            raise CostExceeded("it writes too much")

    def _input_size(self) -> int:
        if self._size is None:
            self._size = cost_of(self._given)
        return self._size

    def _check_memory(self) -> None:
        self._unread, now = 0, _resident_bytes()
        self._memory = self._memory or now
        if now - self._memory > MAX_GROWTH:
            raise CostExceeded("it needs too much memory")


def _resident_bytes() -> int:
    """Return the memory of this process, in bytes; 0 on systems other than Linux."""
    with contextlib.suppress(OSError), open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class _Rendering(local):
    meter: CostMeter | None = None


_rendering = _Rendering()


@contextlib.contextmanager
def metered(meter: CostMeter) -> Iterator[None]:
    """Charge to this meter everything on this thread inside the block."""
    _rendering.meter = meter
    try:
        yield
    finally:
        _rendering.meter = None


def charge(n: int) -> None:
    meter = _rendering.meter
    if meter is not None:
        if n > AT_ONCE:
            meter.charge_operation(n)
        else:
            meter.charge(n)


def cost_of(value: object) -> int:
    """Return the number of characters and elements of a nested value; shared parts count each time they occur."""
    total, n_nodes, todo = 0, 0, [value]
    while todo:
        node = todo.pop()
        n_nodes += 1
        if n_nodes > MAX_NODES:
            raise CostExceeded("it nests values too deeply")
        if isinstance(node, (str, bytes)):
            total += len(node)
        elif isinstance(node, Mapping):
            todo += node.keys()
            todo += node.values()
        elif isinstance(node, _SEQUENCES):
            todo += node
        elif isinstance(node, Namespace):
            todo.append(object.__getattribute__(node, "_Namespace__attrs"))
    return total + n_nodes


def charge_value(value: object) -> None:
    """Charge for a value that is about to be read or written completely."""
    if isinstance(value, (str, bytes)):
        if len(value) > SHORT:
            charge(len(value))
    elif isinstance(value, _NESTED):
        charge(cost_of(value))


def charge_result(value: object) -> None:
    """Charge for a result; its parts were charged before."""
    n = length(value)
    if n > SHORT:
        charge(n)


def length(value: object) -> int:
    """Return the size of a value without its elements, in characters."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return _ELEMENT * len(value) if isinstance(value, (list, tuple)) else 0


def depths(value: object) -> int:
    """Return the sum of the depths of all elements of a nested value: what indentation by one character costs."""
    total, n_nodes, todo = 0, 0, [(value, 0)]
    while todo:
        node, depth = todo.pop()
        total += depth
        n_nodes += 1
        if n_nodes > MAX_NODES:
            raise CostExceeded("it nests values too deeply")
        if isinstance(node, Mapping):
            todo += ((element, depth + 1) for element in node.values())
        elif isinstance(node, _SEQUENCES):
            todo += ((element, depth + 1) for element in node)
    return total
