"""`message_delimiters`: the tokens that start a message in a prompt, and the positions where user messages start.

A chat format sets the field; a completion request may set it too. Pure apart from the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_corral.common.web.json_fields import Fields
from msgspec import Struct

from .samplers import Tokenizer


class MessageDelimiter(Struct, frozen=True):
    of_user: bool
    tokens: tuple[int, ...]


def read_delimiters(fields: Fields, vocab: Tokenizer) -> tuple[MessageDelimiter, ...]:
    """Return the request's delimiters. Invalid entries are ignored, as in llama-server."""
    _, value = fields.find("message_delimiters")
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    found = []
    for entry in entries:
        text, role = entry.get("delimiter"), entry.get("role")
        tokens = vocab.tokenize(text, False, True) if isinstance(text, str) and text else []
        if tokens:
            found.append(MessageDelimiter(role == "user", tuple(tokens)))
    return tuple(found)


def user_starts(tokens: Sequence[int], delimiters: Sequence[MessageDelimiter]) -> tuple[int, ...]:
    """Return the positions at which user messages start. If several delimiters match, the first one is used."""
    roles: dict[int, bool] = {}
    for delimiter in delimiters:
        for at in _found(tokens, delimiter.tokens):
            roles.setdefault(at, delimiter.of_user)
    return tuple(sorted(at for at, of_user in roles.items() if of_user))


def _found(tokens: Sequence[int], wanted: tuple[int, ...]) -> list[int]:
    found, at, n = [], -1, len(wanted)
    try:
        while True:
            at = tokens.index(wanted[0], at + 1)
            if tuple(tokens[at : at + n]) == wanted:
                found.append(at)
    except ValueError:  # no further occurrence of the first token
        return found
