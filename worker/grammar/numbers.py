"""Build GBNF expressions for numbers between two bounds. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

MAX_DIGITS = 16
"""Maximum digits of an integer with only one bound: programs cannot represent longer ones exactly."""


def integer_range(low: int | None, high: int | None) -> str:
    """Return an expression for the integers from `low` to `high`. At least one bound is given, and `low` <= `high`."""
    return " | ".join(_range(low, high))


def _range(low: int | None, high: int | None) -> Iterator[str]:
    if low is not None and high is not None:
        yield from _closed(low, high)
    elif low is not None:
        yield from _at_least(low)
    elif high is not None and high < 0:
        yield f'"-" ({" | ".join(_at_least(-high))})'
    elif high is not None:
        yield f'"-" [1-9] {_digits(0, MAX_DIGITS - 1)}'
        yield from _closed(0, high)


def _closed(low: int, high: int) -> Iterator[str]:
    if high < 0:
        yield f'"-" ({" | ".join(_closed(-high, -low))})'
        return
    if low < 0:
        yield f'"-" ({" | ".join(_closed(0, -low))})'
        low = 0
    for length in range(len(str(low)), len(str(high))):
        yield _same_length(str(low), "9" * length)
        low = 10**length
    yield _same_length(str(low), str(high))


def _at_least(low: int) -> Iterator[str]:
    length = len(str(low))
    if low < 0:
        yield f'"-" ({" | ".join(_closed(0, -low))})'
        low = 0
    if low == 0:
        yield "[0]"
        yield f"[1-9] {_digits(0, MAX_DIGITS - 1)}"
        return
    if low < 10:
        if low > 1:
            yield f"{_digit(1, low - 1)} {_digits(1, MAX_DIGITS - 1)}"
        yield f"{_digit(low, 9)} {_digits(0, MAX_DIGITS - 1)}"
        return
    yield _same_length(str(low), "9" * length)
    yield f"[1-9] {_digits(length, max(length, MAX_DIGITS - 1))}"


def _same_length(low: str, high: str) -> str:
    """Return an expression for the numbers from `low` to `high`, which have the same number of digits."""
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b), len(low))
    parts = [f'"{low[:shared]}"'] if shared else []
    if shared == len(low):
        return parts[0]
    a, b, n = int(low[shared]), int(high[shared]), len(low) - shared - 1
    if n == 0:
        return " ".join([*parts, f"[{a}-{b}]"])
    rest_low, rest_high, nines = low[shared + 1 :], high[shared + 1 :], "9" * n
    ways: list[str] = []
    reached = False
    if rest_low == "0" * n:
        ways.append(f"{_digit(a, b - 1)} {_digits(n, n)}")
    else:
        ways.append(f"[{a}] ({_same_length(rest_low, nines)})")
        if a < b - 1:
            reached = rest_high == nines
            ways.append(f"{_digit(a + 1, b if reached else b - 1)} {_digits(n, n)}")
    if not reached:
        ways.append(f"{_digit(b, b)} {_same_length('0' * n, rest_high)}")
    return " ".join([*parts, f"({' | '.join(ways)})"])


def _digit(low: int, high: int) -> str:
    return f"[{low}]" if low == high else f"[{low}-{high}]"


def _digits(low: int, high: int) -> str:
    if low == high:
        return "[0-9]" if low == 1 else f"[0-9]{{{low}}}"
    return f"[0-9]{{{low},{high}}}"


# -- fractions ---------------------------------------------------------------------------------------------------------

_ANY_FRACTION = '("." [0-9]{1,16})?'
_MORE = "[0-9]{0,15}"


def number_range(low: Decimal | None, high: Decimal | None, low_excluded: bool, high_excluded: bool) -> str:
    """Return an expression for the numbers between two bounds, without exponents. At least one bound is given."""
    ways: list[str] = []
    if low is None or low < 0:
        least = max(Decimal(0), -high) if high is not None else Decimal(0)
        excluded = high_excluded and high is not None and high <= 0
        inner = _magnitudes(least, None if low is None else -low, excluded, low_excluded)
        ways.append(f'"-" ({" | ".join(inner)})')
    if high is None or high > 0 or (high == 0 and not high_excluded):
        if low is None or low < 0:
            low, low_excluded = Decimal(0), False
        ways += _magnitudes(low, high, low_excluded, high_excluded)
    return " | ".join(ways)


def _magnitudes(low: Decimal, high: Decimal | None, low_excluded: bool, high_excluded: bool) -> Iterator[str]:
    """Yield alternatives for non-negative numbers between two bounds (the caller adds the sign)."""
    first, low_digits = _parts(low)
    if high is None:
        yield from _fractions(first, _at_least_digits(low_digits, low_excluded))
        yield f"({integer_range(first + 1, None)}) {_ANY_FRACTION}"
        return
    last, high_digits = _parts(high)
    if first == last:
        yield from _fractions(first, _between_digits(low_digits, high_digits, low_excluded, high_excluded))
        return
    yield from _fractions(first, _at_least_digits(low_digits, low_excluded))
    if first + 1 < last:
        yield f"({integer_range(first + 1, last - 1)}) {_ANY_FRACTION}"
    if high_digits or not high_excluded:
        yield from _fractions(last, _at_most_digits(high_digits, high_excluded))


def _parts(value: Decimal) -> tuple[int, str]:
    whole, _, digits = format(value.normalize(), "f").partition(".")
    return int(whole), digits


def _fractions(whole: int, fractions: tuple[bool, list[str]]) -> Iterator[str]:
    """Yield the number with its fraction. `fractions`: True if it is optional; the digits allowed after the point."""
    may_end, digits = fractions
    if digits:
        yield f'"{whole}" ("." ({" | ".join(digits)})){"?" if may_end else ""}'
    elif may_end:
        yield f'"{whole}"'


def _at_least_digits(digits: str, excluded: bool) -> tuple[bool, list[str]]:
    """Return True if the fraction is optional, and expressions for fractions that are at least 0.`digits`."""
    ways: list[str] = []
    for i, d in enumerate(digits):
        if d < "9":
            ways.append(_row(_exactly(digits[:i]), f"[{int(d) + 1}-9]", _MORE))
    same = _exactly(digits)
    if excluded:
        ways.append(_row(same, '"0"{0,15} [1-9]', _MORE))
    else:
        ways.append(_row(same, _MORE) if digits else "[0-9]{1,16}")
    return not digits and not excluded, ways


def _at_most_digits(digits: str, excluded: bool) -> tuple[bool, list[str]]:
    """Return True if the fraction is optional, and expressions for fractions that are at most 0.`digits`."""
    ways: list[str] = []
    for i, d in enumerate(digits):
        if i:
            ways.append(_exactly(digits[:i]))  # it may end early: more digits would only increase it
        if d > "0":
            ways.append(_row(_exactly(digits[:i]), f"[0-{int(d) - 1}]", _MORE))
    if not excluded:
        ways.append(_row(_exactly(digits), '"0"{0,15}') if digits else '"0"{1,16}')
    return bool(digits) or not excluded, ways


def _between_digits(low: str, high: str, low_excluded: bool, high_excluded: bool) -> tuple[bool, list[str]]:
    """Return True if the fraction is optional, and expressions for fractions from 0.`low` to 0.`high`."""
    length = max(len(low), len(high))
    shared = next((i for i in range(length) if low.ljust(length, "0")[i] != high.ljust(length, "0")[i]), length)
    if shared == length:  # one number
        return (not low, [_row(_exactly(low), '"0"{0,15}' if low else '"0"{1,16}')])
    prefix = _exactly(low.ljust(length, "0")[:shared])
    a, b = int(low.ljust(length, "0")[shared]), int(high.ljust(length, "0")[shared])
    ends_low, ways_low = _at_least_digits(low[shared + 1 :], low_excluded)
    ends_high, ways_high = _at_most_digits(high[shared + 1 :], high_excluded)
    ways = [_row(prefix, f"[{a}]", way) for way in ways_low] + ([_row(prefix, f"[{a}]", "")] if ends_low else [])
    if a + 1 < b:
        ways.append(_row(prefix, f"[{a + 1}-{b - 1}]", _MORE))
    ways += [_row(prefix, f"[{b}]", way) for way in ways_high] + ([_row(prefix, f"[{b}]", "")] if ends_high else [])
    if len(low) <= shared and not low_excluded and prefix:
        ways.append(prefix)
    return not low and not low_excluded, ways


def _row(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _exactly(digits: str) -> str:
    return f'"{digits}"' if digits else ""
