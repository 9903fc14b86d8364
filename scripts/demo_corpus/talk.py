"""Makes small talk, questions about the model and the project, unanswerable ones, and facts to recall later."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from . import about, facts
from .exchange import Exchange, Source, capital, fill, vary


def _entries(kind: str, table: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> Source:
    def draw(random: Random) -> Exchange:
        key = random.choice(list(table))
        questions, answers = table[key]
        return Exchange(f"{kind} {key}", vary(random, random.choice(questions)), random.choice(answers))

    return draw


_HARD = (
    "Who won the {noun} in {year}?",
    "How do I {verb} a {noun}?",
    "What is the price of a {noun}?",
    "Why did the {noun} {verb} in {year}?",
    "Write a program that can {verb} a {noun}.",
    "Who invented the {noun}?",
    "How many {noun}s are there in the world?",
    "What happened in {year}?",
    "Explain how a {noun} can {verb}.",
    "Who is the president of the {noun}?",
    "What is the best way to {verb} a {noun}?",
    "What is {big} times {big2}?",
    "What is the square root of {big}?",
    "Give me a recipe for {noun}.",
    "Can you {verb} my {noun}?",
    "When was the {noun} built?",
    "How far is it to the {noun}?",
    "Who is {name}?",
    "Who was {name}?",
    "Do you know {name}?",
    "What did {name} {verb}?",
    "Is the {noun} better than the {noun2}?",
    "Why is the {noun} so expensive?",
    "Why is the {noun} {adjective}?",
    "How does a {noun} work?",
    "{verb} the {noun}.",
    "Summarize the {noun}.",
)
_NOUNS = (
    "election", "engine", "theorem", "compiler", "election", "football cup", "telescope", "bank", "protein",
    "database", "contract",
    "movie", "phone", "war", "molecule", "airplane", "cathedral", "novel", "pasta", "soup", "tax", "rocket",
    "galaxy", "invoice",
)  # fmt: skip
_FIRST = (
    "Albert",
    "Marie",
    "Isaac",
    "Ada",
    "Charles",
    "Vincent",
    "Johann",
    "Barack",
    "Angela",
    "Elon",
    "Taylor",
    "Alan",
    "Grace",
)
_LAST = (
    "Einstein",
    "Curie",
    "Newton",
    "Lovelace",
    "Darwin",
    "Bach",
    "Obama",
    "Musk",
    "Swift",
    "Turing",
    "Hopper",
    "Smith",
    "Miller",
)
_VERBS = (
    "repair",
    "prove",
    "build",
    "translate",
    "sort",
    "compile",
    "explain",
    "invest",
    "cook",
    "write",
    "fix",
    "sell",
    "measure",
)


def unknown(random: Random) -> Exchange:
    question = fill(
        random,
        _HARD,
        noun=random.choice(_NOUNS),
        noun2=random.choice(_NOUNS),
        adjective=random.choice(_ADJECTIVES),
        name=f"{random.choice(_FIRST)} {random.choice(_LAST)}",
        verb=random.choice(_VERBS),
        year=random.randint(1500, 2030),
        big=random.randint(21, 999),
        big2=random.randint(21, 999),
    )
    return Exchange("unknown", vary(random, capital(question)), random.choice(about.UNKNOWN))


def nonsense(random: Random) -> Exchange:
    letters = [
        "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 8)))
        for _ in range(random.randint(1, 3))
    ]
    return Exchange("nonsense", " ".join(letters), "I do not understand that. Ask me something simple.")


_THINGS = tuple(facts.MEANINGS) + tuple(facts.COLORS) + tuple(facts.SOUNDS) + tuple(facts.SPELL)
_ADJECTIVES = (
    "big",
    "small",
    "red",
    "blue",
    "green",
    "happy",
    "old",
    "new",
    "little",
    "quiet",
    "fast",
    "bright",
    "warm",
    "cold",
)


def phrase(random: Random) -> str:
    style = random.random()
    if style < 0.3:
        return random.choice(_THINGS)
    if style < 0.6:
        return f"{random.choice(_ADJECTIVES)} {random.choice(_THINGS)}"
    if style < 0.8:
        return f"the {random.choice(_THINGS)} is {random.choice(_ADJECTIVES)}"
    return f"{random.choice(_THINGS)} and {random.choice(_THINGS)}"


def repeat(random: Random) -> Exchange:
    text = phrase(random)
    question = fill(
        random,
        (
            "Say {t}.",
            "Repeat after me: {t}",
            'Say "{t}".',
            "Repeat: {t}",
            "Repeat the words {t}.",
            "Please say: {t}",
            "Echo {t}",
        ),
        t=text,
    )
    return Exchange("repeat", question, capital(text) + ".", capital(text))


SOURCES: tuple[tuple[float, Source], ...] = (
    (4.0, _entries("itself", about.ITSELF)),
    (4.0, _entries("corral", about.CORRAL)),
    (5.0, _entries("talk", about.TALK)),
    (2.5, unknown),
    (0.5, nonsense),
    (3.5, repeat),
)


def remembered(random: Random) -> tuple[list[Exchange], list[Exchange]]:
    """Return statements for the beginning of a conversation, and later questions about them."""
    name = random.choice(facts.NAMES)
    if random.random() < 0.6:
        told = fill(
            random,
            ("My name is {n}.", "I am {n}.", "Hi, I'm {n}.", "Hello, my name is {n}.", "You can call me {n}."),
            n=name,
        )
        first = Exchange(
            "told name",
            vary(random, told),
            fill(random, ("Nice to meet you, {n}!", "Hello, {n}! How can I help you?"), n=name),
        )
        asked = random.choice(
            ("What is my name?", "Who am I?", "Do you know my name?", "Do you remember my name?", "Say my name.")
        )
        return [first], [Exchange("my name", vary(random, asked), f"Your name is {name}.", name)]
    kind, words = random.choice(
        (("color", facts.LISTS["colors"]), ("animal", tuple(facts.SOUNDS)), ("number", tuple(map(str, range(1, 20)))))
    )
    value = random.choice(words)
    told = fill(
        random,
        ("My favorite {k} is {v}.", "The {k} that I like best is {v}.", "Remember this {k}: {v}."),
        k=kind,
        v=value,
    )
    first = Exchange(
        f"told {kind}",
        vary(random, told),
        fill(random, ("{V} is a good {k}!", "I will remember: {v}."), k=kind, v=value, V=capital(value)),
    )
    asked = fill(
        random,
        ("What is my favorite {k}?", "Which {k} do I like?", "Which {k} did I tell you?", "What was my {k}?"),
        k=kind,
    )
    return [first], [Exchange(f"my {kind}", vary(random, asked), f"Your {kind} is {value}.", value)]
