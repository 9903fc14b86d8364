"""Lookup tables of all options: by field, flag, environment variable, and key of a presets file.

They are collected from the fields of `settings` and from `deprecated`. All code that reads or writes options uses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from msgspec import Struct
from pydantic.fields import FieldInfo

from .deprecated import REFUSED, REMOVED, SHORTHANDS, Removed, Shorthand
from .option import Option, OptionReader
from .settings import GROUPS

OptionEntry = Option | Shorthand | Removed


class Spelling(Struct, frozen=True):
    """The option of a flag, variable or key; `negated`: True if it sets the opposite."""

    entry: OptionEntry
    negated: bool = False


def _option(field: FieldInfo) -> Option:
    if not isinstance(field.json_schema_extra, Option):
        raise TypeError(f"a field of an option group was not declared with option(): {field!r}")
    return field.json_schema_extra


FIELDS: Mapping[str, FieldInfo] = {name: field for group in GROUPS for name, field in group.model_fields.items()}
OPTIONS: Mapping[str, Option] = {name: _option(field) for name, field in FIELDS.items()}
ENTRIES: tuple[OptionEntry, ...] = (*OPTIONS.values(), *SHORTHANDS, *REMOVED, *REFUSED)

ROUTER_OWN = frozenset(name for name, option in OPTIONS.items() if option.router_own)
"""Options that are removed from all presets: workers never get them."""
NOT_OVERLAID = ROUTER_OWN | frozenset(
    name
    for name, option in OPTIONS.items()
    if option.per_model or option.reader in (OptionReader.PROGRAM, OptionReader.PRESET)
)
"""Options of the router's command line that are not applied to all models."""
PRESET_ONLY = frozenset(name for name, option in OPTIONS.items() if option.reader is OptionReader.PRESET)


def takes_value(entry: OptionEntry) -> bool:
    return not isinstance(entry, Removed) and entry.hint is not None


def value_count(entry: OptionEntry) -> int:
    """Return the number of arguments after the flag."""
    return len(entry.hint.split()) if not isinstance(entry, Removed) and entry.hint else 0


_FREE_TEXTS = ("TEXT", "JINJA", "GBNF")
"""Hints of options whose values are texts for the model, which may look like an option."""


def is_free_text(entry: OptionEntry) -> bool:
    return isinstance(entry, Option) and entry.hint in _FREE_TEXTS


def _flags() -> Iterable[tuple[str, Spelling]]:
    for entry in ENTRIES:
        for flag in entry.flags:
            yield flag, Spelling(entry)
        for flag in getattr(entry, "negated", ()):
            yield flag, Spelling(entry, negated=True)
        for flag in getattr(entry, "older", ()):
            yield flag, Spelling(entry, negated=flag.startswith("--no-"))


def _variables() -> Iterable[tuple[str, Spelling]]:
    """Yield the variables in rising precedence: older names, the current name, negated names."""
    for entry in ENTRIES:
        names = [*entry.older_env, *([entry.env] if entry.env else [])] if isinstance(entry, Option) else entry.env
        for name in names:
            yield name, Spelling(entry)
        if getattr(entry, "negated", ()):
            for name in names:
                if name.startswith("LLAMA_ARG_"):
                    yield name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_"), Spelling(entry, negated=True)


FLAGS: Mapping[str, Spelling] = {
    flag: spelling
    for flag, spelling in _flags()
    if not (isinstance(spelling.entry, Option) and spelling.entry.reader is OptionReader.PRESET)
}
VARIABLES: Mapping[str, Spelling] = dict(_variables())
KEYS: Mapping[str, Spelling] = {
    flag.lstrip("-"): spelling
    for flag, spelling in _flags()
    if not (isinstance(spelling.entry, Option) and spelling.entry.reader is OptionReader.PROGRAM)
} | dict(VARIABLES)
"""Every key that a presets file may contain."""


def split_flag(argument: str) -> tuple[str, str | None]:
    """Return an argument's flag, with `-` for `_`, and the value after `=`; None if it has none."""
    if not argument.startswith("--"):
        return argument, None
    name, equals, value = argument.partition("=")
    return name.replace("_", "-"), value if equals else None


def is_option(argument: str) -> bool:
    return split_flag(argument)[0] in FLAGS


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ` (did you mean …?)` with the most similar word, or "" if none is similar."""
    import difflib  # only for errors

    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def environment_without_keys() -> dict[str, str]:
    """Return the environment without the variables that contain this server's API keys."""
    keys = {
        name
        for name, spelling in VARIABLES.items()
        if isinstance(spelling.entry, Option) and spelling.entry is OPTIONS["api_key"]
    }
    return {name: value for name, value in os.environ.items() if name not in keys}
