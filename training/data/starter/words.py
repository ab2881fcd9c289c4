"""Words that the starter conversations are made of, and how they are put together."""

from __future__ import annotations

import random
from collections.abc import Callable

# User and assistant in turns.
Exchange = tuple[str, ...]
Generator = Callable[[random.Random], Exchange]

NAMES = (
    "Anna Ben Carla David Emma Felix Grace Henry Ida James Kate Leo Maria Noah Olivia Peter Rosa Sam Tina "
    "Victor Alice Bob Chloe Daniel Elena Frank Gina Hugo Irene Jack Julia Karl Laura Mark Nina Oscar "
    "Paula Robert Sarah Tom Vera Will Amir Aisha Chen Fatima Kenji Lucia Mei Omar Priya Raj Sofia Yuki "
    "Jordan Alex Taylor Morgan"
).split()
SURNAMES = (
    "Adams Baker Brown Carter Clark Davis Evans Fischer Garcia Hill Ito Jones King Lopez Meyer Novak "
    "Patel Reed Rossi Silva Smith Stone Tanaka Turner Walker Wood Young Miller Wilson Moore"
).split()
PLACES = (
    "Paris London Berlin Rome Madrid Tokyo Boston Chicago Denver Dublin Oslo Vienna Lisbon Toronto Sydney "
    "Delhi"
).split()
ANIMALS = "cat dog horse bear fox rabbit mouse owl lion duck frog wolf".split()
ADJECTIVES = "little big old young brave quiet clever lazy happy tired".split()
WHERE = ["in the garden", "by the river", "in the forest", "near the sea", "on a hill", "in a small town"]
THINGS = ["a golden key", "an old map", "a small box", "a shiny stone", "a lost letter", "a red kite"]
VERBS = ["sleeps", "plays", "waits", "sings", "runs", "sits"]
EVENTS = ["the meeting", "the party", "the concert", "the dinner", "the project", "the trip"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DOMAINS = ["example.com", "example.org", "mail.example", "post.example", "example.net", "shop.example"]
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()


_ONSETS = "b br c ch d f fr g gr h j k kl l m n p r s sh st t th v w y z".split()
_VOWELS = "a e i o u ai ee ia ei ou".split()
_CODAS = ["", "", "", "l", "n", "r", "s", "m", "ck", "nd", "tt"]


def unheard_name(r: random.Random) -> str:
    """A made-up name: what is copied must be read, not recalled."""
    syllables = (
        r.choice(_ONSETS) + r.choice(_VOWELS) + r.choice(_CODAS) for _ in range(r.choice((1, 2, 2, 3)))
    )
    return "".join(syllables).capitalize()


def enumerate_words(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def indefinite(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
