"""Held tasks: questions with one right ending among several, scored by likelihood.

They are our own and made here, so no model was tuned on them by way of a public file. A small
model does some of them, a large one nearly all; what counts is how many of those that the original
does are kept.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

_SEED = 7
_NUM_SUMS = 40


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        task: Which task it is of.
        context: What comes before the ending.
        endings: The choices; each begins with a space where the text needs one.
        answer: Place of the right one.
    """

    task: str
    context: str
    endings: tuple[str, ...]
    answer: int


_CAPITALS = {
    **{"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid"},
    **{"Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow", "England": "London"},
    **{"Greece": "Athens", "Egypt": "Cairo", "Austria": "Vienna", "Poland": "Warsaw"},
    **{"Norway": "Oslo", "Sweden": "Stockholm", "Portugal": "Lisbon", "Cuba": "Havana"},
    **{"India": "New Delhi", "Ireland": "Dublin", "Peru": "Lima", "Kenya": "Nairobi"},
    **{"Hungary": "Budapest", "Finland": "Helsinki", "Denmark": "Copenhagen", "Iran": "Tehran"},
}
_OPPOSITES = {
    **{"hot": "cold", "big": "small", "day": "night", "up": "down", "wet": "dry"},
    **{"fast": "slow", "rich": "poor", "open": "closed", "happy": "sad", "young": "old"},
    **{"early": "late", "hard": "soft", "full": "empty", "light": "dark", "strong": "weak"},
    **{"high": "low", "first": "last", "good": "bad", "near": "far", "clean": "dirty"},
    **{"love": "hate", "win": "lose", "buy": "sell", "push": "pull", "left": "right"},
}
_KINDS = {
    "an animal": ("dog", "cat", "horse", "lion", "whale", "sheep", "rabbit"),
    "a fruit": ("apple", "banana", "orange", "grape", "pear", "peach", "lemon"),
    "a color": ("red", "blue", "green", "yellow", "purple", "brown", "black"),
    "a vehicle": ("car", "bus", "train", "truck", "bicycle", "boat", "airplane"),
    "a tool": ("hammer", "saw", "screwdriver", "wrench", "drill", "shovel", "axe"),
    "a musical instrument": ("guitar", "piano", "violin", "drum", "flute", "trumpet", "harp"),
}
_SENSE = (
    ("To cut bread you use a", (" knife", " spoon", " pillow", " cloud")),
    ("Fish live in", (" water", " fire", " books", " the sky")),
    ("At night you can see the", (" stars", " sandwich", " carpet", " alphabet")),
    ("When it rains you should take an", (" umbrella", " oven", " elephant", " engine")),
    ("You read a", (" book", " potato", " river", " shoe")),
    ("Ice is made of frozen", (" water", " wood", " iron", " sand")),
    ("A year has twelve", (" months", " weeks", " hours", " days")),
    ("A triangle has three", (" sides", " wheels", " legs", " doors")),
    ("You see with your", (" eyes", " ears", " feet", " elbows")),
    ("You hear with your", (" ears", " eyes", " knees", " hair")),
    ("Bees make", (" honey", " milk", " paper", " glass")),
    ("Cows give", (" milk", " honey", " coffee", " oil")),
    ("The sun rises in the", (" east", " kitchen", " garage", " south")),
    ("Doctors work in a", (" hospital", " bakery", " stable", " cinema")),
    ("Teachers work in a", (" school", " mine", " harbor", " jungle")),
    ("Plants need sunlight and", (" water", " shoes", " money", " music")),
    ("Snow is", (" white", " purple", " loud", " hungry")),
    ("Birds fly with their", (" wings", " tails", " beaks", " eggs")),
    ("The Earth goes around the", (" Sun", " Moon", " ocean", " forest")),
    ("You sleep in a", (" bed", " cup", " pencil", " window")),
    ("Paper is made from", (" trees", " rocks", " fish", " metal")),
    ("A baby cat is called a", (" kitten", " puppy", " calf", " chick")),
    ("A baby dog is called a", (" puppy", " kitten", " foal", " lamb")),
    ("The opposite of north is", (" south", " east", " up", " river")),
    ("Water boils when it gets very", (" hot", " cold", " old", " quiet")),
    ("You write with a", (" pen", " fork", " lamp", " tire")),
    ("The color of grass is", (" green", " pink", " silver", " orange")),
    ("A week has seven", (" days", " months", " years", " minutes")),
    ("People breathe", (" air", " sand", " soup", " stones")),
    ("An elephant is very", (" large", " tiny", " flat", " square")),
)
_GRAMMAR = (
    ("The children", (" are playing", " is playing")),
    ("She", (" has a dog", " have a dog")),
    ("Yesterday we", (" went home", " go home")),
    ("He", (" doesn't know", " don't know")),
    ("There", (" are two cats", " is two cats")),
    ("I have", (" eaten lunch", " ate lunch")),
    ("This book is", (" mine", " my")),
    ("They were", (" walking slowly", " walked slowly")),
    ("My brother and I", (" are friends", " is friends")),
    ("If it rains tomorrow, I", (" will stay home", " stayed home")),
    ("One of the boys", (" was late", " were late")),
    ("She sings more", (" beautifully than him", " beautiful than him")),
    ("The house", (" that I bought is old", " who I bought is old")),
    ("We have lived here", (" for ten years", " since ten years")),
    ("He is the", (" tallest boy in class", " most tall boy in class")),
    ("You should", (" see a doctor", " to see a doctor")),
    ("I am looking forward to", (" seeing you", " see you")),
    ("An hour", (" has passed", " have passed")),
    ("Neither of them", (" knows the answer", " know the answers is")),
    ("The news", (" is good", " are good")),
)


