"""Write the multiples of a number between two bounds as rules of a grammar. Pure.

The digits are read from the left. A rule stands for the number of digits that follow, for the remainder that the digits
before it leave, and for whether these are still those of a bound.
"""

from __future__ import annotations

from decimal import Decimal
from math import ceil, floor, gcd
from typing import NamedTuple

from .numbers import MAX_DIGITS
from .rules import GrammarRules

_MAX_RULES = 4000


class TooManyRules(Exception):
    """The grammar would be too large."""


class Bound(NamedTuple):
    value: Decimal
    is_excluded: bool


def multiple_rules(rules: GrammarRules, step: Decimal, low: Bound | None, high: Bound | None, *, whole: bool) -> str:
    """Add rules for the multiples of `step` between two bounds, and return an expression; "" if there are none.

    `whole`: only integers. Numbers have no exponents, and at most MAX_DIGITS digits before the point. Raises
    TooManyRules.
    """
    _, _, exponent = step.normalize().as_tuple()
    assert isinstance(exponent, int)
    n_fraction = max(0, -exponent)
    if n_fraction > MAX_DIGITS:
        raise TooManyRules
    scale = 10**n_fraction
    units = int(step * scale)
    if whole:
        units, n_fraction, scale = units // gcd(units, scale), 0, 1
    most = 10**MAX_DIGITS * scale - 1
    first = -most if low is None else max(-most, _lowest(low.value * scale, low.is_excluded))
    last = most if high is None else min(most, -_lowest(-high.value * scale, high.is_excluded))
    writer = _Digits(rules, units, n_fraction)
    ways: list[str] = []
    if first < 0 and (negative := writer.between(max(1, -last), -first)):
        ways.append(f'"-" ({" | ".join(negative)})')
    if last >= 0:
        ways += writer.between(max(0, first), last)
    return " | ".join(ways)


def _lowest(value: Decimal, is_excluded: bool) -> int:
    return floor(value) + 1 if is_excluded else ceil(value)


class _Rest(NamedTuple):
    """What is known before the last `n` digits."""

    n: int
    remainder: int  # of the digits so far, with zeros for the rest
    low: str | None  # the rest of the lower bound's digits; None: the digits so far are above it
    high: str | None


class _Digits:
    """Writes numbers in `units` of 1 / 10**n_fraction."""

    def __init__(self, rules: GrammarRules, units: int, n_fraction: int) -> None:
        self._rules, self._units, self._n_fraction = rules, units, n_fraction
        self._names: dict[_Rest, str] = {}  # "": no number

    def between(self, low: int, high: int) -> list[str]:
        """Return the alternatives for the multiples from `low` to `high`, one for each length. 0 <= `low`."""
        if low > high:
            return []
        ways = []
        for length in range(self._n_fraction + 1, max(self._n_fraction + 1, len(str(high))) + 1):
            least = 0 if length == self._n_fraction + 1 else 10 ** (length - 1)
            begin, end = max(low, least), min(high, 10**length - 1)
            if begin > end:
                continue
            rest = _Rest(length, 0, str(begin).zfill(length), str(end).zfill(length))
            if way := self._digits(rest, "1" if least else "0"):
                ways.append(way)
        return ways

    def _rest(self, rest: _Rest) -> str:
        """Return the name of the rule for the rest of a number; "" if no digits complete it."""
        if -rest.remainder % self._units >= 10**rest.n:
            return ""
        if rest not in self._names:
            if len(self._names) >= _MAX_RULES:
                raise TooManyRules
            ways = []
            if self._can_end(rest):
                ways.append('""')
            if rest.n and (more := self._digits(rest, "0")):
                ways.append(f'"." ({more})' if rest.n == self._n_fraction else more)
            text = " | ".join(ways)
            self._names[rest] = self._rules.add(self._name(rest), text) if text else ""
        return self._names[rest]

    def _can_end(self, rest: _Rest) -> bool:
        """Return True if the number may end here, with zeros for the rest."""
        return rest.n <= self._n_fraction and rest.remainder == 0 and rest.low is None

    def _digits(self, rest: _Rest, start: str) -> str:
        """Return the ways to continue with one digit, at least `start`."""
        following: dict[str, str] = {}
        lowest = max(start, rest.low[0]) if rest.low else start
        for digit in "0123456789":
            if digit < lowest or (rest.high and digit > rest.high[0]):
                continue
            remainder = (rest.remainder + int(digit) * 10 ** (rest.n - 1)) % self._units
            low = rest.low[1:] if rest.low and digit == rest.low[0] else None
            high = rest.high[1:] if rest.high and digit == rest.high[0] else None
            low = low if low and low.strip("0") else None  # zeros are no bound
            high = high if high and high.strip("9") else None
            if name := self._rest(_Rest(rest.n - 1, remainder, low, high)):
                following[name] = following.get(name, "") + digit
        return " | ".join(f"[{digits}] {name}" for name, digits in following.items())

    def _name(self, rest: _Rest) -> str:
        low, high = rest.low or "", rest.high or ""
        return f"multiple-{self._units}-{self._n_fraction}-{rest.n}-{rest.remainder}-{low}-{high}"
