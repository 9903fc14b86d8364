"""Random JSON values: usual and hostile ones, also such that a JSON library would not write.

`written` turns them into bytes. A value may contain `Raw` (bytes as they are) and `Pairs` (an object
with repeated keys).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    text: bytes


@dataclass(frozen=True)
class Pairs:
    items: tuple[tuple[str, Any], ...]


NUMBERS = (0, -1, 1, 2, 7, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**64), 10**30)
FLOATS = (0.5, -0.0, 1e-320, 1e308, -1e308, 3.5, 0.999999, 1.000001, -0.5, 8.0)
RAW_NUMBERS = (
    b"1e999",
    b"-1e999",
    b"1E400",
    b"0.1e-999",
    b"9" * 310,
    b"-" + b"9" * 4301,
    b"1" + b"0" * 5000,
    b"1." + b"3" * 5000,
)
NOT_JSON = (
    b"NaN",
    b"Infinity",
    b"-",
    b"01",
    b"'a'",
    b"",
    b"tru",
    b'"\xff"',
    b'"\n"',
    b'"\\u12"',
    b"[1,]",
    b"{a:1}",
    b"\xef\xbb\xbf1",
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "\x00",
        "a\x00b",
        "\x1b[31m",
        "\r\n",
        "\x7f",
        "\u2028",
        "\ufeff",
        "\U0010ffff",
        "é" * 50,
        "🤠" * 20,
    ),
    *(
        "null",
        "true",
        "0",
        "-1",
        "1e9",
        "NaN",
        "../../etc/passwd",
        "/",
        "\\",
        "'",
        '"',
        "<|im_start|>",
        "<|im_end|>",
        "</s>",
    ),
    *(
        "{{ 1/0 }}",
        "{% x %}",
        "%s%n",
        "root ::= ",
        'root ::= "a"',
        "root ::= root",
        "(((",
        "[a-",
        "a{1,",
        "^(a+)+$",
        "\\d{9999999}",
    ),
    *(
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "http://127.0.0.1:1/a",
        "file:///etc/passwd",
        "auto",
        "none",
        "required",
    ),
    *(
        "user",
        "system",
        "assistant",
        "tool",
        "developer",
        "text",
        "json_object",
        "json_schema",
        "function",
        "chat",
        "embed",
        "nothing",
    ),
    *(
        "5m",
        "-1",
        "9" * 400,
        "1h1h1h",
        "#/$defs/a",
        "#",
        "https://a.example/schema",
        "max_tokens",
        "enabled",
        "low",
        "minimal",
    ),
)
RAW_TEXTS = (b'"\\ud800"', b'"\\udc00\\ud800"', b'"a\\u0000b"', b'"\\ud83e\\udd20"', b'"' + b"\\u0041" * 300 + b'"')
SCHEMA_KEYS = (
    *(
        "type",
        "properties",
        "items",
        "prefixItems",
        "required",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "$ref",
        "$defs",
    ),
    *(
        "additionalProperties",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
    ),
    *("exclusiveMaximum", "pattern", "format", "definitions", "patternProperties", "if", "multipleOf"),
)
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null", "nothing")
GRAMMAR = (
    *(
        '"a"',
        '"b"',
        "[a-z]",
        "[^a]",
        "[]",
        "[z-a]",
        '""',
        "|",
        "?",
        "*",
        "+",
        "{2}",
        "{0,3}",
        "{3,1}",
        "{9999}",
        "{,}",
        "(",
        ")",
    ),
    *(
        ".",
        "# c",
        "\n",
        '"\\x41"',
        '"\\u{110000}"',
        '"\\U0010ffff"',
        "<[5]>",
        "!<[5]>",
        "<|im_end|>",
        "<[99999999]>",
        "[\\x00-\\xff]",
    ),
)
LONG = (300, 5000, 100_000)


class Values:
    def __init__(self, chance: random.Random, names: dict[str, str]) -> None:
        """`names`: the known fields with their types."""
        self.chance = chance
        self._names = {**names, "grammar": "grammar", "json_schema": "schema"}
        self._all = tuple(names)

    def any(self, depth: int = 0) -> Any:
        pick = self.chance.random()
        if pick < 0.2:
            return self.number()
        if pick < 0.45:
            return self.text()
        if pick < 0.55:
            return self.chance.choice((None, True, False, [], {}, [[]], [None], {"": None}))
        if pick < 0.6:
            return self.nested()
        if pick < 0.63:
            return self.long_list()
        if pick < 0.7:
            return self.schema()
        if depth > 3:
            return self.text()
        if pick < 0.85:
            return [self.any(depth + 1) for _ in range(self.chance.randrange(4))]
        return {self.name(): self.any(depth + 1) for _ in range(self.chance.randrange(4))}

    def number(self) -> Any:
        pick = self.chance.random()
        if pick < 0.6:
            return self.chance.choice(NUMBERS)
        return self.chance.choice(FLOATS) if pick < 0.85 else Raw(self.chance.choice(RAW_NUMBERS))

    def text(self) -> Any:
        pick = self.chance.random()
        if pick < 0.75:
            return self.chance.choice(TEXTS)
        if pick < 0.85:
            return Raw(self.chance.choice(RAW_TEXTS))
        if pick < 0.93:
            return self.chance.choice(TEXTS) * self.chance.choice((2, 50))
        return self.chance.choice("aé🤠([{\x01") * self.chance.choice(LONG)

    def nested(self) -> Any:
        depth = self.chance.choice((10, 100, 600, 5000))
        opened, closed = self.chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"type":"array","items":', b"}")))
        return Raw(opened * depth + b"1" + closed * depth)

    def long_list(self) -> Any:
        item = self.chance.choice((0, "a", None, {}, [], {"role": "user", "content": "a"}, 5, "stop", [1, 1.0]))
        return [item] * self.chance.choice((20, 300, 1000))

    def schema(self, depth: int = 0) -> dict[str, Any]:
        """Return a JSON schema whose keywords often have values of a wrong type."""
        made: dict[str, Any] = {"type": self.chance.choice(TYPES)}
        for _ in range(self.chance.randrange(4)):
            key = self.chance.choice(SCHEMA_KEYS)
            if self.chance.random() < 0.4 or depth > 2:
                made[key] = self.any(3)
            elif key in ("properties", "$defs", "definitions", "patternProperties"):
                made[key] = {self.chance.choice(("a", "b", "")): self.schema(depth + 1) for _ in range(2)}
            elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
                made[key] = [self.schema(depth + 1) for _ in range(self.chance.randrange(3))]
            elif key in ("items", "not", "additionalProperties", "if"):
                made[key] = self.schema(depth + 1)
            elif key in ("enum", "required"):
                made[key] = [self.chance.choice(("a", "b", 1, None))]
            else:
                made[key] = self.number() if "m" in key.lower() else self.text()
        return made

    def grammar(self) -> str:
        """Return a grammar of a few rules, which is often invalid."""
        rules = self.chance.choice((("root",), ("root", "a"), ("root", "a", "b")))
        words = (*rules, *GRAMMAR)
        bodies = [" ".join(self.chance.choice(words) for _ in range(self.chance.randrange(6))) for _ in rules]
        return "\n".join(f"{rule} ::= {body}" for rule, body in zip(rules, bodies, strict=True))

    def name(self) -> str:
        return self.chance.choice(self._all) if self.chance.random() < 0.9 else str(self.chance.choice(TEXTS))

    def of(self, kind: str) -> Any:
        """Return a value of the type that a field expects, or in one of five cases any other one."""
        if kind == "any" or self.chance.random() < 0.2:
            return self.any()
        if kind == "grammar":
            return self.grammar()
        if kind == "schema":
            return self.schema()
        if kind == "boolean":
            return self.chance.random() < 0.5
        if kind == "string":
            return self.text()
        if kind in ("integer", "number"):
            return self.number()
        if kind == "strings":
            return [self.text() for _ in range(self.chance.randrange(4))]
        return {self.name(): self.any(2) for _ in range(self.chance.randrange(3))}

    def field(self) -> tuple[str, Any]:
        name = self.chance.choice(self._all)
        return name, self.of(self._names[name])


def written(value: Any) -> bytes:
    """Return a value as JSON, or what `Raw` says."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return b"{" + b",".join(written(name) + b":" + written(item) for name, item in value.items) + b"}"
    if isinstance(value, dict):
        return b"{" + b",".join(written(name) + b":" + written(item) for name, item in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(written, value)) + b"]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and len(value) % 2 == 0).encode()
