"""The types of option values: they parse switches, lists, sizes and other texts.

The modules of the option table use them as field types. Every type describes in `Allowed` which values it accepts, for
error messages and the reference. This module does not know individual options.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

TRUE_WORDS = ("on", "enabled", "true", "1")
FALSE_WORDS = ("off", "disabled", "false", "0")
AUTO_WORDS = ("auto", "-1")


class Allowed(Struct, frozen=True):
    """Describes the values that a type accepts, as text after "expected"."""

    text: str


def boolean(text: str) -> bool | None:
    """Parse a switch's text; None if it is neither true nor false. As in llama-server, `yes` and `no` are invalid."""
    word = text.strip().lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


def _switch(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    word = boolean(value)
    if word is None:
        raise ValueError("not a boolean word")
    return word


def _on_off_auto(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    word = boolean(value)
    if word is not None:
        return "on" if word else "off"
    return "auto" if value in AUTO_WORDS else value


def split_commas(text: str) -> list[str]:
    """Split at commas. An item with a comma must be in double quotes; a quote inside it is doubled."""
    items: list[str] = []
    current, quoted, position = "", False, 0
    while position < len(text):
        character = text[position]
        if quoted and text[position : position + 2] == '""':
            current += '"'
            position += 1
        elif character == '"' and (quoted or not current.strip()):
            quoted = not quoted
        elif character == "," and not quoted:
            items.append(current)
            current = ""
        else:
            current += character
        position += 1
    return [*items, current]


def _names(value: Any) -> Any:
    return tuple(name for item in split_commas(value) if (name := item.strip())) if isinstance(value, str) else value


def many(text: str) -> list[str]:
    """Return the values of a repeatable option: the items of a JSON array of strings, or the text itself."""
    if text.startswith("["):
        try:
            items = json.loads(text)
        except ValueError:
            return [text]
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    return [text]


def join_many(items: list[str]) -> str:
    """Encode several values as one text, the inverse of `many`."""
    return items[0] if len(items) == 1 and many(items[0]) == items else json.dumps(items, ensure_ascii=False)


_ESCAPE = re.compile(r"""\\(x[0-9a-fA-F]{1,2}|[nrt'"\\])""")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def unescape(text: str) -> str:
    r"""Replace `\n`, `\r`, `\t`, `\'`, `\"`, `\\` and `\xHH`; other backslashes are kept."""
    return _ESCAPE.sub(
        lambda match: chr(int(match[1][1:], 16)) if match[1][0] == "x" else _ESCAPED.get(match[1], match[1]), text
    )


def _breakers(value: Any) -> Any:
    """Parse sequence breakers; `none` removes all items before it."""
    items = many(value) if isinstance(value, str) else list(value)
    return tuple(items[len(items) - items[::-1].index("none") :] if "none" in items else items)


def _secret_names(value: Any) -> Any:
    return _names(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _numbers(value: Any) -> Any:
    return tuple(part for part in re.split(r"[,/]+", value.strip()) if part) if isinstance(value, str) else value


def _logit_bias(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [re.fullmatch(r"\s*(\d+)\s*([+-])\s*(.+)", item) for item in value.split(",") if item]
    if not all(pairs):
        raise ValueError("not TOKEN_ID+BIAS")
    return tuple((pair[1], float(pair[2] + pair[3])) for pair in pairs if pair)


def _key_overrides(value: Any) -> Any:
    items = _names(value)
    for item in items:
        if not re.fullmatch(r"[^=]{1,127}=((int:[+-]?\d+)|(float:.+)|(bool:(true|false))|(str:.{0,127}))", item):
            raise ValueError("not KEY=TYPE:VALUE")
    return items


def _json_object(value: str) -> str:
    if value and not isinstance(json.loads(value), dict):
        raise ValueError("not a JSON object")
    return value


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _scaled_files(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [item.rpartition(":") for item in _names(value)]
    if not all(file for file, _, _ in pairs):
        raise ValueError("not FILE:SCALE")
    return tuple((file, float(scale)) for file, _, scale in pairs)


def _layer_range(value: Any) -> Any:
    if not isinstance(value, str) or value == "":
        return None if value == "" else value
    first, last = value.split(" ")
    return int(first), int(last)


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(i?b)?", value.strip().lower())
    if not match:
        raise ValueError("not a size")
    return int(match[1]) * _UNITS[match[2]]


AUTO_LIMIT, NO_LIMIT = -1, 0


def _limit(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in AUTO_WORDS:
        return AUTO_LIMIT
    return NO_LIMIT if value in ("off", "0") else _bytes(value)


SAMPLER_LETTERS = {
    "d": "dry",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "s": "top_n_sigma",
    "m": "min_p",
    "t": "temperature",
    "x": "xtc",
    "i": "infill",
    "e": "penalties",
    "a": "adaptive_p",
}
"""One-letter names of samplers, for `--sampler-seq` and requests."""
SAMPLER_NAMES = {
    spelling: name
    for name in SAMPLER_LETTERS.values()
    for spelling in (name, name.replace("_", "-"), name.replace("_", ""))
} | {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}
"""All accepted names of samplers → the standard name."""


def _samplers(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(";") if name.strip()]
    if unknown := set(names) - SAMPLER_NAMES.keys():
        raise ValueError(f"unknown: {unknown}")
    return tuple(SAMPLER_NAMES[name] for name in names)


DRAFT_KINDS = (
    "none", "draft-simple", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache",
    "draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark",
)  # fmt: skip


def _draft_kinds(value: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := set(value) - set(DRAFT_KINDS):
        raise ValueError(f"unknown: {unknown}")
    return value


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("zero")
    return value


Switch = Annotated[bool, BeforeValidator(_switch), Allowed("on or off (also true/false, enabled/disabled, 1/0)")]
OnOffAuto = Annotated[Literal["on", "off", "auto"], BeforeValidator(_on_off_auto), Allowed("on, off or auto")]
OnOff = Annotated[Literal["on", "off"], BeforeValidator(_on_off_auto), Allowed("on or off")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Allowed("a comma-separated list")]
SecretNames = Annotated[tuple[SecretStr, ...], BeforeValidator(_secret_names), Allowed("a comma-separated list")]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(many(value)) if isinstance(value, str) else value),
    Allowed("text; repeat it for several"),
]
Breakers = Annotated[tuple[str, ...], BeforeValidator(_breakers), Allowed("text, or none; repeat it for several")]
Hosts = Annotated[
    tuple[str, ...], BeforeValidator(_names), Field(min_length=1), Allowed("an address, or several separated by commas")
]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers), Allowed("numbers separated by commas")]
LayerCount = Annotated[
    Annotated[int, Field(ge=-2)] | Literal["auto", "all"], Allowed("a number of layers, auto (-1) or all (-2)")
]
NotZero = Annotated[int, Field(ge=-1), AfterValidator(_not_zero), Allowed("-1 or an integer above 0")]
LogitBias = Annotated[
    tuple[tuple[int, float], ...], BeforeValidator(_logit_bias), Allowed("TOKEN_ID+BIAS or TOKEN_ID-BIAS")
]
KeyOverrides = Annotated[
    tuple[str, ...], BeforeValidator(_key_overrides), Allowed("KEY=TYPE:VALUE with type int, float, bool or str")
]
UrlPath = Annotated[str, Field(pattern="^(/.*)?$"), Allowed("a path that begins with /")]
JsonObject = Annotated[str, AfterValidator(_json_object), Allowed("a JSON object")]
ScaledFiles = Annotated[
    tuple[tuple[str, Finite], ...], BeforeValidator(_scaled_files), Allowed("FILE:SCALE, or several with commas")
]
LayerRange = Annotated[
    tuple[int, int] | None, BeforeValidator(_layer_range), Allowed("two layer numbers separated by one space")
]
ByteSize = Annotated[
    int, BeforeValidator(_bytes), Field(ge=1), Allowed("a number of bytes above 0, optionally with K, M or G")
]
OptionalSize = Annotated[
    int, BeforeValidator(_bytes), Field(ge=0), Allowed("a number of bytes, optionally with K, M or G")
]
DeviceSizes = Annotated[
    tuple[OptionalSize, ...],
    BeforeValidator(_names),
    Field(min_length=1),
    Allowed("a number of bytes, optionally with K, M or G, or one for each device, separated by commas"),
]
DraftKinds = Annotated[
    tuple[str, ...],
    BeforeValidator(_names),
    AfterValidator(_draft_kinds),
    Allowed("names separated by commas, from " + ", ".join(DRAFT_KINDS)),
]
SamplerNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_samplers),
    Allowed("names separated by ';', from " + ", ".join(SAMPLER_LETTERS.values())),
]
Seed = Annotated[
    int,
    Field(ge=-1, le=2**32 - 1),
    AfterValidator(lambda seed: seed & 0xFFFFFFFF),
    Allowed("an integer from -1 (random) to 4294967295"),
]
OffBelowZero = Annotated[int, AfterValidator(lambda value: max(value, 0)), Allowed("an integer; below 0: as 0")]
"""An integer whose 0 means off, automatic or no limit. Its negative values mean the same, as in llama-server."""
NeverBelowZero = Annotated[float, AfterValidator(lambda value: max(value, 0.0)), Allowed("a number; below 0: as 0")]
"""Seconds whose 0 means never."""
DryBase = Annotated[float, AfterValidator(lambda value: value if value >= 1.0 else DRY_BASE)]
"""The base of DRY's penalty. Below 1 the default is used, as in llama-server."""
Temperature = Annotated[float, AfterValidator(lambda value: max(value, 0.0))]
DRY_BASE = 1.75
KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
NumaStrategy = Annotated[
    Literal["distribute", "isolate", "numactl"] | None,
    BeforeValidator(lambda value: "distribute" if value == "" else value),
]
MemoryLimit = Annotated[
    int,
    BeforeValidator(_limit),
    Field(ge=AUTO_LIMIT),
    Allowed("auto, off, or a number of bytes, optionally with K, M or G"),
]
"""Bytes, AUTO_LIMIT or NO_LIMIT."""
DeviceLimits = Annotated[
    tuple[MemoryLimit, ...],
    BeforeValidator(_names),
    Field(min_length=1),
    Allowed("auto, off, or a number of bytes, optionally with K, M or G, or one for each device, separated by commas"),
]
