"""Tables of simple facts for the chat model."""

from __future__ import annotations

COLORS = {
    "sky": "blue", "sea": "blue", "grass": "green", "frog": "green", "leaf": "green", "sun": "yellow",
    "banana": "yellow",
    "lemon": "yellow", "snow": "white", "milk": "white", "salt": "white", "coal": "black", "night": "black",
    "raven": "black",
    "strawberry": "red", "tomato": "red", "blood": "red", "rose": "red", "carrot": "orange", "pumpkin": "orange",
    "elephant": "gray", "mouse": "gray", "chocolate": "brown", "bear": "brown", "wood": "brown", "flamingo": "pink",
    "pig": "pink", "plum": "purple", "violet": "purple", "cloud": "white", "fire": "orange", "cucumber": "green",
}  # fmt: skip

MIXES = {
    ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("red", "white"): "pink",
    ("black", "white"): "gray", ("red", "green"): "brown",
}  # fmt: skip

SOUNDS = {
    "cow": "moo", "cat": "meow", "dog": "woof", "sheep": "baa", "duck": "quack", "pig": "oink", "lion": "roar",
    "frog": "ribbit",
    "owl": "hoot", "bee": "buzz", "horse": "neigh", "rooster": "cock-a-doodle-doo", "mouse": "squeak",
    "snake": "hiss",
    "wolf": "howl", "donkey": "hee-haw", "crow": "caw", "llama": "hum", "turkey": "gobble", "hen": "cluck",
}  # fmt: skip

LEGS = {
    "cat": 4, "dog": 4, "cow": 4, "horse": 4, "llama": 4, "sheep": 4, "pig": 4, "lion": 4, "elephant": 4, "mouse": 4,
    "frog": 4,
    "bird": 2, "duck": 2, "hen": 2, "owl": 2, "human": 2, "bee": 6, "ant": 6, "fly": 6, "beetle": 6, "spider": 8,
    "octopus": 8,
    "snake": 0, "fish": 0, "worm": 0, "whale": 0,
}  # fmt: skip

YOUNG = {
    "cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "sheep": "lamb", "pig": "piglet",
    "duck": "duckling",
    "hen": "chick", "lion": "cub", "bear": "cub", "frog": "tadpole", "llama": "cria", "goat": "kid", "swan": "cygnet",
    "kangaroo": "joey", "owl": "owlet", "goose": "gosling", "deer": "fawn", "wolf": "pup", "human": "baby",
}  # fmt: skip

FOODS = {
    "cow": "grass", "horse": "hay and grass", "llama": "grass and hay", "cat": "fish and meat", "dog": "meat",
    "rabbit": "carrots and grass",
    "panda": "bamboo", "bee": "nectar", "monkey": "fruit", "squirrel": "nuts", "lion": "meat",
    "bird": "seeds and worms",
    "mouse": "cheese and seeds", "koala": "leaves", "frog": "flies", "sheep": "grass", "bear": "honey and fish",
    "owl": "mice",
}  # fmt: skip

SKILLS = {
    "fly": (("bird", "bee", "owl", "duck", "bat", "crow", "fly"), ("cat", "dog", "cow", "llama", "horse", "fish",
    "pig", "mouse")),
    "swim": (("fish", "duck", "whale", "frog", "penguin", "swan"), ("hen", "bee", "ant", "spider", "crow", "cat")),
    "jump": (("frog", "kangaroo", "cat", "rabbit", "horse"), ("snake", "worm", "fish", "whale")),
    "sing": (("bird", "robin", "sparrow", "human"), ("fish", "worm", "snail", "stone")),
    "talk": (("human", "parrot"), ("stone", "fish", "tree", "cow", "worm")),
}  # fmt: skip

HOMES = {
    "llama": "in the mountains of South America", "camel": "in the desert", "penguin": "in the cold south",
    "polar bear": "in the Arctic",
    "fish": "in the water", "whale": "in the sea", "bee": "in a hive", "bird": "in a nest", "lion": "in the savanna",
    "monkey": "in the jungle", "kangaroo": "in Australia", "rabbit": "in a burrow", "spider": "in a web",
    "cow": "on a farm",
    "fox": "in the forest", "frog": "near a pond", "panda": "in China", "horse": "in a stable", "owl": "in a tree",
    "bat": "in a cave",
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin", "Greece": "Athens", "Poland": "Warsaw", "Austria": "Vienna", "Switzerland": "Bern",
    "Sweden": "Stockholm",
    "Norway": "Oslo", "Denmark": "Copenhagen", "Finland": "Helsinki", "Belgium": "Brussels", "Hungary": "Budapest",
    "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima",
    "Chile": "Santiago",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Russia": "Moscow", "Turkey": "Ankara",
    "Iceland": "Reykjavik",
    "Ukraine": "Kyiv", "Bolivia": "Sucre", "Australia": "Canberra", "the United States": "Washington",
    "Brazil": "Brasilia",
}  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("left", "right"), ("day", "night"),
     ("happy", "sad"),
    ("old", "young"), ("light", "dark"), ("open", "closed"), ("full", "empty"), ("hard", "soft"), ("wet", "dry"),
     ("good", "bad"),
    ("rich", "poor"), ("loud", "quiet"), ("early", "late"), ("strong", "weak"), ("true", "false"), ("high", "low"),
    ("black", "white"), ("long", "short"), ("clean", "dirty"), ("near", "far"), ("start", "end"), ("yes", "no"),
     ("awake", "asleep"),
)  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SEASONS = ("spring", "summer", "autumn", "winter")
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

