"""The text of `--help`, and completion for bash.

Called by the router's command line. rich is imported only when help is shown, because its import is slow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .deprecated import SHORTHANDS, Shorthand
from .describe import choices, default_text, summary
from .option import Option, OptionGroup, OptionReader
from .settings import GROUPS
from .table import FLAGS, OPTIONS, takes_value

if TYPE_CHECKING:
    from rich.console import Console

USAGE = (
    ("llama-corral [options]", "serve many models, each loaded at its first request"),
    ("llama-corral -m FILE [options]", "serve one model"),
    ("llama-corral -hf USER/MODEL[:TAG] [options]", "serve one model from Hugging Face"),
)
ABOUT = (
    "Options can also be set in a presets file, without the dashes, or in the environment variable shown in brackets. "
    "The command line overrides presets files, and presets files override the environment. Turn a switch off with "
    "--no-…, or with off in a presets file."
)
SPELLING_WIDTH = 36
HELP_WIDTH = 120  # longer lines are hard to read


def help_text(width: int | None = None) -> str:
    """Return the help for stdout: in colour and with the terminal's width, or plain text if stdout is no terminal.

    With `width` the text is always plain.
    """
    from rich.console import Console

    screen = Console(legacy_windows=False)
    is_terminal = width is None and screen.is_terminal
    page = Console(
        file=io.StringIO(),
        width=width or min(screen.width, HELP_WIDTH),
        force_terminal=is_terminal,
        no_color=not is_terminal,
        legacy_windows=False,
    )
    with page.capture() as capture:
        _show(page)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _show(console: Console) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    def grid(title: str, lines: Iterator[tuple[str, str]], style: str) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=SPELLING_WIDTH, style=style)
        table.add_column()
        for left, right in lines:
            table.add_row(Text(left), Text(right))
        console.print(Text(title, style="bold"))
        console.print(Padding(table, (0, 0, 0, 2)))
        console.print()

    grid("Usage", iter(USAGE), "")
    console.print(Text(ABOUT), end="\n\n")
    for group in GROUPS:
        if group.title != "Only in a presets file":
            grid(group.title, _group_lines(group), "cyan")
    grid("Shorthands", ((_spellings(item.flags, item.negated, item.hint), item.help) for item in SHORTHANDS), "cyan")


def _group_lines(group: type[OptionGroup]) -> Iterator[tuple[str, str]]:
    for field in group.model_fields:
        option = OPTIONS[field]
        yield _spellings(option.flags, _shown_negations(option), option.hint), help_line(field)


def _shown_negations(option: Option) -> tuple[str, ...]:
    """Return the negated spellings of a switch that is on by default; they are not shown for other switches."""
    return option.negated if default_text(option.field) in ("on", "") else ()


def _spellings(flags: tuple[str, ...], negated: tuple[str, ...], hint: str | None) -> str:
    return ", ".join((*flags, *negated)) + (f" {hint}" if hint else "")


def help_line(field: str) -> str:
    """Return the option's description, default, environment variable, and a note if it is refused or has no effect."""
    option = OPTIONS[field]
    default = default_text(field)
    parts = [summary(field)]
    if default and option.reader is not OptionReader.PROGRAM and not (option.is_switch and default == "off"):
        parts.append(f"(default: {default})")
    if option.unsupported:
        parts.append(f"(refused: {option.unsupported})")
    elif option.notice:
        parts.append(f"(no effect: {option.notice})")
    if option.env:
        parts.append(f"[{option.env}]")
    return " ".join(parts)


def bash_completion() -> str:
    """Return a script for `source <(llama-corral --completion-bash)`."""
    cases = {
        'COMPREPLY=($(compgen -f -- "$current"))': _flags_with(("FILE", "FILES")),
        'COMPREPLY=($(compgen -d -- "$current"))': _flags_with(("DIR",)),
        **_choice_cases(),
    }
    free = [flag for flag in _valued() if not any(flag in flags for flags in cases.values())]
    lines = [f"    {'|'.join(flags)}) {action}; return ;;" for action, flags in cases.items() if flags]
    return "\n".join(
        [
            "_llama_corral() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
            "  COMPREPLY=()",
            '  case "$previous" in',
            *lines,
            f"    {'|'.join(free)}) return ;;",
            "  esac",
            f'  COMPREPLY=($(compgen -W "{" ".join(_offered())}" -- "$current"))',
            "}",
            "complete -o filenames -F _llama_corral llama-corral",
            "",
        ]
    )


def _valued() -> list[str]:
    return [flag for flag, spelling in FLAGS.items() if takes_value(spelling.entry)]


def _flags_with(hints: tuple[str, ...]) -> list[str]:
    return [flag for flag in _valued() if getattr(FLAGS[flag].entry, "hint", None) in hints]


def _choice_cases() -> dict[str, list[str]]:
    cases: dict[str, list[str]] = {}
    for flag in _valued():
        entry = FLAGS[flag].entry
        words = choices(entry.field) if isinstance(entry, Option) else ()
        if words:
            cases.setdefault(f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$current"))', []).append(flag)
    return cases


def _offered() -> list[str]:
    """Return the current spellings; older ones are accepted, but not offered."""
    return sorted(
        flag
        for flag, spelling in FLAGS.items()
        if isinstance(spelling.entry, Option | Shorthand) and flag not in getattr(spelling.entry, "older", ())
    )
