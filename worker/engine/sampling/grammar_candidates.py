"""Finds the tokens that a grammar of llama.cpp's matcher allows without testing every token.

A grammar that forbids a token forbids every token that begins with it. So the shortest tokens are tested first, and
longer ones only if their beginning is allowed: between the parts of a JSON text only a few tokens of a large vocabulary
are tested. Inside a string nearly all tokens are allowed; there it suffices to test the most likely ones, if `top_k`
drops all others anyway. The result of the samplers is the same in both cases.
"""

from __future__ import annotations

import ctypes
import re
import threading
from concurrent.futures import Future
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..llama.llama import C
from ..llama.vocab import Vocab
from . import preparing
from .candidates import CANDIDATE, SMALL_VOCAB
from .grammar import GrammarConstraint
from .llama_matcher import LlamaMatcher, checked

Ids = NDArray[np.int32]

MANY = 1024
"""Before more tokens than this are tested in one call, the most likely ones are tried."""

_LIKELIEST = 8
"""How many of the most likely tokens are tried for each one that `top_k` keeps."""

_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*+"?|\[(?:[^\]\\]|\\.)*+\]?|#[^\n]*', re.DOTALL)
"""Literal parts of GBNF: strings, character classes and comments."""

_BEYOND_ASCII = re.compile(r"[^\x00-\x7F]|\\u|\\U|\\x[89A-Fa-f]")


def prunable(grammar: str) -> bool:
    """Return True if a token is certainly forbidden when its beginning is.

    False if the grammar names tokens, or excludes characters beyond ASCII: llama.cpp then forbids the first byte of all
    characters that begin with that byte.
    """
    if re.search("[<!]", _LITERAL.sub("", grammar)):
        return False
    return not any(_BEYOND_ASCII.search(found) for found in _LITERAL.findall(grammar) if found.startswith("[^"))


class _PrefixTree:
    """A tree of all tokens. A token's parent is the longest other token that it begins with."""

    def __init__(self, vocab: Vocab) -> None:
        pieces = [vocab.piece(token) for token in range(vocab.n_vocab)]
        parents = np.full(vocab.n_vocab, -1, np.int32)
        path: list[int] = []  # possible parents of the next token (the tokens are sorted), the shortest first
        for token in sorted(range(vocab.n_vocab), key=pieces.__getitem__):
            piece = pieces[token]
            if vocab.is_eog(token):
                continue
            if not piece:
                parents[token] = token  # llama.cpp never allows it
                continue
            while path and not piece.startswith(pieces[path[-1]]):
                path.pop()
            if path:
                parents[token] = path[-1]
            if not path or pieces[path[-1]] != piece:
                path.append(token)
        self.roots: Ids = np.flatnonzero(parents == -1).astype(np.int32)
        placed = np.flatnonzero((parents >= 0) & (parents != np.arange(vocab.n_vocab))).astype(np.int32)
        self._children: Ids = placed[np.argsort(parents[placed], kind="stable")]
        self._counts = np.bincount(parents[placed], minlength=vocab.n_vocab)
        self._starts = np.cumsum(self._counts) - self._counts

    def below(self, tokens: Ids) -> Ids:
        counts = self._counts[tokens]
        ends = np.cumsum(counts)
        places = np.repeat(self._starts[tokens] - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
        below: Ids = self._children[places]
        return below


_trees: WeakKeyDictionary[Vocab, _PrefixTree] = WeakKeyDictionary()
_making = threading.Lock()


def prepare(text: str, vocab: Vocab) -> Future[object]:
    """Check a grammar on another thread, and build the prefix tree that it needs, once per model.

    The tree takes about a second for a large vocabulary. The future may raise InvalidRequest; it can be cancelled.
    """

    def work() -> object:
        if vocab.n_vocab > SMALL_VOCAB:
            _tree(vocab)
        return checked(text, vocab)

    return preparing.for_grammar(work, len(text))


def _tree(vocab: Vocab) -> _PrefixTree:
    with _making:
        tree = _trees.get(vocab)
        if tree is None:
            tree = _trees[vocab] = _PrefixTree(vocab)
        return tree


class GrammarPrefilter:
    """Tests many tokens against one grammar."""

    def __init__(self, constraint: GrammarConstraint, vocab: Vocab, top_k: int, many: int = MANY) -> None:
        """Create the filter. Only the `top_k` most likely allowed tokens matter; 0 if all of them do."""
        self.is_partial = False
        """True if the last call of `allowed` did not return all allowed tokens."""
        assert isinstance(constraint.matcher, LlamaMatcher)
        self._constraint, self._matcher = constraint, constraint.matcher
        self._tree, self._top_k, self._many = _tree(vocab), top_k, many
        self._data = np.zeros(vocab.n_vocab, CANDIDATE)
        self._array = C.llama_token_data_array()
        self._array.data = ctypes.cast(self._data.ctypes.data, C.llama_token_data_p)
        self._reference = ctypes.byref(self._array)

    def allowed(self, logits: NDArray[np.float32]) -> Ids:
        """Return the allowed tokens, or the most likely of them, at least `top_k`."""
        self.is_partial = False
        found: list[Ids] = []
        asked = self._tree.roots
        while len(asked):
            if len(asked) > self._many and found and (most_likely := self._likeliest(logits)) is not None:
                self.is_partial = True
                return most_likely
            found.append(self._ask(asked))
            asked = self._tree.below(found[-1])
        return np.sort(np.concatenate(found))

    def _likeliest(self, logits: NDArray[np.float32]) -> Ids | None:
        n = self._top_k * _LIKELIEST
        if not 0 < n < len(logits):
            return None
        allowed = self._ask(np.argpartition(-logits, n)[:n].astype(np.int32))
        return allowed if len(allowed) >= self._top_k else None

    def _ask(self, tokens: Ids) -> Ids:
        n = len(tokens)
        part = self._data[:n]
        part["id"], part["logit"] = tokens, 0.0
        self._array.size, self._array.selected, self._array.sorted = n, -1, False
        self._constraint.timed(lambda: self._matcher.apply(self._reference))
        allowed: Ids = tokens[part["logit"] == 0.0]
        return allowed
