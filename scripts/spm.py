"""Makes a vocabulary like SentencePiece's by byte-pair merges; llama.cpp reads it as tokenizer model `llama`.

Used by `make_test_models.py` and `train_demo.py`. A piece's score is minus its rank. The pair with the best score is
merged first, the leftmost one of equal pairs; llama.cpp does the same, so both produce the same tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types of GGUF
SPACE = "▁"
# pieces never cross these boundaries; digits are single pieces
_WORD = re.compile(r"▁?[A-Za-z']+|▁?[0-9]|▁?[^A-Za-z0-9▁\n]+|▁|\n")


class Vocabulary:
    """A vocabulary with these ids: <unk>, <s>, </s>, 256 bytes, control tokens, then merged pieces and characters."""

    def __init__(self, pieces: Sequence[str], control: Sequence[str] = ()) -> None:
        specials = ["<unk>", "<s>", "</s>"]
        self.tokens = [*specials, *(f"<0x{b:02X}>" for b in range(256)), *control, *pieces]
        self.types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[CONTROL] * len(control), *[NORMAL] * len(pieces)]
        first = len(self.tokens) - len(pieces)
        self.scores = [0.0] * first + [-float(rank) for rank in range(len(pieces))]
        self.rank = {piece: rank for rank, piece in enumerate(pieces)}
        self.id = {token: number for number, token in enumerate(self.tokens)}
        self.special = [*control, "<s>", "</s>"]
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")
        self._word = lru_cache(maxsize=200_000)(self._merge)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of the text. Special tokens in it are recognised; no BOS is added."""
        ids: list[int] = []
        for part in self._special_pattern.split(text):
            if part in self.special:
                ids.append(self.id[part])
            else:
                for word in _WORD.findall(part.replace(" ", SPACE)):
                    ids.extend(self._word(word))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        raw = b"".join(
            bytes([i - 3]) if self.types[i] == BYTE else self.tokens[i].replace(SPACE, " ").encode() for i in ids
        )
        return raw.decode(errors="replace")

    def _merge(self, word: str) -> tuple[int, ...]:
        symbols = list(word)
        while len(symbols) > 1:
            ranks = [self.rank.get(a + b, 1 << 30) for a, b in pairwise(symbols)]
            best = min(ranks)
            if best == 1 << 30:
                break
            at = ranks.index(best)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        ids: list[int] = []
        for symbol in symbols:
            ids.extend([self.id[symbol]] if symbol in self.rank else [3 + b for b in symbol.encode()])
        return tuple(ids)


def learn_pieces(texts: Iterable[str], size: int, alphabet: str = "") -> list[str]:
    """Return at most `size` pieces: the most frequent merges first, then the single characters."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_WORD.findall(text.replace(" ", SPACE)))
    characters = sorted({*SPACE, *alphabet, *(c for word in words for c in word)})
    split = {word: list(word) for word in words}
    merged: dict[str, None] = {}
    while len(merged) + len(characters) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged["".join(best)] = None
        for symbols in split.values():
            _apply(symbols, best)
    return [*merged, *characters]


def _apply(symbols: list[str], pair: tuple[str, str]) -> None:
    at = 0
    while at < len(symbols) - 1:
        if (symbols[at], symbols[at + 1]) == pair:
            symbols[at : at + 2] = ["".join(pair)]
        at += 1
