"""How much one rendering of a chat template may cost: time, and characters written or copied.

`sandbox` asks before and after everything that a template can make large. Whoever renders says how long it may take;
what it may write grows with what it is given. Pure, but for the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from threading import local
from typing import Any

from jinja2.utils import Namespace

ALLOWANCE = 1 << 28  # characters; prompts are a thousandth of it
PER_CHARACTER = 1024  # more of them for each character given: long conversations are copied from text to text
MAX_NODES = 1 << 18  # of one nested value that is compared, sorted or written
SHORT = 64  # characters; whoever runs something again and again pays for texts up to here in advance
_BETWEEN_LOOKS = 64  # at the clock, unless something large is charged
_LARGE = 4096
_ELEMENT = 8  # bytes, and so characters, that one takes in a list
_SEQUENCES = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_NESTED = (Mapping, Namespace, *_SEQUENCES)


class CostExceeded(Exception):
    """The template costs more than it may. No error of Jinja's, so that nothing in a template can catch it."""


class TimeExceeded(CostExceeded):
    pass


class CostMeter:
    """Of one rendering."""

    def __init__(self, seconds: float, given: object = ()) -> None:
        self._deadline = time.monotonic() + seconds
        self._left = ALLOWANCE
        self._n_to_look = 0
        self._given: object | None = given

    def charge(self, n: int) -> None:
        """`n` characters, or elements, are about to be written or looked at."""
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
    """Everything that is charged on this thread inside of the block is the meter's."""
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
    """Characters and elements of a value with all that is in it, counted as often as it is in there."""
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
    """Before all of it is looked at or written."""
    if isinstance(value, (str, bytes)):
        if len(value) > SHORT:
            charge(len(value))
    elif isinstance(value, _NESTED):
        charge(cost_of(value))


def charge_result(value: object) -> None:
    """What has been made of values that were charged."""
    n = length(value)
    if n > SHORT:
        charge(n)


def length(value: object) -> int:
    """What a value takes by itself."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return _ELEMENT * len(value) if isinstance(value, (list, tuple)) else 0


# -- what methods of texts would make ---------------------------------------------------------------------------------


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
"""Methods whose result may be much longer than the text; all others cost what they read."""

FORBIDDEN = frozenset({"translate", "maketrans", "to_bytes"})
