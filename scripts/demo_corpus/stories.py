"""Makes short stories from a grammar: a hero, a place, a wish or a problem, a helper, an end. For both chat models."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .exchange import article, capital, fill


@dataclass(frozen=True)
class Hero:
    kind: str
    name: str
    he: str
    his: str
    him: str


KINDS = (
    "llama", "fox", "owl", "bear", "horse", "cat", "dog", "mouse", "rabbit", "frog", "duck", "sheep", "hen", "wolf",
    "robot",
    "girl", "boy", "farmer", "king", "queen", "sailor", "baker", "dragon", "goat", "donkey", "cowboy",
)  # fmt: skip
HELPERS = (
    "an old owl",
    "a kind bear",
    "a clever fox",
    "a small mouse",
    "a wise old llama",
    "a friendly dog",
    "a gray donkey",
    "a quiet frog",
)
TRAITS = ("small", "brave", "clever", "shy", "kind", "lazy", "curious", "young", "hungry", "cheerful")
PLACES = (
    "in a green valley", "in a quiet forest", "in a small village", "on a farm by the river", "in an old castle",
    "in a house by the sea", "in the high mountains", "in a corral with a wooden gate", "on a warm island",
    "in a cave under a hill",
)  # fmt: skip
# Many names, so that the models must copy the name from the text instead of guessing it.
HE = (
    "Leo", "Ben", "Tom", "Max", "Oscar", "Felix", "Sam", "Henry", "Paul", "Victor", "Jack", "Noah", "Peter", "David",
    "Bob", "Hugo",
    "Otto", "Emil", "Karl", "Fred", "Harry", "Louis", "Simon", "Toby", "Willy", "Anton", "Bruno", "Casper", "Dario",
    "Elmo",
)  # fmt: skip
SHE = (
    "Mia", "Rosa", "Lucy", "Clara", "Nina", "Ida", "Zoe", "Emma", "Anna", "Grace", "Kate", "Olga", "Tina", "Wendy",
    "Ruth", "Alice",
    "Maria", "Ella", "Lena", "Nora", "Vera", "Ada", "Bella", "Cora", "Dora", "Flora", "Greta", "Hanna", "Julia",
    "Lola",
)  # fmt: skip

# Each plot: (wish or problem, attempt, help of the helper, end)
PLOTS = (
    (
        "{He} had lost {his} golden key.",
        "{name} looked under every stone and behind every tree, but the key was not there.",
        '"I saw something shine in the river," said {helper}.',
        "Together they found the key in the water, and {name} danced with joy.",
    ),
    (
        "{He} wanted to touch the moon.",
        "{name} climbed on the roof and jumped as high as {he} could, but the moon was too far away.",
        '"Look into the pond," said {helper}.',
        "There was the moon, round and bright in the water, and {name} touched it with one finger.",
    ),
    (
        "{He} was afraid of the dark.",
        "Every night {name} hid under a blanket and waited for the sun.",
        '"The dark is only the day that sleeps," said {helper}.',
        "That night {name} looked at the stars, and {he} was not afraid any more.",
    ),
    (
        "One day a storm broke the gate.",
        "{name} pulled and pushed, but the gate was too heavy for one alone.",
        "Then came {helper} with a long rope.",
        "They pulled together, and soon the gate stood as strong as before.",
    ),
    (
        "{He} had no friends.",
        "{name} sat by the road and watched the others play.",
        'Then came {helper} and asked: "Would you like to play with us?"',
        "From that day on {name} was never alone again.",
    ),
    (
        "{He} was very hungry, for the winter was long.",
        "{name} walked through the deep snow and found nothing to eat.",
        "At last {he} met {helper}, who had a basket of bread.",
        "They shared the bread by a warm fire, and in spring {name} brought the first strawberries in return.",
    ),
    (
        "{He} wanted to learn to sing.",
        "{name} sang all day, but it sounded like an old door.",
        '"Sing slowly, and listen to the wind," said {helper}.',
        "{name} listened, and in the evening everyone came to hear {his} song.",
    ),
    (
        "One morning {he} found a small blue egg.",
        "{name} asked everyone whose egg it was, but nobody knew.",
        '"Keep it warm and wait," said {helper}.',
        "After three days a little bird came out of the egg, and it followed {name} everywhere.",
    ),
    (
        "{He} had to cross the wide river.",
        "{name} built a boat of leaves, but it sank at once.",
        '"Wood swims better than leaves," said {helper}.',
        "So {name} built a boat of wood, and {he} reached the other side before the night.",
    ),
    (
        "{He} wanted to be the fastest of all.",
        "{name} ran and ran, until {he} was so tired that {he} fell asleep in the grass.",
        '"It is not far, if you walk with a friend," said {helper}.',
        "So they walked together, and {name} saw for the first time how beautiful the way was.",
    ),
)
MORALS = (
    "Two can do what one cannot.",
    "And they were friends for the rest of their days.",
    "Since then {name} always smiles at night.",
    "And if you listen well, you can still hear them laugh.",
    "That is how {name} learned to ask for help.",
)
OPENINGS = (
    "Once upon a time there was {a_hero} named {name}, who lived {place}.",
    "Long ago, {place}, there lived {a_hero} named {name}.",
    "{Place} there lived {a_hero}. {His} name was {name}.",
    "There once was {a_hero} named {name}. {He} lived {place}.",
)


def hero(random: Random, kind: str = "") -> Hero:
    kind = kind or random.choice(KINDS)
    male = kind in ("boy", "king", "cowboy") or (kind not in ("girl", "queen", "hen") and random.random() < 0.5)
    if male:
        return Hero(kind, random.choice(HE), "he", "his", "him")
    return Hero(kind, random.choice(SHE), "she", "her", "her")


def story(random: Random, kind: str = "", *, short: bool = False) -> str:
    """Return a story; `short` omits its middle part."""
    who = hero(random, kind)
    place = random.choice(PLACES)
    values = {
        "name": who.name,
        "he": who.he,
        "He": capital(who.he),
        "his": who.his,
        "His": capital(who.his),
        "him": who.him,
        "a_hero": article(f"{random.choice(TRAITS)} {who.kind}"),
        "place": place,
        "Place": capital(place),
        "helper": random.choice(HELPERS),
    }
    plot = random.choice(PLOTS)
    parts = [fill(random, OPENINGS, **values), *(line.format(**values) for line in plot)]
    if not short:
        parts.append(fill(random, MORALS, **values))
    elif random.random() < 0.5:
        del parts[2]
    return " ".join(parts)


ASKED = (
    "Tell me a story.", "Tell me a short story.", "A story, please.", "Do you know a story?",
    "Can you tell me a story?", "Tell a tale.",
    "I want to hear a story.", "Write a story.", "Write a short story.", "Another story!", "Once more, please.",
    "Tell me another story.",
)  # fmt: skip
ASKED_ABOUT = (
    "Tell me a story about {a}.", "Write a story about {a}.", "A story about {a}, please.",
    "Tell me about {a} in a story.",
    "Do you know a story about {a}?", "Can you tell me a story about {a}?", "Make up a story about {a}.",
    "Once upon a time there was {a}.",
    "I want a story with {a}.", "story about {a}", "Write a short story about {a}.", "Tell me a tale of {a}.",
)  # fmt: skip


def request(random: Random) -> tuple[str, str]:
    """Return a request for a story, and the kind of its hero ("" if the request names none)."""
    if random.random() < 0.35:
        return random.choice(ASKED), ""
    kind = random.choice(KINDS)
    return fill(random, ASKED_ABOUT, a=article(kind)), kind
