"""Which tokens a grammar allows, found without asking it about every one.

A grammar forbids a token as soon as it forbids the way the token begins. So it is asked about single bytes first, then
about pairs of bytes, and about whole tokens only where both are allowed: between the parts of a JSON text that leaves a
few of a large vocabulary. Inside of a string nearly all tokens are allowed; there the likeliest ones suffice when
`top_k` is going to drop all others anyway. Either way the samplers see what they would have seen.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .grammar import Constraint
from .llama import C
from .vocab import Vocab

Ids = NDArray[np.int32]

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

SMALL_VOCAB = 4096
"""Up to here a grammar is faster asked about all tokens at once."""

MANY = 4096
"""If more tokens than this may be allowed, the likeliest ones are tried before the others."""

_LIKELIEST = 8
"""Tried for each one that `top_k` keeps."""

_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|#[^\n]*', re.DOTALL)
_BEYOND_ASCII = re.compile(r"[^\x00-\x7F]|\\u|\\U|\\x[89A-Fa-f]")


def prunable(grammar: str) -> bool:
    """Whether the first byte decides: not if tokens are named, nor if characters beyond ASCII are excluded."""
    if re.search("[<!]", _LITERAL.sub("", grammar)):
        return False
    return not any(_BEYOND_ASCII.search(found) for found in _LITERAL.findall(grammar) if found.startswith("[^"))


@dataclass(frozen=True, slots=True)
class _Below:
    """The tokens that begin with a certain byte."""

    asked: Ids
    pairs: dict[int, Ids]  # of those asked, the ones that are two bytes, with the tokens that begin with both
    size: int


class _ByteTree:
    """A vocabulary by the first two bytes of its tokens."""

    def __init__(self, vocab: Vocab) -> None:
        single = vocab.byte_tokens
        by_byte: dict[int, list[int]] = {}
        alone: list[int] = []
        for token in range(vocab.n_vocab):
            piece = vocab.piece(token)
            if vocab.is_eog(token) or (piece and piece[0] not in single):
                alone.append(token)
            elif piece and token != single[piece[0]]:
                by_byte.setdefault(piece[0], []).append(token)
        self.first = _ids([*single.values(), *alone])
        self.below = {single[byte]: _below(tokens, vocab) for byte, tokens in by_byte.items()}


def _below(tokens: list[int], vocab: Vocab) -> _Below:
    double: dict[bytes, int] = {}
    for token in tokens:
        if len(piece := vocab.piece(token)) == 2:
            double.setdefault(piece, token)
    asked: list[int] = []
    pairs: dict[int, list[int]] = {}
    for token in tokens:
        pair = double.get(vocab.piece(token)[:2], token)
        if pair == token:
            asked.append(token)
        else:
            pairs.setdefault(pair, []).append(token)
    return _Below(_ids(asked), {pair: _ids(members) for pair, members in pairs.items()}, len(tokens))


def _ids(tokens: list[int]) -> Ids:
    return np.array(tokens, np.int32)


_trees: WeakKeyDictionary[Vocab, _ByteTree] = WeakKeyDictionary()


def _tree(vocab: Vocab) -> _ByteTree:
    """Made once a model, when it is first needed."""
    tree = _trees.get(vocab)
    if tree is None:
        tree = _trees[vocab] = _ByteTree(vocab)
    return tree


class Narrowing:
    """Asks one grammar about many tokens."""

    def __init__(self, constraint: Constraint, vocab: Vocab, top_k: int, many: int = MANY) -> None:
        """`top_k`: how many of the likeliest allowed tokens are all that matter, 0 if every one does."""
        self.is_partial = False
        """Whether `allowed` has last left out tokens that are allowed too."""
        self._constraint, self._tree, self._top_k, self._many = constraint, _tree(vocab), top_k, many
        self._data = np.zeros(vocab.n_vocab, CANDIDATE)
        self._array = C.llama_token_data_array()
        self._array.data = ctypes.cast(self._data.ctypes.data, C.llama_token_data_p)
        self._reference = ctypes.byref(self._array)

    def allowed(self, logits: NDArray[np.float32]) -> Ids:
        """The allowed tokens, or the likeliest of them, at least `top_k`."""
        found = self._ask(self._tree.first)
        begun = [below for token in found.tolist() if (below := self._tree.below.get(token))]
        n, n_possible = self._top_k * _LIKELIEST, sum(below.size for below in begun)
        self.is_partial = False
        if 0 < n < len(logits) and n_possible > self._many:
            likeliest = self._ask(np.argpartition(-logits, n)[:n].astype(np.int32))
            if len(likeliest) >= self._top_k:
                self.is_partial = True
                return likeliest
        return np.sort(np.concatenate([found, *(part for below in begun for part in self._allowed_below(below))]))

    def _allowed_below(self, below: _Below) -> Iterator[Ids]:
        second = self._ask(below.asked)
        yield second
        behind = [below.pairs[token] for token in second.tolist() if token in below.pairs]
        if behind:
            yield self._ask(np.concatenate(behind))

    def _ask(self, tokens: Ids) -> Ids:
        n = len(tokens)
        part = self._data[:n]
        part["id"], part["logit"] = tokens, 0.0
        self._array.size, self._array.selected, self._array.sorted = n, -1, False
        self._constraint.apply(self._reference)
        allowed: Ids = tokens[part["logit"] == 0.0]
        return allowed
