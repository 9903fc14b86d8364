"""Build the rule of a JSON object: required properties first, then optional ones in schema order, then others."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from .rules import CHAR, GrammarRules, below, json_literal

_OTHERS = "*"
_MAX_GROUP = 200
"""Most alternatives of an optional group. llama.cpp refuses a group with 2000 new rules, but not a rule with them."""
_ESCAPE = r'[\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})'


def object_rule(
    rules: GrammarRules, name: str, properties: Sequence[tuple[str, str]], required: Collection[str], others: str | None
) -> str:
    """Return the rule. `properties`: names and their value rules; `others`: value rule of additional properties."""
    pairs: dict[str, str] = {}
    for key, value in properties:
        pairs[key] = rules.add(below(name, f"{key}-kv"), f'{json_literal(key)} space ":" space {value}')
    needed = [key for key, _ in properties if key in required]
    optional = [key for key, _ in properties if key not in required]
    if others is not None:
        part = below(name, "additional")
        key_rule = (
            rules.add(f"{part}-k", _other_key(rules, f"{part}-name", list(pairs)))
            if pairs
            else rules.primitive("string")
        )
        pairs[_OTHERS] = rules.add(f"{part}-kv", f'{key_rule} ":" space {others}')
        optional.append(_OTHERS)
    if not pairs:
        return '"{" space "}"'
    rule = '"{" space ' + ' "," space '.join(pairs[key] for key in needed)
    if optional:
        choice = " | ".join(_chains(rules, name, optional, pairs))
        if len(optional) > _MAX_GROUP:
            choice = rules.add(below(name, "any-of"), choice)
        rule += f' ( "," space ( {choice} ) )?' if needed else f" ({choice} )?"
    return f'{rule} space "}}"'


def _chains(rules: GrammarRules, name: str, optional: Sequence[str], pairs: dict[str, str]) -> list[str]:
    """Return for each optional property the rule of a list that begins with it; each later property is optional."""
    chains: list[str] = []
    following = ""  # the chain of the properties after this one
    for key in reversed(optional):
        pair = pairs[key]
        again = f'( "," space {pair} )'
        rest = " " + rules.add(below(name, f"{key}-rest"), following) if following else ""
        chains.append((f"{pair} {again}*" if key == _OTHERS else pair) + rest)
        following = again + ("*" if key == _OTHERS else "?") + rest
    return chains[::-1]


def _other_key(rules: GrammarRules, name: str, known: Sequence[str]) -> str:
    """Return an expression for a quoted name that is not in `known`, built from a prefix tree."""
    tree = _NameTree()
    for key in known:
        tree.add(json.dumps(key, ensure_ascii=False)[1:-1])
    others = tree.others(rules.primitive(CHAR))
    if others.count("(") > _MAX_GROUP:
        others = rules.add(name, others)
    return f'["] ( {others} ){"" if "" in known else "?"} ["]'


class _NameTree:
    """A prefix tree of the known property names."""

    def __init__(self) -> None:
        self._next: dict[str, _NameTree] = {}

    def add(self, text: str) -> None:
        if text:
            self._next.setdefault(text[0], _NameTree()).add(text[1:])

    def others(self, char: str) -> str:
        """Return an expression for all names that are not in the tree. `char`: the rule of one character."""
        ways: list[str] = []
        for letter, rest in sorted(self._next.items()):
            ways.append(
                f"[{_in_class(letter)}] ({rest.others(char)})" if rest._next else f"[{_in_class(letter)}] {char}+"
            )
        excluded = "".join(map(_in_class, sorted(self._next.keys() - {"\\"})))
        ways.append(rf'[^"\\\x7F\x00-\x1F{excluded}] {char}*')
        if "\\" not in self._next:
            ways.append(f"{_ESCAPE} {char}*")
        return " | ".join(ways)


def _in_class(letter: str) -> str:
    return letter if letter.isalnum() or letter in " _" else f"\\U{ord(letter):08X}"
