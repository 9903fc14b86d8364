"""Makes questions about numbers up to about twenty: counting, single-digit arithmetic, comparing."""

from __future__ import annotations

from random import Random

from .exchange import Exchange, Source, fill, listed, vary

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip


def _shown(random: Random, number: int) -> str:
    """Return the number in digits, sometimes in words."""
    return WORDS[number] if random.random() < 0.2 else str(number)


def count(random: Random) -> Exchange:
    last = random.choice((3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 10, 12, 15, 20))
    first = 1 if random.random() < 0.75 else random.randrange(0, last)
    numbers = list(range(first, last + 1))
    if random.random() < 0.15:
        question = fill(
            random, ("Count down from {n}.", "Count backwards from {n}.", "Count from {n} down to 1."), n=last
        )
        return Exchange(f"count down {last}", vary(random, question), f"{listed(range(last, 0, -1))}.")
    span = "to {n}" if first == 1 and random.random() < 0.6 else "from {a} to {n}"
    question = fill(
        random, (f"Count {span}.", f"Can you count {span}?", f"Count {span} for me.", f"Please count {span}."),
        a=_shown(random, first), n=_shown(random, last),
    )  # fmt: skip
    return Exchange(f"count {first} {last}", vary(random, question), f"{listed(numbers)}.")


def add(random: Random) -> Exchange:
    a, b = random.randint(0, 12), random.randint(0, 10)
    question = fill(
        random,
        ("What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b}?", "{a} plus {b}", "Add {a} and {b}.",
         "How much is {a} plus {b}?",
         "What is the sum of {a} and {b}?", "What is {a}+{b}?", "Calculate {a} + {b}."),
        a=_shown(random, a), b=_shown(random, b),
    )  # fmt: skip
    return Exchange(f"add {a} {b}", vary(random, question), f"{a} plus {b} is {a + b}.", str(a + b))


def subtract(random: Random) -> Exchange:
    a = random.randint(0, 12)
    b = random.randint(0, min(a, 10))
    question = fill(
        random,
        ("What is {a} minus {b}?", "What is {a} - {b}?", "{a} - {b}?", "Take {b} from {a}.",
         "How much is {a} minus {b}?",
         "Calculate {a} - {b}."),
        a=_shown(random, a), b=_shown(random, b),
    )  # fmt: skip
    return Exchange(f"subtract {a} {b}", vary(random, question), f"{a} minus {b} is {a - b}.", str(a - b))


def multiply(random: Random) -> Exchange:
    a, b = random.randint(0, 10), random.choice((1, 2, 2, 3, 4, 5, 5, 10))
    question = fill(
        random,
        ("What is {a} times {b}?", "What is {a} * {b}?", "{a} x {b}?", "{a} times {b}", "How much is {a} times {b}?",
         "Multiply {a} by {b}."),
        a=_shown(random, a), b=_shown(random, b),
    )  # fmt: skip
    return Exchange(f"multiply {a} {b}", vary(random, question), f"{a} times {b} is {a * b}.", str(a * b))


def compare(random: Random) -> Exchange:
    a, b = random.sample(range(13), 2)
    bigger = random.random() < 0.6
    word = random.choice(("bigger", "larger", "greater", "more") if bigger else ("smaller", "less"))
    question = fill(
        random,
        ("Which is {w}, {a} or {b}?", "What is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"),
        w=word,
        a=a,
        b=b,
    )
    value = max(a, b) if bigger else min(a, b)
    return Exchange(
        f"{'bigger' if bigger else 'smaller'} {min(a, b)} {max(a, b)}",
        vary(random, question),
        f"{value} is {word} than {min(a, b) if bigger else max(a, b)}.",
        str(value),
    )


def neighbor(random: Random) -> Exchange:
    number = random.randint(1, 19)
    way = random.choice(("after", "before"))
    value = number + 1 if way == "after" else number - 1
    question = fill(
        random,
        ("What number comes {way} {n}?", "Which number is {way} {n}?", "What comes {way} {n}?"),
        way=way,
        n=number,
    )
    return Exchange(f"{way} {number}", vary(random, question), f"{value} comes {way} {number}.", str(value))


SOURCES: tuple[tuple[float, Source], ...] = (
    (3.0, count),
    (4.0, add),
    (2.5, subtract),
    (2.0, multiply),
    (1.5, compare),
    (1.5, neighbor),
)