LISTS = {
    "fruits": ("apples", "bananas", "pears", "cherries", "grapes", "oranges", "plums", "lemons", "strawberries",
    "melons"),
    "vegetables": ("carrots", "potatoes", "onions", "beans", "peas", "cabbage", "tomatoes", "spinach", "pumpkins"),
    "animals": ("cats", "dogs", "horses", "llamas", "cows", "foxes", "owls", "bears", "lions", "rabbits", "frogs"),
    "colors": ("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white"),
    "birds": ("owls", "ducks", "crows", "swans", "eagles", "robins", "sparrows", "geese"),
    "trees": ("oaks", "pines", "maples", "birches", "willows", "elms", "palms"),
    "drinks": ("water", "milk", "tea", "coffee", "apple juice", "lemonade", "cocoa"),
    "instruments": ("the piano", "the violin", "the guitar", "the flute", "the drum", "the trumpet", "the harp"),
    "sports": ("football", "tennis", "swimming", "running", "chess", "skiing", "basketball"),
    "tools": ("a hammer", "a saw", "a rope", "a screwdriver", "a shovel", "a brush"),
    "countries": ("France", "Peru", "Japan", "Kenya", "Canada", "India", "Italy", "Chile"),
    "planets": PLANETS,
}  # fmt: skip

WORDS = {
    "hello": {"French": "bonjour", "German": "hallo", "Spanish": "hola", "Italian": "ciao"},
    "goodbye": {"French": "au revoir", "German": "auf Wiedersehen", "Spanish": "adios", "Italian": "arrivederci"},
    "thank you": {"French": "merci", "German": "danke", "Spanish": "gracias", "Italian": "grazie"},
    "yes": {"French": "oui", "German": "ja", "Spanish": "si", "Italian": "si"},
    "no": {"French": "non", "German": "nein", "Spanish": "no", "Italian": "no"},
    "cat": {"French": "chat", "German": "Katze", "Spanish": "gato", "Italian": "gatto"},
    "dog": {"French": "chien", "German": "Hund", "Spanish": "perro", "Italian": "cane"},
    "water": {"French": "eau", "German": "Wasser", "Spanish": "agua", "Italian": "acqua"},
    "house": {"French": "maison", "German": "Haus", "Spanish": "casa", "Italian": "casa"},
    "friend": {"French": "ami", "German": "Freund", "Spanish": "amigo", "Italian": "amico"},
    "sun": {"French": "soleil", "German": "Sonne", "Spanish": "sol", "Italian": "sole"},
    "book": {"French": "livre", "German": "Buch", "Spanish": "libro", "Italian": "libro"},
}  # fmt: skip

MEANINGS = {
    "llama": "an animal with soft wool that lives in the mountains of South America",
    "corral": "a fenced place where a herd of animals is kept",
    "computer": "a machine that follows instructions and works with data",
    "robot": "a machine that can move and do work by itself",
    "program": "a list of instructions for a computer",
    "book": "a bundle of pages with words to read",
    "sun": "the star that gives us light and warmth",
    "moon": "a ball of rock that goes around the Earth",
    "star": "a hot ball of gas that shines in the sky",
    "rain": "water that falls from the clouds",
    "snow": "frozen water that falls in white flakes",
    "cloud": "many tiny drops of water in the sky",
    "river": "a long stream of water that runs to the sea",
    "mountain": "a very high hill of rock",
    "island": "a piece of land with water all around it",
    "desert": "a dry land with sand and very little rain",
    "forest": "a place where many trees grow",
    "tree": "a tall plant with a trunk, branches and leaves",
    "flower": "the colorful part of a plant",
    "bridge": "a way over a river or a road",
    "friend": "someone who likes you and helps you",
    "teacher": "a person who helps others to learn",
    "doctor": "a person who helps sick people",
    "farmer": "a person who grows food and keeps animals",
    "baker": "a person who makes bread and cakes",
    "cowboy": "a person who looks after cattle on a horse",
    "music": "sound that is made to be nice to hear",
    "clock": "a thing that shows the time",
    "map": "a drawing that shows where places are",
    "key": "a small piece of metal that opens a lock",
    "rainbow": "an arc of colors in the sky after rain",
    "volcano": "a mountain that can throw out hot rock",
    "ocean": "a very large sea of salt water",
    "planet": "a large ball that goes around a star",
    "language": "the words that people use to talk",
    "dream": "a story that your mind tells you in your sleep",
    "token": "a small piece of text, often a part of a word",
    "language model": "a program that guesses the next word again and again",
    "embedding": "a list of numbers that stands for the meaning of a text",
    "prompt": "the text that you give to a language model",
    "server": "a program that answers requests from other programs",
    "port": "a number by which a program on a computer is reached",
    "context": "the text that a model can see at one time",
    "temperature": "a number that says how freely a model picks its words",
}

SPELL = (
    "cat", "dog", "llama", "horse", "fence", "gate", "model", "router", "worker", "tree", "house", "water", "bread",
    "moon", "star",
    "green", "apple", "river", "friend", "school", "music", "happy", "table", "window",
)  # fmt: skip

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo", "Mia", "Noah",
    "Olga", "Paul",
    "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe", "Tom", "Lucy", "Max", "Nina", "Oscar", "Ruth", "Alice", "Bob",
    "Maria", "Peter",
)  # fmt: skip
