"""The properties of an option: spellings, reader, whether it is supported, and so on.

The modules of the option table declare fields with `option(…)`; `table` collects them. Type, range, default and help
text are stored in the pydantic field, all other properties in `Option`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field


class OptionReader(Enum):
    """The program that uses the value."""

    ROUTER = "router"
    WORKER = "worker"
    BOTH = "both"
    PROGRAM = "program"  # prints something and exits
    PRESET = "preset"  # a key of presets files only, not a command line option


class Repeat(Enum):
    """The effect of a second occurrence on one command line."""

    LAST = "the last one counts"
    COMMA = "appended with a comma"
    MANY = "each one counts"


class Option(Struct, frozen=True, kw_only=True):
    """The properties of one option. The last long flag (or `flags[-1]` if all are short) is the option's name."""

    flags: tuple[str, ...]
    negated: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    """Spellings of an earlier llama-server that are still accepted (negated ones start with `--no-`)."""
    env: str | None = None
    older_env: tuple[str, ...] = ()
    hint: str | None = None
    """Placeholder for the value in help; None: a switch."""
    reader: OptionReader = OptionReader.WORKER
    repeat: Repeat = Repeat.LAST
    unsupported: str | None = None
    """The reason why values other than the default and those of `built` are refused; None: supported."""
    built: tuple[object, ...] = ()
    """Supported values of an option that is not fully supported."""
    notice: str | None = None
    """The reason why the option has no effect; logged once if it is set."""
    replaces: tuple[str, ...] = ()
    """Fields that are unset when this one is set, because they are other ways to set the same."""
    router_own: bool = False
    """True if workers never get it: it is removed from presets and from the router's command line."""
    per_model: bool = False
    """True if it belongs to a single model: the router's command line does not set it for all models."""
    secret: bool = False
    """True if the value must not appear in logs, errors or responses."""

    @property
    def is_refused(self) -> bool:
        """True if the option is refused with any value."""
        return self.unsupported is not None and not self.built

    @property
    def is_switch(self) -> bool:
        return self.hint is None

    @property
    def name(self) -> str:
        return next((flag for flag in reversed(self.flags) if flag.startswith("--")), self.flags[-1]).lstrip("-")

    @property
    def field(self) -> str:
        return self.name.replace("-", "_").replace(".", "_")

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add the option's spellings to the JSON schema of the settings, as pydantic's `json_schema_extra`."""
        schema["x-spellings"] = [*self.flags, *self.negated, *self.older]
        if self.env:
            schema["x-env"] = self.env


def _env(name: str) -> str:
    """Return a variable's full name: `CTX_SIZE` → `LLAMA_ARG_CTX_SIZE`, `$NAME` → `NAME`."""
    return name[1:] if name.startswith("$") else "LLAMA_ARG_" + name


def option(
    default: Any,
    flags: str,
    help_text: str,
    *,
    no: str = "",
    older: str = "",
    env: str | None = None,
    older_env: str = "",
    limits: dict[str, Any] | None = None,
    **extra: Any,
) -> Any:
    """Declare a field of the table. `flags`, `no` (negated), `older` are space-separated; switches have no `hint`."""
    positive = tuple(flags.split())
    negated = tuple(no.split())
    if not negated and extra.get("hint") is None and extra.get("reader") not in _NO_OFF:
        negated = tuple("--no-" + flag[2:] for flag in positive[-1:] if not flag.startswith("--no-"))
    extra_info = Option(
        flags=positive,
        negated=negated,
        older=tuple(older.split()),
        env=_env(env) if env else None,
        older_env=tuple(_env(name) for name in older_env.split()),
        **extra,
    )
    return Field(default, description=help_text, json_schema_extra=extra_info, **(limits or {}))


_NO_OFF: Sequence[Any] = (OptionReader.PROGRAM, OptionReader.PRESET)


def within(ge: float | None = None, le: float | None = None) -> dict[str, Any]:
    """Return the inclusive limits of a number as pydantic's arguments."""
    return {name: bound for name, bound in (("ge", ge), ("le", le)) if bound is not None}


class OptionGroup(BaseModel):
    """Options that help and the reference show together, under `title`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        defer_build=True,  # only Settings, which has all groups, is validated
    )
    title: ClassVar[str]
