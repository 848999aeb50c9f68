"""Writes the short conversations of the smoke study, data/smoke_chat.jsonl. Run: python scripts/smoke_chat.py

Only templates and word lists written for this project; a fixed seed, so the file is the same every time.
"""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

FILE = Path(__file__).parents[1] / "compression_assets" / "data" / "smoke_chat.jsonl"
COUNT = 150
SEED = 20

Turns = list[str]

ANIMALS = {
    "cat": "four legs",
    "spider": "eight legs",
    "hen": "two legs",
    "bee": "six legs",
    "snake": "no legs",
}
PLACES = {"attic": "dusty", "garden": "green", "cellar": "cold", "workshop": "noisy", "balcony": "sunny"}
FOODS = {
    "lentil soup": "lentils, an onion, a carrot and stock",
    "pancakes": "flour, eggs, milk and a little butter",
    "rice salad": "cold rice, peas, cucumber and lemon",
    "baked apples": "apples, raisins, honey and cinnamon",
    "tomato toast": "bread, ripe tomatoes, oil and salt",
}
TRIPS = {
    "the beach": ["a towel", "sun cream", "a book", "sandals"],
    "the mountains": ["warm socks", "a map", "a rain jacket", "dried fruit"],
    "a concert": ["the ticket", "ear plugs", "a light coat", "some cash"],
    "a night train": ["a pillow", "a water bottle", "a lock", "a toothbrush"],
}
WORDS = [
    "kettle",
    "lantern",
    "meadow",
    "pepper",
    "ribbon",
    "violin",
    "harbour",
    "button",
    "saddle",
    "compass",
]
WORDS += [
    "blanket",
    "cherry",
    "dolphin",
    "feather",
    "glacier",
    "hammer",
    "island",
    "jacket",
    "mirror",
    "orchard",
]
NAMES = ["Ada", "Bruno", "Chiara", "Dmitri", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLOURS = {
    ("blue", "yellow"): "green",
    ("red", "yellow"): "orange",
    ("red", "blue"): "purple",
    ("black", "white"): "grey",
}
TASKS = [
    "water the plants",
    "call the bank",
    "wash the car",
    "write the report",
    "buy stamps",
    "fix the shelf",
]


def addition(dice: random.Random) -> Turns:
    a, b = dice.randint(3, 60), dice.randint(3, 60)
    first, second = [f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."], []
    if dice.random() < 0.6:
        second = ["And twice that?", f"Twice {a + b} is {2 * (a + b)}."]
    return first + second


def sharing(dice: random.Random) -> Turns:
    each, people, thing = (
        dice.randint(2, 9),
        dice.randint(2, 8),
        dice.choice(["walnuts", "stickers", "plums", "coins"]),
    )
    name = dice.choice(NAMES)
    return [
        f"{name} shares {each * people} {thing} among {people} friends. How many does each get?",
        f"Each friend gets {each} {thing}, because {people} times {each} is {each * people}.",
    ]


def day_after(dice: random.Random) -> Turns:
    start, step = dice.randrange(7), dice.randint(2, 10)
    return [
        f"Today is {DAYS[start]}. Which day is it in {step} days?",
        f"In {step} days it is {DAYS[(start + step) % 7]}.",
        "Thank you!",
        dice.choice(["You are welcome.", "Any time.", "Glad to help."]),
    ]


def spelling(dice: random.Random) -> Turns:
    word = dice.choice(WORDS)
    return [
        f"How many letters has the word {word!r}?",
        f"The word {word!r} has {len(word)} letters.",
        "Spell it backwards, please.",
        f"Backwards it reads {word[::-1]!r}.",
    ]


def sorting(dice: random.Random) -> Turns:
    words = dice.sample(WORDS, dice.randint(3, 4))
    return [f"Sort these words: {', '.join(words)}.", f"In alphabetical order: {', '.join(sorted(words))}."]


def cooking(dice: random.Random) -> Turns:
    dish = dice.choice(list(FOODS))
    number = dice.randint(2, 6)
    return [
        dice.choice(
            [
                f"What do I need for {dish}?",
                f"I have {number} guests and want to make {dish}. What should I buy?",
            ]
        ),
        f"For {dish} you need {FOODS[dish]}.",
        "Is it difficult?",
        dice.choice(["Not at all, it takes about half an hour.", "No. Take your time and taste as you go."]),
    ]


def packing(dice: random.Random) -> Turns:
    trip = dice.choice(list(TRIPS))
    things = dice.sample(TRIPS[trip], 3)
    return [
        f"{dice.choice(NAMES)} asks what to pack for {trip}.",
        f"For {trip} I would take {things[0]}, {things[1]} and {things[2]}.",
    ]


def animals(dice: random.Random) -> Turns:
    animal = dice.choice(list(ANIMALS))
    place = dice.choice(list(PLACES))
    return [
        f"There is a {animal} in my {place}! How many legs should I expect?",
        f"Expect {ANIMALS[animal]}. I hope your {place} is not too {PLACES[place]} for it.",
    ]


def mixing(dice: random.Random) -> Turns:
    pair = dice.choice(list(COLOURS))
    first, second = dice.sample(pair, 2)
    return [
        f"{dice.choice(NAMES)} mixes {first} and {second} paint. What comes out?",
        f"{first.capitalize()} and {second} give {COLOURS[pair]}.",
    ]


def planning(dice: random.Random) -> Turns:
    first, second, third = dice.sample(TASKS, 3)
    return [
        f"Today I must {first}, {second} and {third}. Where do I start?",
        f"Start with the shortest. Perhaps {second}, then {first}, and {third} at the end.",
        f"I would rather {third} first.",
        "That works too: what is done first weighs least.",
    ]


def units(dice: random.Random) -> Turns:
    number = dice.randint(2, 40)
    unit, small, factor = dice.choice(
        [("metres", "centimetres", 100), ("hours", "minutes", 60), ("kilograms", "grams", 1000)]
    )
    return [f"How many {small} are {number} {unit}?", f"{number} {unit} are {number * factor} {small}."]


def greeting(dice: random.Random) -> Turns:
    name, day = dice.choice(NAMES), dice.choice(DAYS)
    return [
        f"Write one line that wishes {name} a good {day}.",
        dice.choice(
            [
                f"Dear {name}, may your {day} be calm and bright!",
                f"Happy {day}, {name}: enjoy every hour of it.",
            ]
        ),
    ]


FAMILIES: list[Callable[[random.Random], Turns]] = [
    addition, sharing, day_after, spelling, sorting, cooking, packing, animals, mixing, planning, units, greeting,
]  # fmt: skip


def lines() -> list[str]:
    """The file's lines in ultrachat_200k's schema, no conversation twice."""
    dice = random.Random(SEED)
    unique: dict[str, None] = {}
    for family in itertools.cycle(FAMILIES):
        if len(unique) == COUNT:
            break
        turns = family(dice)
        messages = [
            {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)
        ]
        unique.setdefault(json.dumps(messages, ensure_ascii=False))
    rows = enumerate(map(json.loads, unique))
    return [
        json.dumps(
            {"prompt": row[0]["content"], "prompt_id": f"smoke-{index:03}", "messages": row},
            ensure_ascii=False,
        )
        for index, row in rows
    ]


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
