"""Reads presets files: INI sections of options; each value keeps its file and line.

iniconfig parses sections, values and line numbers. It refuses keys before the first header and repeated names, but
llama-server's files contain both; so a line number is added to every header and key before iniconfig reads them.
What is wrong in one section is a fault of that section. Only an unreadable file, or a fault in `[*]`, is an error.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import iniconfig
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.user_files import read_limited, why_unreadable
from msgspec import Struct, field

from .layer import ConfigValue, Layer, add, put, switch_text
from .layer_source import check
from .notices import Warn, log_warning
from .options.table import KEYS, OPTIONS, nearest
from .policy import ModelGroup
from .variants import NAMES

log = logging.getLogger("corral.presets")

ALL_MODELS = "*"
GROUP = "group:"
"""Prefix of the names of sections that describe a group of models."""
GROUP_KEYS = ("swap", "exclusive", "persistent")
DEFAULT = "default"
"""Name of the section for keys before the first header."""

_HEADER = re.compile(r"\[\s*([^\]]*?)\s*\]\s*([;#].*)?")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=")
_COMMENT = re.compile(r"(^|\s)[;#].*")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")\s*([;#].*)?')
_STRANGE = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""Characters that Python, and therefore iniconfig, treats as line ends."""
_NEEDS_QUOTES = re.compile("^\\s|\\s$|(^|\\s)[;#]|[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")
NOT_AN_ARGUMENT = re.compile("[\0\ud800-\udfff]")
"""Characters that neither a path nor an argument of a command may contain."""


class Section(Struct, frozen=True):
    """One model of a presets file. Its layer also contains the preset-only keys."""

    name: str
    """As written; "" if its header has none."""
    line: int
    layer: Layer
    """If the section has a fault, only some of its options."""
    fault: str = ""
    """Why the section cannot be used, as `file:line: …`; "": it can be used."""


class PresetFile(Struct, frozen=True):
    global_layer: Layer
    """`[*]`: options for all models."""
    sections: tuple[Section, ...]
    groups: Mapping[str, ModelGroup]
    """The groups of `[group:NAME]`, by name."""
    faulty_groups: Mapping[str, str] = field(default_factory=dict)
    """Groups whose section has a fault, by name, with the fault."""


class _Entry(NamedTuple):
    line: int
    key: str
    value: str


class _Block(NamedTuple):
    line: int
    name: str
    entries: list[_Entry]
    faults: list[str]
    """Of its header and of the lines that are no entries, in file order."""


def read_presets(path: str | Path, warn: Warn = log_warning, *, may_wait: bool = False) -> PresetFile:
    """Read a presets file. Raise ConfigError if the file cannot be read, or for a fault in `[*]`."""
    everywhere: Layer = {}
    sections: list[Section] = []
    groups: dict[str, ModelGroup] = {}
    faulty_groups: dict[str, str] = {}
    for block in _blocks(path, warn, may_wait=may_wait):
        if block.name.startswith(GROUP):
            group, fault = _group(path, block)
            if group.name:
                groups[group.name] = group
            if fault:
                faulty_groups[group.name] = fault
            continue
        section = _section(path, block)
        if section.name == ALL_MODELS:
            if section.fault:
                raise ConfigError(section.fault)
            everywhere = section.layer
        elif section.layer or section.fault or section.name != DEFAULT:
            sections.append(section)
    return PresetFile(everywhere, tuple(sections), groups, faulty_groups)


def read_global(path: str | Path) -> Layer:
    """Read the keys before the first header and in `[*]`; unknown keys are for other programs that share the file."""
    layer: dict[str, ConfigValue] = {}
    blocks = {block.name: block for block in _blocks(path, log_warning)}
    for name in (ALL_MODELS, DEFAULT):
        section = _section(path, blocks[name], ignore_unknown=True) if name in blocks else Section(name, 0, {})
        if section.fault:
            raise ConfigError(section.fault)
        for option, given in section.layer.items():
            put(layer, option, given)
    return layer