def held_tasks() -> tuple[Item, ...]:
    """Return all items, the same ones each time."""
    source = random.Random(_SEED)  # noqa: S311 - not for secrets
    items = [
        _item(source, "capitals", f"The capital of {land} is", city, list(_CAPITALS.values()))
        for land, city in _CAPITALS.items()
    ]
    items += [
        _item(source, "opposites", f"The opposite of {word} is", other, list(_OPPOSITES.values()))
        for word, other in _OPPOSITES.items()
    ]
    for kind, names in _KINDS.items():
        others = [name for other, known in _KINDS.items() if other != kind for name in known]
        items += [_item(source, "kinds", f"An example of {kind} is the", n, others) for n in names]
    for _ in range(_NUM_SUMS):
        left, right = source.randint(1, 9), source.randint(1, 9)
        wrong = [str(n) for n in range(2, 19)]
        items.append(_item(source, "sums", f"{left} + {right} =", str(left + right), wrong))
    items += [_shuffled(source, "sense", context, endings) for context, endings in _SENSE]
    items += [_shuffled(source, "grammar", context, endings) for context, endings in _GRAMMAR]
    return tuple(items)


def _item(source: random.Random, task: str, context: str, right: str, pool: Sequence[str]) -> Item:
    wrong = source.sample([word for word in dict.fromkeys(pool) if word != right], 3)
    return _shuffled(source, task, context, (f" {right}", *(f" {word}" for word in wrong)))


def _shuffled(source: random.Random, task: str, context: str, endings: tuple[str, ...]) -> Item:
    order = list(endings)
    source.shuffle(order)
    return Item(task, context, tuple(order), order.index(endings[0]))


GOLDEN_PROMPTS = (
    "What is the capital of Japan?",
    "Explain in two sentences why the sea is salty.",
    "Write a short poem about autumn.",
    "List three things you need to bake a cake.",
    "How do I change a bicycle tire?",
    "What is 7 plus 5?",
    "Give me a polite sentence to decline an invitation.",
    "Who was Albert Einstein?",
    "What do plants need to grow?",
    "Write one sentence about a cat and a mouse.",
    "What is the difference between a lake and a river?",
    "Name three colors of the rainbow.",
)
