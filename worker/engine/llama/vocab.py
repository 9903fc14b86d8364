"""The vocabulary of a loaded model: converts text to tokens and back. Thread-safe; does not need a context."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..messages import SpecialSpelling
from .llama import C, fast

_UNKNOWN_OR_CONTROL = 1 | 8  # llama_token_attr: rendered as empty text unless special tokens are requested
_USER_DEFINED = 16  # found by its spelling in any text, also where special tokens are not parsed
_STRIPS_LEFT, _STRIPS_RIGHT = 128, 256
_UNASKED = 2  # tables are filled when a token is first used: to query a large vocabulary would delay the start
_PIECE_BYTES = 64  # longer pieces are rare: the query is repeated with the length that llama.cpp returns


class Vocab:
    """Wraps the llama_vocab of a model. Valid until the model is freed."""

    def __init__(self, model: Any) -> None:
        self.pointer: int = C.llama_model_get_vocab(model)
        self.n_vocab: int = C.llama_vocab_n_tokens(self.pointer)
        self.type: int = C.llama_vocab_type(self.pointer)
        self.bos, self.eos, self.eot, self.sep, self.nl, self.pad = (
            int(token(self.pointer))
            for token in (
                C.llama_vocab_bos,
                C.llama_vocab_eos,
                C.llama_vocab_eot,
                C.llama_vocab_sep,
                C.llama_vocab_nl,
                C.llama_vocab_pad,
            )
        )  # -1: the vocabulary has no such token
        self.fim_pre, self.fim_suf, self.fim_mid, self.fim_pad, self.fim_rep, self.fim_sep = (
            int(token(self.pointer))
            for token in (
                C.llama_vocab_fim_pre,
                C.llama_vocab_fim_suf,
                C.llama_vocab_fim_mid,
                C.llama_vocab_fim_pad,
                C.llama_vocab_fim_rep,
                C.llama_vocab_fim_sep,
            )
        )
        self.add_bos: bool = C.llama_vocab_get_add_bos(self.pointer)
        self.add_eos: bool = C.llama_vocab_get_add_eos(self.pointer)
        self.add_sep: bool = C.llama_vocab_get_add_sep(self.pointer)
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self._plain: list[bytes | None] = [None] * self.n_vocab
        self._ends = bytearray([_UNASKED]) * self.n_vocab

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 4  # one token per byte, and those of add_special
        while True:
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n = C.llama_tokenize(self.pointer, data, len(data), pointer, room, add_special, parse_special)
            if n >= 0:
                result: list[int] = tokens[:n].tolist()
                return result
            room = -n

    def surrounded(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens with those that `add_special` adds before and after a text."""
        around = self.tokenize("", True)  # the tokens that it adds before and after a text
        n_before = 1 if self.add_bos or len(around) == 2 else 0  # BERT's tokenizer adds two, whatever the flags say
        return [*around[:n_before], *tokens, *around[n_before:]]

    def detokenize(self, tokens: Sequence[int], special: bool = True) -> str:
        """Return the text of tokens by llama_detokenize, without the leading space that some tokenizers add.

        Ids that do not exist are ignored.
        """
        known = [token for token in tokens if 0 <= token < self.n_vocab]
        if not known:
            return ""
        array = (ctypes.c_int32 * len(known))(*known)
        room = 8 * len(known) + 64
        while True:
            text = ctypes.create_string_buffer(room)
            n = C.llama_detokenize(self.pointer, array, len(known), text, room, False, special)
            if n >= 0:
                return text.raw[:n].decode("utf-8", "replace")
            room = -n

    def join(self, tokens: Iterable[int], special: bool = True) -> bytes:
        """Return the concatenated bytes of tokens."""
        piece = self.piece if special else self.plain_piece
        return b"".join(piece(token) for token in tokens)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token, also of special tokens; empty for an id that does not exist."""
        if not 0 <= token < self.n_vocab:
            return b""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._ask_piece(token)
        return known

    def plain_piece(self, token: int) -> bytes:
        """Return the bytes of a token; empty for control and unknown tokens."""
        known = self._plain[token]
        if known is None:
            hidden = fast.attributes(self.pointer, token) & _UNKNOWN_OR_CONTROL
            known = self._plain[token] = b"" if hidden else self.piece(token)
        return known

    def is_eog(self, token: int) -> bool:
        known = self._ends[token]
        if known == _UNASKED:
            known = self._ends[token] = int(fast.is_eog(self.pointer, token))
        return bool(known == 1)

    @cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        """All tokens that end a generation, which `ignore_eos` forbids. The first access queries every token."""
        is_eog, pointer = fast.is_eog, self.pointer
        return tuple([token for token in range(self.n_vocab) if is_eog(pointer, token)])

    @cached_property
    def special_spellings(self) -> tuple[SpecialSpelling, ...]:
        """The spellings that `parse_special` makes tokens. The first access queries every token: up to 0.2 s."""
        return tuple(map(self._spelling, self.hidden_tokens))

    @cached_property
    def hidden_tokens(self) -> tuple[int, ...]:
        """Control and unknown tokens, which are no part of an answer's text. The first access queries every token."""
        attributes, pointer = fast.attributes, self.pointer
        return tuple([token for token in range(self.n_vocab) if attributes(pointer, token) & _UNKNOWN_OR_CONTROL])

    def defined_spellings(self, text: str) -> list[SpecialSpelling]:
        """Return the spellings of the user-defined tokens in a text, which are found with and without parse_special."""
        tokens = dict.fromkeys(self.tokenize(text, False, True))
        return [self._spelling(token) for token in tokens if fast.attributes(self.pointer, token) & _USER_DEFINED]

    def _spelling(self, token: int) -> SpecialSpelling:
        attributes = fast.attributes(self.pointer, token)
        return SpecialSpelling(
            C.llama_vocab_get_text(self.pointer, token).decode("utf-8", "replace"),
            bool(attributes & _STRIPS_LEFT),
            bool(attributes & _STRIPS_RIGHT),
            bool(attributes & _USER_DEFINED),
        )

    @cached_property
    def suppressed_tokens(self) -> tuple[int, ...]:
        """Tokens that must never be sampled according to the model's metadata."""
        count = ctypes.c_int32(0)
        tokens = C.llama_vocab_get_suppress_tokens(self.pointer, ctypes.byref(count))
        return tuple(tokens[i] for i in range(count.value))

    @cached_property
    def byte_tokens(self) -> dict[int, int]:
        """Tokens that are a single byte, by that byte, without those that end a generation."""
        tokens: dict[int, int] = {}
        for token in range(self.n_vocab):
            piece = self.piece(token)
            if len(piece) == 1 and not self.is_eog(token):
                tokens.setdefault(piece[0], token)
        return tokens

    def contains(self, tokens: Sequence[int]) -> bool:
        return not tokens or (min(tokens) >= 0 and max(tokens) < self.n_vocab)

    def _ask_piece(self, token: int) -> bytes:
        room = _PIECE_BYTES
        while True:
            text = ctypes.create_string_buffer(room)
            n = fast.to_piece(self.pointer, token, text, room, 0, True)
            if n >= 0:
                return text.raw[:n]
            room = -n
