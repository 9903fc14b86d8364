"""Keeps the spellings of special tokens in messages apart from the special tokens that the template writes.

A text like `<|im_end|>` in a user's message or in a tool's result is ordinary text: it must not end the message. But a
template's output is one text, in which both look the same. So `Quotation` replaces the first character of each spelling
in a message by a stand-in, a character that occurs nowhere else. Templates copy, trim, slice and join the stand-in like
any other character. In the output each stand-in is replaced by the original character, and its position is known.
`SpecialTokens.split` then divides the output so that the tokenizer ignores special tokens at these positions.

A template that searches a message for a special token does not find one. A text without spellings stays as it is, and
to search it takes about a thousandth of the time of tokenizing it. No I/O.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from llama_corral.common.base.errors import InvalidRequest
from msgspec import Struct

from ..engine.messages import PromptText, SpecialSpelling
from .content import MEDIA_MARKER

Message = dict[str, Any]

TRUSTED_ROLES = frozenset({"system", "developer", "assistant"})
"""Roles whose texts may contain special tokens: the operator or the model wrote them."""

_HEAD = 4  # characters of a spelling that the first search compares
_BLANKS = " \t\n\v\f\r"  # characters that llama.cpp removes next to some special tokens
_STAND_INS = (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))  # noncharacters, then characters for private use
_UNCHANGED = ("role", "type", "tool_call_id")  # keys of a message whose values templates compare


class WrittenText(Struct, frozen=True):
    """The output of a template, and the positions in it where a message may spell a special token."""

    text: str
    quoted: tuple[int, ...] = ()


class SpellingSource(Protocol):
    """The part of a vocabulary that tells how special tokens are spelled."""

    @property
    def special_spellings(self) -> Sequence[SpecialSpelling]: ...

    def defined_spellings(self, text: str) -> Sequence[SpecialSpelling]: ...


class SpecialTokens:
    """The special tokens of a vocabulary, prepared for searching texts. Immutable."""

    def __init__(self, tokens: Iterable[SpecialSpelling]) -> None:
        self._tokens = {token.text: token for token in tokens if token.text}
        self._lowered = frozenset(map(str.lower, self._tokens))
        self._sorted = sorted(self._lowered)
        self._lengths = sorted(set(map(len, self._tokens)), reverse=True)
        self._first = frozenset(case(text[0]) for text in self._tokens for case in (str.lower, str.upper))
        heads = sorted({text[:_HEAD] for text in self._lowered}, key=len, reverse=True)
        self._heads = re.compile("|".join(map(re.escape, heads)), re.IGNORECASE)

    @classmethod
    def of(cls, vocab: SpellingSource, turn_starts: Iterable[str]) -> SpecialTokens:
        """Return the control tokens, and the user-defined tokens with which a template begins a turn. Slow."""
        defined = [found for text in turn_starts for found in vocab.defined_spellings(text)]
        return cls([*vocab.special_spellings, *(found for found in defined if not found.text.isspace())])

    def starts(self, text: str) -> list[int]:
        """Return the positions at which a spelling starts, in upper or lower case: templates may change the case.

        A spelling at the end may be incomplete, as the next text may complete it.
        """
        if not self._tokens:
            return []
        found = [at for at in self._candidates(text) if self._matches(text, at)]
        return sorted({*found, *self._incomplete(text)})

    def possible_starts(self, text: str) -> list[int]:
        """Return the positions of all characters with which a spelling could start."""
        return [at for at, character in enumerate(text) if character in self._first]

    def split(self, written: WrittenText, marker: str = "") -> tuple[PromptText, ...]:
        """Return the text in parts; those with quoted spellings are to be tokenized as ordinary text.

        A part extends from one special token that the template wrote to the next, so that the text between them is
        tokenized together. The result is empty if there is no quoted spelling. `marker`: the media marker, if the
        prompt has files.
        """
        text, marks = written.text, frozenset(written.quoted)
        quoted: list[tuple[int, SpecialSpelling]] = []
        special: list[tuple[int, int, SpecialSpelling]] = []
        end = 0
        for at, token in self._occurrences(text, marker):
            if any(mark in marks for mark in range(at, at + len(token.text))):
                quoted.append((at, token))
            elif at >= end:
                end = at + len(token.text)
                special.append((at, end, token))
        return tuple(_parts(text, special, quoted)) if quoted else ()

    def _candidates(self, text: str) -> Iterator[int]:
        match = self._heads.search(text) if self._tokens else None
        while match is not None:
            yield match.start()
            match = self._heads.search(text, match.start() + 1)

    def _matches(self, text: str, at: int) -> bool:
        return any(text[at : at + length].lower() in self._lowered for length in self._lengths)

    def _incomplete(self, text: str) -> list[int]:
        last = range(max(0, len(text) - self._lengths[0] + 1), len(text))
        return [at for at in last if text[at] in self._first and self._begins(text[at:].lower())]

    def _begins(self, start: str) -> bool:
        at = bisect_left(self._sorted, start)
        return at < len(self._sorted) and self._sorted[at].startswith(start)

    def _occurrences(self, text: str, marker: str) -> list[tuple[int, SpecialSpelling]]:
        """Return all special tokens that the tokenizer could find, the longest at each position, in order."""
        found: dict[int, SpecialSpelling] = {}
        for at in self._candidates(text):
            spelled = (self._tokens.get(text[at : at + length]) for length in self._lengths)
            if (token := next(filter(None, spelled), None)) is not None:
                found[at] = token
        if marker:
            found |= {at: SpecialSpelling(marker) for at in positions_of(marker, text)}
        return sorted(found.items(), key=lambda item: item[0])


NO_SPECIAL_TOKENS = SpecialTokens(())


def _parts(
    text: str, special: Sequence[tuple[int, int, SpecialSpelling]], quoted: Sequence[tuple[int, SpecialSpelling]]
) -> Iterator[PromptText]:
    done, begin, strips_right, rest = 0, 0, False, list(quoted)
    for start, end, token in [*special, (len(text), len(text), SpecialSpelling(""))]:
        here = [(at, spelled) for at, spelled in rest if at < start]
        if here:
            rest = rest[len(here) :]
            if begin > done:
                yield PromptText(text[done:begin])
            first, last = begin, start
            if strips_right:
                first = last - len(text[first:last].lstrip(_BLANKS))
            if token.strips_left:
                last = first + len(text[first:last].rstrip(_BLANKS))
            yield from _ordinary(text, first, last, [at + 1 for at, spelled in here if spelled.always])
            done = start
        begin, strips_right = end, token.strips_right
    if done < len(text):
        yield PromptText(text[done:])


def _ordinary(text: str, first: int, last: int, cuts: Sequence[int]) -> Iterator[PromptText]:
    """Yield ordinary text. It is cut inside the tokens that are found even there."""
    for start, end in zip([first, *cuts], [*cuts, last], strict=True):
        yield PromptText(text[start:end], parse_special=False)


def positions_of(part: str, text: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(part), text)]


class Quotation:
    """Hides the spellings in one request's messages from the template, and shows them again in its output.

    `marker`: the media marker, if the request has files; it is hidden in every message. `inputs` returns all that the
    template may write, which the stand-ins must not occur in. `cuts`: texts that the template may remove; the rest of a
    message may then form a spelling. The methods raise InvalidRequest if there are too few stand-ins.
    """

    def __init__(
        self,
        tokens: SpecialTokens,
        marker: str,
        inputs: Callable[[], Sequence[object]],
        cuts: Collection[str] = (),
    ) -> None:
        self._tokens = tokens
        self._cuts = cuts
        self._marker = marker
        self._inputs = inputs
        self._stand_ins: dict[str, str] = {}
        self._free: Iterator[str] | None = None

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        return [self._message(message) for message in messages]

    def value(self, value: Any) -> Any:
        """Return a nested value of a message that is not trusted, with the spellings in its texts and keys hidden."""
        return _mapped(value, self._hidden, with_keys=True)

    def positions(self, text: str, role: str) -> list[int]:
        """Return where a message with this role spells a special token or the media marker."""
        found = [] if role in TRUSTED_ROLES else self._tokens.starts(text)
        return sorted({*found, *positions_of(self._marker, text)}) if self._marker else found

    def shown(self, text: str) -> WrittenText:
        """Return a template's output with the original characters."""
        if not self._stand_ins:
            return WrittenText(text)
        originals = {stand_in: character for character, stand_in in self._stand_ins.items()}
        originals |= {_escaped(stand_in): json.dumps(original)[1:-1] for stand_in, original in originals.items()}
        parts, quoted, end, length = [], [], 0, 0
        for match in re.finditer("|".join(map(re.escape, originals)), text):
            parts += [text[end : match.start()], originals[match[0]]]
            length += len(parts[-2])
            quoted.append(length)
            length += len(parts[-1])
            end = match.end()
        return WrittenText("".join([*parts, text[end:]]), tuple(quoted))

    def split(self, written: WrittenText) -> tuple[PromptText, ...]:
        return self._tokens.split(written, self._marker) if written.quoted else ()

    def _message(self, message: Message) -> Message:
        if message["role"] not in TRUSTED_ROLES:
            hide = self._hidden
        elif self._marker:
            hide = self._hidden_marker
        else:
            return message
        return {key: value if key in _UNCHANGED else _mapped(value, hide) for key, value in message.items()}

    def _hidden(self, text: str) -> str:
        found = self.positions(text, "user")
        cuts = [cut for cut in self._cuts if cut in text]
        if cuts:
            cut_out = {at for cut in cuts for start in positions_of(cut, text) for at in range(start, start + len(cut))}
            found += (at for at in self._tokens.possible_starts(text) if at not in cut_out)
        return self._with_stand_ins(text, sorted(set(found)))

    def _hidden_marker(self, text: str) -> str:
        return self._with_stand_ins(text, positions_of(self._marker, text))

    def _with_stand_ins(self, text: str, positions: Sequence[int]) -> str:
        if not positions:
            return text
        characters = list(text)
        for at in positions:
            characters[at] = self._stand_in(characters[at])
        return "".join(characters)

    def _stand_in(self, character: str) -> str:
        if self._free is None:
            taken = "".join(map(repr, self._inputs())).lower()  # repr escapes these characters as JSON does
            self._free = (chr(code) for code in _STAND_INS if _escaped(chr(code)) not in taken)
        if character not in self._stand_ins:
            stand_in = next(self._free, None)
            if stand_in is None:
                raise InvalidRequest(
                    "The messages contain almost all characters for private use, together with texts"
                    " that spell special tokens"
                )
            self._stand_ins[character] = stand_in
        return self._stand_ins[character]


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _mapped(value: Any, change: Callable[[str], str], *, with_keys: bool = False) -> Any:
    """Return a nested value with each text changed; the marker of a file stays as it is."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change, with_keys=with_keys) for item in value]
    if isinstance(value, Mapping):
        if not with_keys and value.get("type") == MEDIA_MARKER:
            return value
        items = [(key, _mapped(item, change, with_keys=with_keys)) for key, item in value.items()]
        return {change(key) if with_keys else key: item for key, item in items}
    return value
