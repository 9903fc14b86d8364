"""Writes the option table as Markdown into presets/README.md, between two markers.

`python -m llama_corral.presets.options.reference presets/README.md` updates it; a test compares both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from .deprecated import REFUSED, REMOVED, SHORTHANDS
from .describe import allowed, default_text, summary
from .option import Option, OptionGroup, OptionReader
from .settings import GROUPS
from .table import OPTIONS

BEGIN = "<!-- options: written by `python -m llama_corral.presets.options.reference presets/README.md` -->"
END = "<!-- end of options -->"

_READERS = {
    OptionReader.ROUTER: "router",
    OptionReader.WORKER: "worker",
    OptionReader.BOTH: "both",
    OptionReader.PROGRAM: "command line",
    OptionReader.PRESET: "presets file",
}


def reference_markdown() -> str:
    return "\n".join(line for part in (*map(_group, GROUPS), _shorthands(), _removed()) for line in part)


def _group(group: type[OptionGroup]) -> Iterator[str]:
    yield f"### {group.title}\n"
    yield "| Option | Value | Default | Variable | Read by | Meaning |"
    yield "|---|---|---|---|---|---|"
    yield from (_row(OPTIONS[field], field) for field in group.model_fields)
    yield ""


def _row(option: Option, field: str) -> str:
    spelled = _code((*option.flags, *option.negated))
    if option.older:
        spelled += "<br>earlier: " + _code(option.older)
    variables = _code(tuple(name for name in (option.env, *option.older_env) if name))
    default = default_text(field)
    value = "on or off" if option.is_switch else allowed(field)
    reader = _READERS[option.reader]
    return _cells(spelled, value, f"`{default}`" if default else "", variables, reader, _meaning(option, field))


def _meaning(option: Option, field: str) -> str:
    text = summary(field)
    if option.unsupported:
        text += f". **Refused**: {option.unsupported}"
        if option.built:
            text += f" (works: {', '.join(str(value) for value in option.built)})"
    elif option.notice:
        text += f". **No effect**: {option.notice}"
    return text + (". Not passed to workers" if option.router_own else "")


def _code(names: tuple[str, ...]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _shorthands() -> Iterator[str]:
    yield "### Shorthands\n"
    yield "| Option | Variable | Meaning |"
    yield "|---|---|---|"
    for item in SHORTHANDS:
        yield _cells(_code((*item.flags, *item.negated)), _code(item.env), item.help)
    yield ""


def _removed() -> Iterator[str]:
    yield "### Removed or not supported\n"
    yield "| Option | Variable | Instead, or the reason |"
    yield "|---|---|---|"
    for item in (*REMOVED, *REFUSED):
        yield _cells(_code(item.flags), _code(item.env), item.instead)
    yield ""


def with_current_table(document: str) -> str:
    """Return the document with the current table between its markers. Raise ValueError if they are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END} in the document")
    return f"{before}{BEGIN}\n\n{reference_markdown()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_current_table(path.read_text(encoding="utf-8")), encoding="utf-8")
