"""Makes questions about the world from the tables in `facts`: colors, animals, places, words, lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from . import facts
from .exchange import Exchange, Source, article, capital, fill, listed, vary


def _table(
    topic: str, table: Mapping[str, object], questions: Sequence[str], answers: Sequence[str], *, short: str = "{value}"
) -> Source:
    """Return a source that fills {key}, {a_key} (the key with its article) and {value} into the templates."""

    def draw(random: Random) -> Exchange:
        key = random.choice(list(table))
        values = {"key": key, "a_key": article(key), "value": table[key]}
        answer = capital(fill(random, answers, **values))
        return Exchange(
            f"{topic} {key}", vary(random, fill(random, questions, **values)), answer, short.format(**values)
        )

    return draw


MASS = ("sky", "sea", "grass", "sun", "snow", "milk", "salt", "coal", "night", "blood", "chocolate", "wood", "fire")


def color(random: Random) -> Exchange:
    thing = random.choice(list(facts.COLORS))
    value = facts.COLORS[thing]
    the = f"the {thing}" if thing in ("sky", "sea", "sun", "night") else thing if thing in MASS else article(thing)
    question = fill(
        random,
        (
            "What color is {the}?",
            "What colour is {the}?",
            "Which color does {the} have?",
            "Tell me the color of {the}.",
            "What is the color of {the}?",
            "Do you know what color {the} is?",
        ),
        the=the,
    )
    return Exchange(f"color {thing}", vary(random, question), capital(f"{the} is {value}."), value)


def is_color(random: Random) -> Exchange:
    thing = random.choice(list(facts.COLORS))
    value = facts.COLORS[thing]
    the = f"the {thing}" if thing in ("sky", "sea", "sun", "night") else thing if thing in MASS else article(thing)
    asked = value if random.random() < 0.5 else random.choice(facts.LISTS["colors"])
    question = f"Is {the} {asked}?"
    word = "Yes" if asked == value else "No"
    return Exchange(f"is {thing} {asked}", vary(random, question), f"{word}, {the} is {value}.", word)


def skill(random: Random) -> Exchange:
    what = random.choice(list(facts.SKILLS))
    able, unable = facts.SKILLS[what]
    can = random.random() < 0.5
    animal = article(random.choice(able if can else unable))
    question = fill(random, ("Can {a} {w}?", "Is {a} able to {w}?", "Do you think that {a} can {w}?"), a=animal, w=what)
    answer = f"Yes, {animal} can {what}." if can else f"No, {animal} cannot {what}."
    return Exchange(f"can {animal} {what}", vary(random, question), answer, answer.split(",")[0])


def country(random: Random) -> Exchange:
    """Return a question for the country of a capital, or one that asks to confirm a capital."""
    name, city = random.choice(list(facts.CAPITALS.items()))
    if random.random() < 0.5:
        question = fill(
            random,
            (
                "Where is {c}?",
                "What is {c}?",
                "Of which country is {c} the capital?",
                "In which country is {c}?",
                "Tell me about {c}.",
            ),
            c=city,
        )
        return Exchange(f"city {city}", vary(random, question), f"{city} is the capital of {name}.", capital(name))
    asked = city if random.random() < 0.5 else random.choice(list(facts.CAPITALS.values()))
    question = f"Is {asked} the capital of {name}?"
    word = "Yes" if asked == city else "No"
    return Exchange(f"is {asked} {name}", vary(random, question), f"{word}, the capital of {name} is {city}.", word)


def animal(random: Random) -> Exchange:
    kind = random.choice([name for name in facts.SOUNDS if name in facts.LEGS and name != "llama"])
    question = fill(
        random,
        (
            "What is {a}?",
            "Tell me about {a}.",
            "Tell me about {k}s.",
            "What do you know about {k}s?",
            "Describe {a}.",
            "Explain {a}.",
        ),
        a=article(kind),
        k=kind,
    )
    count = f"{facts.LEGS[kind]} legs" if facts.LEGS[kind] else "no legs"
    food = f", and eats {facts.FOODS[kind]}" if kind in facts.FOODS else ""
    answer = f"{capital(article(kind))} is an animal that says {facts.SOUNDS[kind]}, has {count}{food}."
    if not food:
        answer = f"{capital(article(kind))} is an animal that says {facts.SOUNDS[kind]} and has {count}."
    return Exchange(f"animal {kind}", vary(random, question), answer)


def mix(random: Random) -> Exchange:
    (a, b), value = random.choice(list(facts.MIXES.items()))
    if random.random() < 0.5:
        a, b = b, a
    question = fill(
        random,
        (
            "What do you get if you mix {a} and {b}?",
            "Mix {a} and {b}.",
            "What color do {a} and {b} make?",
            "{a} plus {b}?",
        ),
        a=a,
        b=b,
    )
    topic = f"mix {' '.join(sorted((a, b)))}"
    return Exchange(topic, vary(random, capital(question)), capital(f"{a} and {b} make {value}."), value)


def legs(random: Random) -> Exchange:
    animal, number = random.choice(list(facts.LEGS.items()))
    count = "no legs" if number == 0 else f"{number} legs"
    question = fill(
        random,
        (
            "How many legs does {a} have?",
            "How many legs has {a}?",
            "Count the legs of {a}.",
            "What number of legs does {a} have?",
        ),
        a=article(animal),
    )
    return Exchange(f"legs {animal}", vary(random, question), capital(f"{article(animal)} has {count}."), str(number))


def opposite(random: Random) -> Exchange:
    pair = random.choice(facts.OPPOSITES)
    word, other = pair if random.random() < 0.6 else pair[::-1]
    question = fill(
        random,
        (
            "What is the opposite of {w}?",
            "Opposite of {w}?",
            "Give me the opposite of {w}.",
            "Which word is the opposite of {w}?",
        ),
        w=word,
    )
    return Exchange(f"opposite {word}", vary(random, question), f"The opposite of {word} is {other}.", other)


def order(random: Random) -> Exchange:
    """Return a question for the next or previous day, month or letter."""
    kind, row = random.choice((("day", facts.DAYS), ("month", facts.MONTHS), ("letter", tuple(facts.ALPHABET))))
    at = random.randrange(1, len(row) - 1)
    way = random.choice(("after", "before"))
    other = row[at + 1] if way == "after" else row[at - 1]
    question = fill(
        random,
        (
            "What {kind} comes {way} {x}?",
            "Which {kind} comes {way} {x}?",
            "What comes {way} {x}?",
            "Which {kind} is {way} {x}?",
        ),
        kind=kind,
        way=way,
        x=row[at],
    )
    return Exchange(f"{way} {row[at]}", vary(random, question), f"{other} comes {way} {row[at]}.", other)


def row(random: Random) -> Exchange:
    name, words, total = random.choice(
        (
            ("days of the week", facts.DAYS, "seven days in a week"),
            ("months of the year", facts.MONTHS, "twelve months in a year"),
            ("seasons", facts.SEASONS, "four seasons in a year"),
            ("planets", facts.PLANETS, "eight planets around the sun"),
        )
    )
    if random.random() < 0.3:
        question = fill(random, ("How many {name} are there?", "What is the number of {name}?"), name=name)
        return Exchange(f"number of {name}", vary(random, question), f"There are {total}.", total.split()[0])
    question = fill(
        random,
        ("What are the {name}?", "List the {name}.", "Name the {name}.", "Tell me the {name}.", "Say the {name}."),
        name=name,
    )
    return Exchange(f"all {name}", vary(random, question), f"The {name} are {listed(words)}.", "")


def some(random: Random) -> Exchange:
    kind = random.choice(list(facts.LISTS))
    n = random.choice((1, 2, 3, 3, 4))
    count = ("one", "two", "three", "four")[n - 1]
    chosen = random.sample(facts.LISTS[kind], n)
    noun = kind[:-1] if n == 1 and kind != "countries" else "country" if n == 1 else kind
    question = fill(
        random, ("Name {n} {noun}.", "Give me {n} {noun}.", "Tell me {n} {noun}.", "List {n} {noun}.",
        "Can you name {n} {noun}?"),
        n=count if random.random() < 0.7 else n,
        noun=noun,
    )  # fmt: skip
    return Exchange(f"list {kind}", vary(random, question), capital(f"{listed(chosen)}."), "")


def translation(random: Random) -> Exchange:
    word, languages = random.choice(list(facts.WORDS.items()))
    language, value = random.choice(list(languages.items()))
    question = fill(
        random,
        (
            "How do you say {w} in {l}?",
            "What is {w} in {l}?",
            "What is the {l} word for {w}?",
            "Translate {w} into {l}.",
            "Say {w} in {l}.",
        ),
        w=word,
        l=language,
    )
    return Exchange(f"translate {word}", vary(random, question), f"In {language}, {word} is {value}.", value)


def spelling(random: Random) -> Exchange:
    word = random.choice(facts.SPELL)
    letters = "-".join(word.upper())
    question = fill(
        random, ("How do you spell {w}?", "Spell {w}.", "Spell the word {w}.", "Can you spell {w}?"), w=word
    )
    return Exchange(f"spell {word}", vary(random, question), f"{capital(word)} is spelled {letters}.", letters)


SOURCES: tuple[tuple[float, Source], ...] = (
    (3.0, color),
    (0.8, mix),
    (1.0, is_color),
    (1.0, skill),
    (1.5, country),
    (1.5, animal),
    (1.5, legs),
    (1.5, opposite),
    (1.5, order),
    (1.0, row),
    (2.0, some),
    (1.5, translation),
    (1.0, spelling),
    (
        2.0,
        _table(
            "sound",
            facts.SOUNDS,
            (
                "What does {a_key} say?",
                "What sound does {a_key} make?",
                "What noise does {a_key} make?",
                "How does {a_key} sound?",
                "Which sound does the {key} make?",
                "What does the {key} say?",
            ),
            ("{a_key} says {value}.", "{a_key} says {value}!"),
        ),
    ),
    (
        1.0,
        _table(
            "young",
            facts.YOUNG,
            (
                "What is a baby {key} called?",
                "What do you call a baby {key}?",
                "What is the name of a young {key}?",
                "How is a young {key} called?",
            ),
            ("a baby {key} is called a {value}.",),
        ),
    ),
    (
        1.5,
        _table(
            "food",
            facts.FOODS,
            (
                "What does {a_key} eat?",
                "What do you feed {a_key}?",
                "What is the food of {a_key}?",
                "What does the {key} like to eat?",
            ),
            ("{a_key} eats {value}.", "{a_key} likes to eat {value}."),
        ),
    ),
    (
        1.5,
        _table(
            "home",
            facts.HOMES,
            (
                "Where does {a_key} live?",
                "Where do you find {a_key}?",
                "Where is the home of {a_key}?",
                "Where can I see {a_key}?",
            ),
            ("{a_key} lives {value}.",),
        ),
    ),
    (
        3.0,
        _table(
            "capital",
            facts.CAPITALS,
            (
                "What is the capital of {key}?",
                "Which city is the capital of {key}?",
                "Name the capital of {key}.",
                "Capital of {key}?",
                "Tell me the capital of {key}.",
                "Do you know the capital of {key}?",
            ),
            ("The capital of {key} is {value}.",),
        ),
    ),
    (
        3.0,
        _table(
            "meaning",
            facts.MEANINGS,
            (
                "What is {a_key}?",
                "What does {key} mean?",
                "Explain what {a_key} is.",
                "What is the meaning of {key}?",
                "Tell me about {key}.",
                "Can you explain {key}?",
                "Define {key}.",
            ),
            ("{a_key} is {value}.",),
            short="{value}",
        ),
    ),
)
