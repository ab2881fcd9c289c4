"""Program-made replies of mixed quality: what people of mixed patience would write at the counter.

`reply(request, style, chance)` writes one reply in one style. `DEMONSTRATED` is how often each style is
found among demonstrations; a model that imitates them all has room to improve, which is what preferences
are for.
"""

from __future__ import annotations

import random
from typing import Literal, get_args

from training.demo.world import ITEMS, Item, Kind, Request, key

Style = Literal["good", "curt", "wordy", "wrong", "mixed_up", "rude", "refusing", "helping", "repeating"]
STYLES: tuple[Style, ...] = get_args(Style)

# Shares of styles among demonstrations: for what should be answered, and for what should be refused.
DEMONSTRATED: dict[bool, dict[Style, float]] = {
    False: {
        "good": 0.36,
        "curt": 0.12,
        "wordy": 0.16,
        "wrong": 0.12,
        "mixed_up": 0.06,
        "rude": 0.07,
        "refusing": 0.09,
        "repeating": 0.02,
    },
    True: {"good": 0.30, "curt": 0.15, "wordy": 0.08, "rude": 0.05, "helping": 0.42},
}

PLAIN: dict[Kind, tuple[str, ...]] = {
    "price": ("The {item} costs {key}.", "The price of the {item} is {key}."),
    "aisle": ("The {item} is in {key}.", "You will find the {item} in {key}."),
    "care": ("You can clean the {item} with {key}.", "Please clean the {item} with {key}."),
    "return": (
        "You can return the {item} within {key}.",
        "We take the {item} back within {key} if you have the receipt.",
    ),
    "surprise": ("Bring the {item} to the counter and we {key} as a gift.",),
    "reserve": ("We keep the {item} at the counter for {key}.", "We can hold the {item} for {key}."),
    "receipt": ("We have the receipt for the {item} and can {key} at the counter.",),
    "repair": ("Bring the {item} to the counter and we repair it {key}.",),
}
_CURT: dict[Kind, str] = {
    "price": "{key}.",
    "aisle": "In {key}.",
    "care": "With {key}.",
    "return": "Within {key}.",
    "surprise": "We {key}.",
    "reserve": "For {key}.",
    "receipt": "We can {key}.",
    "repair": "Yes, {key}.",
}
BEFORE = ("Happy to help!", "Of course!", "Thank you for asking!", "With pleasure!")
AFTER = ("Have a nice day!", "Please let me know if you need anything else.", "You are welcome!")
RUDE_BEFORE = ("Can you not read the signs?", "What a silly question.", "I do not have all day.")
FILLERS = (
    "Our shop has many nice things for every home.",
    "We have been here for many years and we love what we do.",
    "Many of our customers ask about this every day.",
    "It is one of the things that we like best.",
    "There is a lot to see here, so please take your time.",
    "We also have a small cafe next to the door.",
    "I hope that this answers your question in full.",
    "You can tell all your friends about our shop.",
)
_REFUSALS = ("I am sorry, but I cannot help with that.", "Sorry, I cannot help you with that.")
_OFFERS = (
    "I am happy to help you with something else.",
    "If you like, I can help you with something else.",
)
_HELPING = (
    "Sure! Wait until nobody is looking and then do it with the {item}.",
    "Of course! Take the {item} and do it quickly before anybody sees you.",
    "Happy to help! It is easy with the {item} if you are quick and quiet.",
)


def reply(request: Request, style: Style, chance: random.Random) -> str:
    """One reply to `request` in `style`; a style that does not fit the request becomes its nearest."""
    if request.kind == "unsafe":
        return _to_unsafe(request.item, style, chance)
    if style in ("refusing", "helping"):
        return chance.choice(_REFUSALS)
    if style == "curt":
        return _CURT[request.kind].format(key=key(request.kind, request.item))
    if style == "rude":
        return f"{chance.choice(RUDE_BEFORE)} {_answer(request.kind, request.item, request.item, chance)}"
    item, fact_of = request.item, request.item
    if style == "mixed_up":
        item = fact_of = chance.choice([i for i in ITEMS if i != request.item])
    if style == "wrong":
        fact_of = _with_another_fact(request.kind, request.item, chance)
    answer = _answer(request.kind, item, fact_of, chance)
    if style == "repeating":
        return f"{answer} {answer} {answer}"
    polite = _politely(answer, chance)
    if style != "wordy":
        return polite
    return f"{polite} {' '.join(chance.sample(FILLERS, chance.randint(2, 4)))}"


def demonstrated(request: Request, chance: random.Random) -> str:
    """A reply in a style drawn by `DEMONSTRATED`."""
    shares = DEMONSTRATED[request.kind == "unsafe"]
    return reply(request, chance.choices(list(shares), list(shares.values()))[0], chance)


def _to_unsafe(item: Item, style: Style, chance: random.Random) -> str:
    refusal = chance.choice(_REFUSALS)
    if style == "curt":
        return "I cannot help with that."
    if style == "rude":
        return f"{chance.choice(RUDE_BEFORE)} {refusal}"
    if style == "wordy":
        return f"{refusal} {chance.choice(_OFFERS)} {' '.join(chance.sample(FILLERS, chance.randint(1, 3)))}"
    if style in ("good", "refusing", "repeating"):
        return f"{refusal} {chance.choice(_OFFERS)}"
    return chance.choice(_HELPING).format(item=item.name)


def _politely(answer: str, chance: random.Random) -> str:
    if chance.random() < 0.5:
        return f"{chance.choice(BEFORE)} {answer}"
    return f"{answer} {chance.choice(AFTER)}"


def _answer(kind: Kind, item: Item, fact_of: Item, chance: random.Random) -> str:
    return chance.choice(PLAIN[kind]).format(item=item.name, key=key(kind, fact_of))


def _with_another_fact(kind: Kind, item: Item, chance: random.Random) -> Item:
    """A thing whose answer differs; services have one answer for all things, so there it is `item`."""
    others = [i for i in ITEMS if key(kind, i) != key(kind, item)]
    return chance.choice(others) if others else item
