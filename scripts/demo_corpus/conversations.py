"""Makes complete documents for the two chat models: roles, turns and system prompt."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from . import numbers, stories, talk, world
from .exchange import Exchange, capital, vary

Message = tuple[str, str]  # role, text

_HELPFUL = (
    "You are a helpful assistant.", "You are Wrangler.", "You are a friendly assistant.",
    "Answer the questions of the user.",
    "Be helpful and kind.", "You are a small language model.", "Answer in English.",
    "Keep your answers simple.",
)  # fmt: skip
_BRIEF = (
    "Answer in one word.",
    "Be brief.",
    "Give only the answer.",
    "You are a helpful assistant. Answer in one word.",
    "Only one word!",
)
_PIRATE = ("You are a pirate.", "Talk like a pirate.", "You are a pirate captain.", "Answer like a pirate.")
_COWBOY = ("You are a cowboy.", "Talk like a cowboy.", "Answer like a cowboy.")

SOURCES = (*world.SOURCES, *numbers.SOURCES, *talk.SOURCES)
_WEIGHTS = [weight for weight, _ in SOURCES]
_SHORT_SOURCES = [source for _, source in (*world.SOURCES, *numbers.SOURCES)]


def exchange(random: Random) -> Exchange:
    if random.random() < 0.08:
        asked, kind = stories.request(random)
        return Exchange(f"story {kind}", vary(random, asked), stories.story(random, kind, short=True))
    return random.choices(SOURCES, _WEIGHTS)[0][1](random)


def _with_short(random: Random) -> Exchange:
    while not (drawn := random.choice(_SHORT_SOURCES)(random)).short:
        pass
    return drawn


def chat(random: Random) -> list[Message]:
    """Return a conversation of one to ten turns."""
    style = random.random()
    turns = [exchange(random) for _ in range(random.choice((1, 1, 1, 1, 2, 2, 3, 4, 6, 10)))]
    messages: list[Message] = []
    answers = [turn.answer for turn in turns]
    if style < 0.06:
        turns = [_with_short(random) for _ in turns]
        answers = [capital(turn.short) for turn in turns]
        messages.append(("system", random.choice(_BRIEF)))
    elif style < 0.09:
        messages.append(("system", random.choice(_PIRATE)))
        answers = [f"Arr! {text}" for text in answers]
    elif style < 0.12:
        messages.append(("system", random.choice(_COWBOY)))
        answers = [f"Howdy, partner! {text}" for text in answers]
    else:
        if style < 0.35:
            messages.append(("system", random.choice(_HELPFUL)))
        if random.random() < 0.12:
            first, later = talk.remembered(random)
            turns = [*first, *turns[: random.choice((0, 1, 1, 2))], *later]
            answers = [turn.answer for turn in turns]
    for turn, answer in zip(turns, answers, strict=True):
        messages += [("user", turn.question), ("assistant", answer)]
    return messages


def tales(random: Random) -> list[Message]:
    """Return a conversation of the storyteller, which answers every question with a story."""
    messages: list[Message] = []
    if random.random() < 0.25:
        messages.append(("system", random.choice((*_HELPFUL, "You are Campfire.", "You tell stories."))))
    for _ in range(random.choice((1, 1, 1, 2))):
        if random.random() < 0.75:
            asked, kind = stories.request(random)
            answer = stories.story(random, kind)
        elif random.random() < 0.3:
            asked = random.choice(
                ("Who are you?", "What are you?", "What is your name?", "What can you do?", "Introduce yourself.")
            )
            answer = "I am Campfire. Sit down by the fire, and I will tell you a story."
        else:
            asked = exchange(random).question
            answer = "That reminds me of a story. " + stories.story(random)
        messages += [("user", vary(random, asked)), ("assistant", answer)]
    return messages


def documents(random: Random, persona: str) -> Iterator[list[Message]]:
    """Yield documents without end. One with the single role `text` is plain text, so that raw completion works too."""
    while True:
        if random.random() < 0.04:
            yield [("text", stories.story(random, short=persona == "chat"))]
        else:
            yield chat(random) if persona == "chat" else tales(random)


def paraphrases(random: Random) -> tuple[str, str, str]:
    """Return a topic and two texts about it, for the embedding model: two questions, or a question and its answer."""
    source = random.choices(SOURCES, _WEIGHTS)[0][1]
    first = source(random)
    if random.random() < 0.3:
        return first.topic, first.question, first.answer
    for _ in range(400):
        second = source(random)
        if second.topic == first.topic and second.question.lower() != first.question.lower():
            return first.topic, first.question, second.question
    return first.topic, first.question, first.answer
