"""What an option of the table carries beside its field: how it is spelled, who reads it, whether it is built.

The `options_*` modules declare fields with `option(…)`; `table.py` collects them. Type, range, default and help text
are the field's own (pydantic's); everything else stands in `Option`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class OptionReader(Enum):
    """Who acts on the value."""

    ROUTER = "router"
    WORKER = "worker"
    BOTH = "both"
    PROGRAM = "program"  # prints something and exits
    PRESET = "preset"  # a key of a presets file that is no command line option


class Repeat(Enum):
    """What a second occurrence on one command line does."""

    LAST = "the last one counts"
    COMMA = "appended with a comma"
    MANY = "each one counts"


@dataclass(frozen=True, kw_only=True)
class Option:
    """Spellings are as a person types them; `flags[-1]`, or the last long one, is the name the option is known by."""

    flags: tuple[str, ...]
    negated: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    """Spellings of an earlier llama-server, understood as well (negated ones start with `--no-`)."""
    env: str | None = None
    older_env: tuple[str, ...] = ()
    hint: str | None = None
    """What stands for the value in help; None: a switch."""
    reader: OptionReader = OptionReader.WORKER
    repeat: Repeat = Repeat.LAST
    unsupported: str | None = None
    """Why a value other than the default, or than those of `built`, is refused. Delete it once the option works."""
    built: tuple[object, ...] = ()
    """Of a list: which of its parts."""
    notice: str | None = None
    """Why setting it changes nothing; said once in the log."""
    replaces: tuple[str, ...] = ()
    """Fields that a lower layer may have set and that this one puts out of force: other ways to say the same."""
    router_own: bool = False
    """Never handed to a worker: removed from presets as well as from the router's command line."""
    per_model: bool = False
    """Says which model it is: the router's own command line does not impose it on every model."""
    secret: bool = False
    """The value stands in no log, error or answer."""

    @property
    def is_refused(self) -> bool:
        """Whatever its value."""
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
        """As pydantic's `json_schema_extra`: the JSON schema of the settings names the option's spellings too."""
        schema["x-spellings"] = [*self.flags, *self.negated, *self.older]
        if self.env:
            schema["x-env"] = self.env


def _env(name: str) -> str:
    """`CTX_SIZE` is short for `LLAMA_ARG_CTX_SIZE`; a name with a `$` stands for itself."""
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
    """A field of the table. `flags`, `no` (negated) and `older` are space-separated; a switch needs no `hint`."""
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
    """Inclusive limits of a number."""
    return {name: bound for name, bound in (("ge", ge), ("le", le)) if bound is not None}


class OptionGroup(BaseModel):
    """Options that help and the reference show together, under `title`."""

    model_config = ConfigDict(frozen=True, defer_build=True)  # only Settings, their sum, is ever validated
    title: ClassVar[str]
