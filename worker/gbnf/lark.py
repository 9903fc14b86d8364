"""Writes a GBNF grammar in llguidance's variant of Lark. Pure.

Every terminal is one character or one token. llguidance takes the longest terminal that fits, which for longer ones
would be another language than GBNF's: `[a-z]* "b"` would never match. So only rules are ambiguous, as in GBNF.

Control tokens (for example one that begins a tool call) match where the grammar spells them out in a text, and not as
the characters of a class: a string cannot contain them.
"""

from __future__ import annotations

from collections.abc import Iterable

from .spellings import Spellings
from .syntax import MAX_CHARACTER, Chars, Gbnf, GrammarError, Item, Repeat, TokenItem

MAX_SYMBOLS = 250_000
"""Most characters and other parts in all rules together."""

_SURROGATES = (0xD800, 0xDFFF)
_TIMES = {(0, None): "*", (1, None): "+", (0, 1): "?"}


def lark(grammar: Gbnf, spellings: Spellings, never: Iterable[int]) -> str:
    """Return the grammar in Lark.

    `spellings` are the control tokens; `never` are tokens that no rule may match, such as those that end an answer.
    Raises GrammarError for a text with a character that no token can spell.
    """
    return _Writer(grammar, spellings, never).text()


class _Writer:
    def __init__(self, grammar: Gbnf, spellings: Spellings, never: Iterable[int]) -> None:
        self._grammar, self._spellings = grammar, spellings
        self._never = sorted(set(never))
        self._terminals: dict[str, str] = {}
        self._n_symbols = 0

    def text(self) -> str:
        lines = ['%llguidance {"no_forcing": true}']
        for index, rule in enumerate(self._grammar.rules):
            ways = [" ".join(map(self._item, way)) or '""' for way in rule.alternatives or ()]
            lines.append(f"{self._name(index)}: {' | '.join(ways)}")
            self._n_symbols += len(ways)
            if self._n_symbols > MAX_SYMBOLS:
                raise GrammarError(f"the grammar is too large: it has more than {MAX_SYMBOLS} characters and parts")
        lines += [f"{name}: {name.upper()}\n{name.upper()}: {pattern}" for pattern, name in self._terminals.items()]
        return "\n".join(lines) + "\n"

    def _name(self, rule: int) -> str:
        return "start" if rule == self._grammar.root else f"r{rule}"

    def _item(self, item: Item) -> str:
        self._n_symbols += len(item) if isinstance(item, str) else 1
        match item:
            case int():
                return self._name(item)
            case str():
                return self._text(item)
            case Chars():
                return self._terminal(_pattern(item))
            case TokenItem():
                return self._token(item)
            case Repeat():
                part = " ".join(map(self._item, item.part))
                return f"({part})" + _TIMES.get((item.low, item.high), f"{{{item.low},{_or_nothing(item.high)}}}")

    def _text(self, text: str) -> str:
        return " ".join(
            [
                self._letters(part) if token is None else f"(<[{token}]> | {self._letters(part)})"
                for part, token in self._spellings.parts(text)
            ]
        )

    def _letters(self, text: str) -> str:
        return " ".join([self._letter(letter) for letter in text])

    def _letter(self, letter: str) -> str:
        code = ord(letter)
        return self._terminal(_pattern(Chars(((code, code),))))

    def _token(self, item: TokenItem) -> str:
        if item.negated:
            return f"<[^{','.join(map(str, sorted({item.id, *self._never})))}]>"
        if item.id in self._never:
            raise GrammarError(f"token {item.id} cannot be a part of a text")
        return f"<[{item.id}]>"

    def _terminal(self, pattern: str) -> str:
        """Return a rule that is the terminal: llguidance makes a symbol of each use of a terminal, and has 65,536."""
        return self._terminals.setdefault(pattern, f"t{len(self._terminals)}")


def _pattern(chars: Chars) -> str:
    ranges = [_escaped(low, high) for wide in chars.ranges for low, high in _spellable(*wide)]
    if chars.negated:
        return f"/[^\\u{{0}}{''.join(ranges)}]/"
    if not ranges:
        raise GrammarError("a character class contains no character that a text can contain")
    return f"/[{''.join(ranges)}]/"


def _spellable(low: int, high: int) -> Iterable[tuple[int, int]]:
    """Yield the parts of a range without the character 0 and the halves of surrogate pairs, which no token spells."""
    for first, last in ((1, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, MAX_CHARACTER)):
        if max(low, first) <= min(high, last):
            yield max(low, first), min(high, last)


def _escaped(low: int, high: int) -> str:
    return f"\\u{{{low:X}}}" if low == high else f"\\u{{{low:X}}}-\\u{{{high:X}}}"


def _or_nothing(number: int | None) -> str:
    return "" if number is None else str(number)