def _text(path: str | Path, *, may_wait: bool) -> str:
    try:
        data = read_limited(path, may_wait=may_wait)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path}: {why_unreadable(error)}") from None
    if data.startswith(_UTF_16):
        raise ConfigError(f"{path}:1: not UTF-8 text")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _blocks(path: str | Path, warn: Warn, *, may_wait: bool = False) -> list[_Block]:
    """Return the sections in file order; of several with the same name only the last, and all without a name."""
    names, faults, lines = {0: DEFAULT}, {0: list[str]()}, ["[0]"]
    header = 0
    for number, line in enumerate(_NEWLINE.split(_text(path, may_wait=may_wait)), 1):
        line = line.strip(" \t")
        if line.startswith("["):
            header, faults[number] = number, []
            names[number] = NOT_AN_ARGUMENT.sub("?", line[1:].partition("]")[0].strip(" \t"))
        text, fault = _unique(number, line)
        lines.append(text)
        if fault:
            faults[header].append(f"{path}:{number}: {fault}")
    blocks: dict[str | int, _Block] = {}
    for section in iniconfig.IniConfig(str(path), data="\n".join(lines)):
        line_number = int(section.name)
        name = names[line_number]
        if name in blocks and (blocks[name].entries or blocks[name].faults):
            earlier = blocks.pop(name).line
            warn(f"{path}:{line_number}: [{name}] replaces the section of that name in line {earlier}")
        entries = [
            _Entry((section.lineof(key) or 1) - 1, key.partition("@")[0], value) for key, value in section.items()
        ]
        blocks[name or line_number] = _Block(line_number, name, entries, faults[line_number])
    return list(blocks.values())


def _unique(number: int, line: str) -> tuple[str, str]:
    """Return the line with its number added to the header or key, as iniconfig accepts it, and what is wrong with it.

    A header with a fault begins a section all the same, so that its keys are not those of the section before it.
    """
    if not line or line[0] in ";#":
        return "", ""
    fault = ""
    if strange := _STRANGE.search(line):
        fault = f"line separator U+{ord(strange[0]):04X} inside a line"
    elif _NOT_UTF_8.search(line):
        fault = "not UTF-8 text"
    if line[0] == "[":
        header = _HEADER.fullmatch(line)
        is_name = header and header[1] and not NOT_AN_ARGUMENT.search(header[1])
        return f"[{number}]", fault or ("" if is_name else f"expected [name], found '{line}'")
    key = _KEY.match(line)
    if fault or not key:
        return "", fault or f"expected KEY = VALUE, found '{line}'"
    return f"{key[1]}@{number}={line[key.end() :]}", ""


def _value(text: str, *, keeps_quotes: bool = False) -> str:
    """Return the value without a trailing comment. A JSON string is replaced by its content.

    `keeps_quotes`: only if the content cannot be written without quotes.
    """
    if quoted := _QUOTED.fullmatch(text):
        try:
            content = str(json.loads(quoted[1]))
        except ValueError:
            pass
        else:
            return quoted[1] if keeps_quotes and ini_value(content) == content else content
    return _COMMENT.sub("", text)


def ini_value(text: str) -> str:
    """Return the text as a value of a presets file; as a JSON string if the reader would change the plain text."""
    return json.dumps(text) if _NEEDS_QUOTES.search(text) or text.startswith('"') else text


def _section(path: str | Path, block: _Block, *, ignore_unknown: bool = False) -> Section:
    """Return the block as a section with its first fault."""
    layer: dict[str, ConfigValue] = {}
    faults = block.faults[:]
    for line, key, value in block.entries:
        where = f"{path}:{line}: {key}"
        spelling = KEYS.get(key) or KEYS.get(key.replace("_", "-"))
        if spelling is not None:
            try:
                keeps_quotes = spelling.entry is OPTIONS["reasoning_budget_message"]
                add(layer, spelling, _value(value, keeps_quotes=keeps_quotes), where)
            except ConfigError as error:
                faults.append(str(error))
        elif key == "version":
            continue
        elif ignore_unknown:
            log.warning("%s: ignored: this program has no such option", where)
        else:
            faults.append(f"{path}:{line}: unknown key '{key}'{nearest(key, KEYS)}")
    try:
        check(layer)
    except ConfigError as error:
        faults.append(str(error))
        layer = {option: given for option, given in layer.items() if option in NAMES}  # any text is valid
    return Section(block.name, block.line, layer, faults[0] if faults else "")


def _group(path: str | Path, block: _Block) -> tuple[ModelGroup, str]:
    """Return the group of a block, and its first fault; "" if it has none."""
    name, rules, faults = block.name.removeprefix(GROUP).strip(), {}, block.faults[:]
    if not name:
        faults.append(f"{path}:{block.line}: [{block.name}] has no name: write [{GROUP}NAME]")
    for line, key, value in block.entries:
        if key not in GROUP_KEYS:
            hint = "; set group = NAME in the sections of its models" if key == "members" else nearest(key, GROUP_KEYS)
            faults.append(f"{path}:{line}: unknown key '{key}' of a group{hint}")
            continue
        try:
            rules[key] = switch_text(_value(value), False, f"{path}:{line}: {key}") == "true"
        except ConfigError as error:
            faults.append(str(error))
    return ModelGroup(name, **rules), faults[0] if faults else ""
