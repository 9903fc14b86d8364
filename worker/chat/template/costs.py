"""Which filters and methods a chat template may use, and what a call of them costs. Pure.

Only what real templates use is there, and what costs about as much as the text it reads and writes. Called by
`sandbox`; costs are in characters and are charged before the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

from .limits import CostExceeded, charge, charge_value, cost_of, depths, length

MAX_COLUMNS = 100_000  # maximum of padding, indentation and similar arguments
MAX_BITS = 4096  # maximum size of an integer
_ELEMENT = 8
_WIDE = re.compile(r"\d{6}|\*")
_NUMBER = re.compile(r"\d+")

FILTERS = frozenset(
    (
        *("abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first"),
        *("float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map"),
        *("max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr"),
        *("slice", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount"),
    )
)
"""The filters; Jinja's others (`urlize`, `wordwrap`, …) search and copy a text many times in one call."""

METHODS = frozenset(
    (
        *("append", "as_integer_ratio", "bit_count", "bit_length", "capitalize", "casefold", "center", "conjugate"),
        *("copy", "count", "endswith", "expandtabs", "find", "format", "format_map", "get", "hex", "index"),
        *("is_integer", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower"),
        *("isnumeric", "isprintable", "isspace", "istitle", "isupper", "items", "join", "keys", "ljust", "lower"),
        *("lstrip", "partition", "pop", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust"),
        *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title"),
        *("upper", "values", "zfill"),
    )
)
"""Methods of texts, numbers and containers. Others change their object, or decode and translate in unlimited time."""

_SHALLOW = frozenset(
    (
        *("length", "count", "first", "last", "default", "d", "attr", "items", "list", "int", "float", "map"),
        *("select", "reject", "selectattr", "rejectattr"),
    )
)
"""Filters that read only a value's direct elements; operations on the elements are charged separately."""
_PADDING = frozenset({"center", "indent", "batch", "slice", "truncate", "round", "tojson"})
_OF_ELEMENTS = frozenset({"list", "batch", "slice", "sort", "unique", "join", "map", "select", "reject", "min", "max"})
_SLOW = {"title": 32, "wordcount": 16, "escape": 4, "e": 4, "tojson": 4, "int": 8, "float": 8}
"""How many times more than a copy a filter costs per character."""


# -- filters -----------------------------------------------------------------------------------------------------------


def charge_filter(name: str, subject: Any, more: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Charge for a call of a filter and return its subject: an iterator that is read completely becomes a list."""
    if isinstance(subject, str):
        charge_value(subject)
        if name in _OF_ELEMENTS:
            charge(_ELEMENT * len(subject))
        if name in _SLOW:
            charge(_SLOW[name] * len(subject))
    elif name not in _SHALLOW:
        if isinstance(subject, Iterator):
            subject = list(subject)
        if name == "tojson":
            charge(_SLOW[name] * cost_of(subject))
        else:
            charge_value(subject)
    if more or named:
        _charge_arguments(name, subject, more, named)
    return subject


def _charge_arguments(name: str, subject: Any, more: Sequence[Any], named: Mapping[str, Any]) -> None:
    arguments = (*more, *named.values())
    for argument in arguments:
        if name in _PADDING and isinstance(argument, int) and abs(argument) > MAX_COLUMNS:
            raise CostExceeded(f"{name} is given a number that is too large")
        charge_value(argument)
    if name == "tojson":
        _charge_json(subject, arguments)
    elif name == "format":
        charge_percent(str(subject), named or tuple(more))
    elif isinstance(subject, str):
        _charge_text_filter(name, subject, more, named)
    elif name == "join" and isinstance(subject, (list, tuple)):
        charge(len(subject) * max(map(length, arguments)))
    elif name == "sum" and any(not isinstance(start, (int, float, str)) for start in arguments):
        raise CostExceeded("sum supports only numbers")


def _charge_text_filter(name: str, text: str, more: Sequence[Any], named: Mapping[str, Any]) -> None:
    arguments = (*more, *named.values())
    if name == "indent":
        charge(text.count("\n") * max(n if isinstance(n, int) else length(n) for n in arguments))
    elif name == "trim" or name == "join":
        charge(len(text) * max(map(length, arguments)))
    elif name == "replace":
        given = {**dict(zip(("old", "new"), more, strict=False)), **named}
        if "old" in given and "new" in given:
            charge(_replaced(text, (str(given["old"]), str(given["new"]))))


def _charge_json(value: Any, arguments: Sequence[Any]) -> None:
    texts = [text for given in arguments for text in (given if isinstance(given, (list, tuple)) else [given])]
    widest = max((length(text) for text in texts), default=0)
    indent = max((n for n in texts if isinstance(n, int)), default=0)
    if widest or indent > 1:
        charge(max(widest, indent) * (depths(value) + cost_of(value)))


def checked_integer(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise CostExceeded("a number is too large")
    return value


# -- formats -----------------------------------------------------------------------------------------------------------


def charge_widths(form: str | bytes) -> None:
    """Charge for all widths and precisions in a format."""
    text = form if isinstance(form, str) else form.decode("latin-1")
    if _WIDE.search(text):
        raise CostExceeded("a format is too wide")
    charge(sum(int(number) for number in _NUMBER.findall(text)))


def charge_percent(form: str | bytes, values: Any) -> None:
    """Charge for `form % values`. A mapping's values may be written many times."""
    charge_widths(form)
    charge_value(form)
    charge_value(values)
    if isinstance(values, Mapping):
        charge(form.count("%" if isinstance(form, str) else b"%") * cost_of(values))  # type: ignore[arg-type]


# -- methods -----------------------------------------------------------------------------------------------------------


def charge_method(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Charge for a method call and return its arguments: an iterator becomes a list. Raises SecurityError."""
    owner, name = method.__self__, method.__name__
    if name not in METHODS:
        raise SecurityError(f"{name} is not allowed")
    if not isinstance(owner, (str, bytes)):
        for value in (*args, *([owner] if name in ("index", "count") else [])):
            if name not in ("append", "pop"):
                charge_value(value)
        return args
    if name == "join" and args and isinstance(args[0], Iterator):
        args = (list(args[0]), *args[1:])
    given = (*args, *kwargs.values())
    for value in given:
        charge_value(value)
    try:
        charge(_COSTS[name](owner, given) if name in _COSTS else len(owner))
    except (TypeError, ValueError, LookupError, AttributeError):
        charge(len(owner))  # wrong arguments: the method itself raises the error
    return args


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


def _stripped(text: Any, arguments: Sequence[Any]) -> Any:
    return len(text) * max(1, length(arguments[0]) if arguments else 1)


_COSTS: dict[str, Callable[[Any, Sequence[Any]], int]] = {
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
    "strip": _stripped,
    "lstrip": _stripped,
    "rstrip": _stripped,
}
"""Methods whose result may be much longer than the text, or that read it many times; others cost the text's length."""
