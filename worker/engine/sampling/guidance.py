"""Matches tokens against grammars with llguidance: a mask usually takes a millisecond, and every step has a limit.

The vocabulary is indexed once per model. llguidance does not let other threads run meanwhile, so the engine does it for
a large one when it is idle. A grammar is compiled once for all choices of a request, and for later requests with the
same text, before the engine thread needs it (`prepare`). Both take up to a second.
llguidance never raises an exception for a grammar that is too ambiguous: its matcher enters a state of error.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from numpy.typing import NDArray

from ...gbnf.branching import check_branching
from ...gbnf.checks import check_left_recursion, check_size
from ...gbnf.lark import lark
from ...gbnf.prefixes import join_prefixes
from ...gbnf.spellings import Spellings
from ...gbnf.syntax import Gbnf, GrammarError, parse
from ..llama.vocab import Vocab
from . import preparing

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_ITEMS = 20_000
"""Most states of the parser in one step: at most about 40 ms. A JSON schema needs some hundreds or thousands."""

MAX_ITEMS_IN_ROW = 3000
"""Most states of the parser after one character. An object with 300 optional properties needs up to 1174."""

_LIKELIEST = 8
"""How many of the most likely tokens are tried for each one that `top_k` keeps."""

TRYING_SECONDS = 0.005
"""Processor time after which a mask is made instead of trying one token after the other: the grammar is ambiguous."""

LARGE_VOCAB = 64_000
"""Number of tokens from which on other threads stand still for more than 0.1 s when the vocabulary is indexed."""

MAX_FORCED = 16
"""How many bytes are tried at the beginning of a grammar, while it allows only one."""

_KEPT = 16
_KEPT_CHARACTERS = 4 << 20

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


def failed_to_parse(error: GrammarError) -> InvalidRequest:
    return InvalidRequest(f"Failed to initialize samplers: failed to parse grammar: {error}")


def parsed(text: str, vocab: Vocab) -> Gbnf:
    """Return the rules of a grammar. Raises InvalidRequest if it is no grammar, or too large, deep or ambiguous."""

    def token_of(spelling: str) -> int | None:
        tokens = vocab.tokenize(spelling, False, True)
        return tokens[0] if len(tokens) == 1 else None

    try:
        grammar = parse(text, token_of)
        check_size(grammar)
        check_left_recursion(grammar)
    except GrammarError as error:
        raise failed_to_parse(error) from None
    return grammar


class _Wrapper:
    """What LLTokenizer reads of a vocabulary. It is used for no text: grammars force no tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocab: Vocab, special: list[int]) -> None:
        self.eos_token_id = vocab.eog_tokens[0] if vocab.eog_tokens else 0
        self.tokens = [vocab.piece(token) for token in range(vocab.n_vocab)]
        self.special_token_ids = special

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError


class _Index:
    """The vocabulary of a model as llguidance needs it, and the grammars that were used last.

    It does not keep the Vocab, so that it is freed with it.
    """

    def __init__(self, vocab: Vocab) -> None:
        hidden = vocab.hidden_tokens
        ends = list(vocab.eog_tokens)
        self._never = ends
        self._spellings = Spellings(
            {vocab.piece(token).decode("utf-8", "ignore"): token for token in hidden if not vocab.is_eog(token)}
        )
        from llguidance import LLTokenizer  # here, because the import takes 40 ms, which every start would wait for

        wrapper = _Wrapper(vocab, sorted({*hidden, *ends}))
        # in two calls, because no other thread runs during each
        whole = LLTokenizer(wrapper, n_vocab=vocab.n_vocab, eos_token=ends or [0], slices=[])  # type: ignore[arg-type]
        time.sleep(0.001)
        self.tokenizer = whole.with_slices(LLTokenizer.general_slices())
        self.unusable = np.array([not piece or piece[0] == 0 for piece in wrapper.tokens], np.bool_)
        self.ends = np.array(ends, np.int64)
        self._first = np.array([piece[0] if piece else 0 for piece in wrapper.tokens], np.uint8)
        self._bytes = vocab.byte_tokens
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, text: str) -> LLMatcher | None:
        """Return the compiled grammar if it is kept."""
        with self._lock:
            known = self._kept.get(text)
            if known is not None:
                self._kept.move_to_end(text)
            return known

    def compiled(self, text: str, vocab: Vocab) -> LLMatcher:
        """Return a matcher at the beginning of the grammar, which is only copied. Raises InvalidRequest."""
        known = self.known(text)  # another request with this grammar may have waited for the same thread
        if known is None:
            known = self._compile(text, vocab)
            with self._lock:
                self._kept[text] = known
                while len(self._kept) > _KEPT or sum(map(len, self._kept)) > _KEPT_CHARACTERS:
                    self._kept.popitem(last=False)
        return known

    def mask(self, matcher: LLMatcher, bits: Ids) -> Mask:
        """Return for each token whether the matcher allows it. The result is arbitrary if a limit is exceeded."""
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        mask = np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(self.unusable)].astype(np.bool_)
        mask[self.unusable] = False
        mask[self.ends] = matcher.is_accepting()
        return mask

    def _compile(self, text: str, vocab: Vocab) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = join_prefixes(parsed(text, vocab), self._spellings)
            check_size(grammar)
            check_branching(grammar)
            written = lark(grammar, self._spellings, self._never)
        except GrammarError as error:
            raise failed_to_parse(error) from None
        limits = LLParserLimits(step_max_items=MAX_ITEMS, max_items_in_row=MAX_ITEMS_IN_ROW, verbose_errors=False)
        matcher = LLMatcher(self.tokenizer, written, log_level=0, limits=limits)
        if matcher.is_error():
            # it has read the grammar up to one of its limits: the syntax was checked before
            why = _first_line(matcher)
            why = "llguidance cannot represent so many parts" if "panic" in why else why
            raise failed_to_parse(GrammarError(f"the grammar is too large: {why}"))
        self._check_beginning(matcher)
        return matcher

    def _check_beginning(self, matcher: LLMatcher) -> None:
        """Refuse a grammar that exceeds a limit at the bytes that every answer begins with, for example `{`.

        Otherwise the error would come after the answer has begun. Raises InvalidRequest.
        """
        begun, bits = matcher.deep_copy(), no_bits(len(self.unusable))
        for _ in range(MAX_FORCED):
            allowed = np.flatnonzero(self.mask(begun, bits))
            begins = np.unique(self._first[allowed])
            if begun.is_error() or len(begins) != 1 or (token := self._bytes.get(int(begins[0]), -1)) not in allowed:
                break
            begun.consume_token(token)
            if begun.is_error():
                break
        if begun.is_error() and _TOO_MANY_WAYS in _first_line(begun):
            why = f"more than {MAX_ITEMS_IN_ROW} states of the parser are possible after its first characters"
            raise failed_to_parse(GrammarError(f"the grammar is too ambiguous: {why}"))


