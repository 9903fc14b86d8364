"""Limit the cost of rendering a chat template: time, and characters written or copied.

`sandbox` charges costs around every operation that can create large values. The caller sets the time limit; the limit
of characters grows with the input. Pure, except for the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from threading import local
from typing import Any

from jinja2.utils import Namespace

ALLOWANCE = 1 << 28  # characters; typical prompts need a thousandth of it
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
    """Count the cost of one rendering. `given`: the input, which increases the limit."""

    def __init__(self, seconds: float, given: object = ()) -> None:
        self._deadline = time.monotonic() + seconds
        self._left = ALLOWANCE
        self._n_to_look = 0
        self._given: object | None = given

    def charge(self, n: int) -> None:
        """Charge for `n` characters or elements. Raises CostExceeded or TimeExceeded."""
        self._left -= n
        if self._left < 0:
            self._extend()
        self._n_to_look -= 1
        if n > _LARGE or self._n_to_look <= 0:
            self._n_to_look = _BETWEEN_LOOKS
            if time.monotonic() > self._deadline:
                raise TimeExceeded("it takes too long")

    def _extend(self) -> None:
        if self._given is not None:
            given, self._given = self._given, None
            self._left += PER_CHARACTER * cost_of(given)
        if self._left < 0:
            raise CostExceeded("it writes too much")


class _Rendering(local):
    meter: CostMeter | None = None


_rendering = _Rendering()


@contextmanager
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


# -- result sizes of string methods ----------------------------------------------------------------------------------


def _replaced(text: Any, arguments: Sequence[Any]) -> int:
    old, new = arguments[:2]
    return int(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _padded(text: Any, arguments: Sequence[Any]) -> int:
    return len(text) + max(0, int(arguments[0]))


def _expanded(text: Any, arguments: Sequence[Any]) -> int:
    tab = b"\t" if isinstance(text, bytes) else "\t"
    return int(len(text) + text.count(tab) * max(0, int(arguments[0]) if arguments else 8))


def _pieces(text: Any, arguments: Sequence[Any]) -> int:
    return _ELEMENT * len(text)


def _joined(text: Any, arguments: Sequence[Any]) -> Any:
    return int(cost_of(arguments[0]) + len(text) * len(arguments[0]))


COSTS: dict[str, Callable[[Any, Sequence[Any]], int]] = {
    "replace": _replaced,
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "expandtabs": _expanded,
    "split": _pieces,
    "rsplit": _pieces,
    "splitlines": _pieces,
    "join": _joined,
}
"""Methods whose result may be much longer than the text; all others cost the text's length."""

FORBIDDEN = frozenset({"translate", "maketrans", "to_bytes"})
