"""Reads presets files: INI sections of options; each value keeps its file and line.

iniconfig parses sections, values and line numbers. It refuses keys before the first header and repeated names, but
llama-server's files contain both; so a line number is added to every header and key before iniconfig reads them.
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
from llama_corral.common.hub.gguf_names import canonical_name
from msgspec import Struct

from .layer import ConfigValue, Layer, add, put, switch_text
from .layer_source import check
from .options.table import KEYS, nearest
from .policy import ModelGroup

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


class Section(Struct, frozen=True):
    """One model of a presets file. Its layer also contains the preset-only keys."""

    name: str
    line: int
    layer: Layer


class PresetFile(Struct, frozen=True):
    global_layer: Layer
    """`[*]`: options for all models."""
    sections: tuple[Section, ...]
    groups: Mapping[str, ModelGroup]
    """The groups of `[group:NAME]`, by name."""


class _Entry(NamedTuple):
    line: int
    key: str
    value: str


class _Block(NamedTuple):
    line: int
    name: str
    entries: list[_Entry]


def read_presets(path: str | Path) -> PresetFile:
    """Read a presets file. Raise ConfigError `file:line: …` for anything invalid or unknown."""
    blocks = _blocks(path)
    groups = {block.name: _group(path, block) for block in blocks if block.name.startswith(GROUP)}
    layers = {block.name: (block.line, _layer(path, block)) for block in blocks if block.name not in groups}
    for _, layer in layers.values():
        check(layer)
    _, everywhere = layers.pop(ALL_MODELS, (0, {}))
    sections = (Section(name, line, layer) for name, (line, layer) in layers.items() if layer or name != DEFAULT)
    return PresetFile(everywhere, tuple(sections), {group.name: group for group in groups.values()})


def read_global(path: str | Path) -> Layer:
    """Read the keys before the first header and in `[*]`; unknown keys are for other programs that share the file."""
    layer: dict[str, ConfigValue] = {}
    blocks = {block.name: block for block in _blocks(path)}
    for name in (ALL_MODELS, DEFAULT):
        entries = _layer(path, blocks[name], ignore_unknown=True) if name in blocks else {}
        for field, given in entries.items():
            put(layer, field, given)
    return layer


def _text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None


def _blocks(path: str | Path) -> list[_Block]:
    """Return the sections in file order, with canonical model names; of several with the same name only the last."""
    names: dict[int, str] = {0: DEFAULT}
    lines = ["[0]"]
    for number, line in enumerate(_NEWLINE.split(_text(path)), 1):
        lines.append(_unique(path, number, line.strip(" \t"), names))
    blocks: dict[str, _Block] = {}
    for section in iniconfig.IniConfig(str(path), data="\n".join(lines)):
        line = int(section.name)
        name = names[line]
        if name in blocks and blocks[name].entries:
            earlier = blocks.pop(name).line
            log.warning("%s:%d: [%s] replaces the section of that name in line %d", path, line, name, earlier)
        entries = [
            _Entry((section.lineof(key) or 1) - 1, key.partition("@")[0], value) for key, value in section.items()
        ]
        blocks[name] = _Block(line, name, entries)
    return list(blocks.values())


def _unique(path: str | Path, number: int, line: str, names: dict[int, str]) -> str:
    """Return the line with its line number added to the header or key, as iniconfig accepts it."""
    if not line or line[0] in ";#":
        return ""
    if strange := _STRANGE.search(line):
        raise ConfigError(f"{path}:{number}: line separator U+{ord(strange[0]):04X} inside a line")
    if line[0] == "[":
        header = _HEADER.fullmatch(line)
        if not header or not header[1]:
            raise ConfigError(f"{path}:{number}: expected [name], found '{line}'")
        names[number] = header[1] if header[1].startswith(GROUP) else canonical_name(header[1])
        return f"[{number}]"
    key = _KEY.match(line)
    if not key:
        raise ConfigError(f"{path}:{number}: expected KEY = VALUE, found '{line}'")
    return f"{key[1]}@{number}={line[key.end() :]}"


def _value(text: str) -> str:
    """Return the value without a trailing comment. A JSON string is replaced by its content."""
    if quoted := _QUOTED.fullmatch(text):
        try:
            return str(json.loads(quoted[1]))
        except ValueError:
            pass
    return _COMMENT.sub("", text)


def _layer(path: str | Path, block: _Block, *, ignore_unknown: bool = False) -> Layer:
    layer: dict[str, ConfigValue] = {}
    for line, key, value in block.entries:
        where = f"{path}:{line}: {key}"
        if key in KEYS:
            add(layer, KEYS[key], _value(value), where)
        elif key == "version":
            continue
        elif ignore_unknown:
            log.warning("%s: ignored: this program has no such option", where)
        else:
            raise ConfigError(f"{path}:{line}: unknown key '{key}'{nearest(key, KEYS)}")
    return layer


def _group(path: str | Path, block: _Block) -> ModelGroup:
    name, rules = block.name.removeprefix(GROUP).strip(), {}
    if not name:
        raise ConfigError(f"{path}:{block.line}: [{block.name}] has no name: write [{GROUP}NAME]")
    for line, key, value in block.entries:
        if key not in GROUP_KEYS:
            hint = "; set group = NAME in the sections of its models" if key == "members" else nearest(key, GROUP_KEYS)
            raise ConfigError(f"{path}:{line}: unknown key '{key}' of a group{hint}")
        rules[key] = switch_text(_value(value), False, f"{path}:{line}: {key}") == "true"
    return ModelGroup(name, **rules)