_TOO_MANY_WAYS = "Current row has"


def no_bits(n_vocab: int) -> Ids:
    """Return a buffer for the mask of a vocabulary."""
    return np.zeros((n_vocab + 31) // 32, np.int32)


def _first_line(matcher: LLMatcher) -> str:
    return matcher.get_error().partition("\n")[0][:200]


_indices: WeakKeyDictionary[Vocab, _Index] = WeakKeyDictionary()
_indexing = threading.Lock()


def _index(vocab: Vocab) -> _Index:
    with _indexing:
        index = _indices.get(vocab)
        if index is None:
            index = _indices[vocab] = _Index(vocab)
        return index


def should_be_indexed(vocab: Vocab) -> bool:
    """Return True if the vocabulary is large and not indexed yet."""
    return vocab.n_vocab >= LARGE_VOCAB and vocab not in _indices


def index(vocab: Vocab) -> None:
    """Index a vocabulary. May be called from any thread; see above."""
    _index(vocab)


def prepare(text: str, vocab: Vocab) -> Future[LLMatcher]:
    """Compile a grammar on another thread, and index the vocabulary if that is not done yet.

    The future may raise InvalidRequest. It can be cancelled while other grammars are compiled.
    """
    ready = _indices.get(vocab)
    if ready is not None and (known := ready.known(text)) is not None:
        return preparing.done(known)
    return preparing.for_grammar(lambda: _index(vocab).compiled(text, vocab), len(text))


class GuidanceMatcher:
    """The state of one choice's grammar. The tokens that it returns are exactly those that fit."""

    def __init__(self, text: str, vocab: Vocab, compiled: object = None) -> None:
        """`compiled`: the result of `prepare`, or None. Raises InvalidRequest if the grammar cannot be parsed."""
        matcher = prepare(text, vocab).result() if compiled is None else cast("LLMatcher", compiled)
        self._index, self._vocab = _index(vocab), vocab
        self._matcher = matcher.deep_copy()
        self._bits = no_bits(vocab.n_vocab)

    def close(self) -> None:
        pass

    def allows(self, token: int) -> bool:
        """Raises InvalidRequest if a limit is exceeded."""
        if self._vocab.is_eog(token):
            allowed = self._matcher.is_accepting()
        else:
            allowed = not self._index.unusable[token] and self._matcher.validate_tokens([token]) == 1
        self._check()
        return bool(allowed)

    def accept(self, token: int) -> None:
        """Advance by a token that `allows` has allowed. Tokens that end the answer do not advance it."""
        if not self._vocab.is_eog(token):
            self._matcher.consume_token(token)
            self._check()

    def likeliest(self, logits: NDArray[np.float32], top_k: int) -> Ids | None:
        """Return the likeliest allowed tokens, at least `top_k`, in the order of their ids.

        None if there may be too few among those that are tried: outside strings hardly any token is allowed. Within
        strings this is faster than a mask, and needs fewer states of the parser.
        """
        n_tried = top_k * _LIKELIEST
        if not 0 < n_tried < len(logits):
            return None
        tried = np.argpartition(-logits, n_tried)[:n_tried]
        tried = tried[np.argsort(-logits[tried], kind="stable")]
        allowed: list[int] = []
        end = time.thread_time() + TRYING_SECONDS
        for n, token in enumerate(tried.tolist(), 1):
            if self.allows(token):
                allowed.append(token)
            elif n > top_k and 2 * len(allowed) < n:
                return None
            if time.thread_time() > end:
                break
        return np.sort(np.array(allowed, np.int32)) if len(allowed) >= top_k else None

    def mask(self) -> Mask:
        """Return for each token of the vocabulary whether it is allowed. Raises InvalidRequest if a limit is exceeded.

        Other threads run meanwhile.
        """
        mask = self._index.mask(self._matcher, self._bits)
        self._check()
        return mask

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        why = _first_line(self._matcher)
        if "doesn't satisfy the grammar" in why:
            raise ServerFault(f"the grammar does not allow a token that it has allowed before: {why}")
        raise InvalidRequest(f"evaluating the grammar takes too long: it is too ambiguous or too large ({why})")
