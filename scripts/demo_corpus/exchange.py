"""Defines the unit of the corpus, a question with its answer, and functions that vary the wording of a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Exchange:
    """A question with its answer. Questions with the same meaning have the same `topic`.

    `short` is the answer in one or two words, or empty.
    """

    topic: str
    question: str
    answer: str
    short: str = ""


Source = Callable[[Random], Exchange]

_POLITE = (
    "Please tell me: ",
    "Can you tell me: ",
    "Tell me, ",
    "Hey, ",
    "Hi! ",
    "Hello, ",
    "I have a question. ",
    "So, ",
)
_POLITE_END = (" Please.", " Thanks!", " Thank you.", " I want to know.")
_CONTRACTIONS = (
    ("What is", "What's"),
    ("Who is", "Who's"),
    ("Where is", "Where's"),
    ("do not", "don't"),
    ("I am", "I'm"),
)


def fill(random: Random, templates: Sequence[str], **values: object) -> str:
    return random.choice(templates).format(**values)


def vary(random: Random, question: str) -> str:
    """Return the question in another style: with a polite phrase, in lower case, or without its question mark."""
    for formal, casual in _CONTRACTIONS:
        if formal in question and random.random() < 0.3:
            question = question.replace(formal, casual)
    chance = random.random()
    if chance < 0.10:
        start = random.choice(_POLITE)
        question = start + (question if start.rstrip()[-1] in ".!" else question[0].lower() + question[1:])
    elif chance < 0.14:
        question += random.choice(_POLITE_END)
    if random.random() < 0.15:
        question = question.rstrip("?.!")
    if random.random() < 0.15:
        question = question[0].lower() + question[1:] if not question.startswith("I ") else question
    if random.random() < 0.06:
        question = question.lower()
    return question


_UNCOUNTED = {"rain", "snow", "music", "llama-corral", "context", "temperature", "grass"}
_UNIQUE = {"sun", "moon", "sky", "sea"}


def article(word: str) -> str:
    """Return the word with `a`, `an`, `the` or no article."""
    if word in _UNCOUNTED:
        return word
    if word in _UNIQUE:
        return f"the {word}"
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def listed(words: Sequence[object]) -> str:
    """Return the words as `a, b and c`."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
