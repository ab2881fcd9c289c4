"""Tours: questions about three things at once, whose replies are a hundred words and not twenty.

Methods that stop replies half-way, or choose block by block, need replies with a middle. A tour asks for
the price, the aisle and the care of three of the shop's things; a reply has a sentence for each of the nine,
right, wrong or left out, and the manners that short replies have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from training.data.conversation import Conversation, Message
from training.data.preferences import Preference, Prompt, as_prompt
from training.demo.raters import RATERS
from training.demo.replies import AFTER, BEFORE, FILLERS, PLAIN, RUDE_BEFORE
from training.demo.world import ITEMS, OPENINGS, TOUR_KINDS, Item, Split, key

TEMPLATES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Tell me all about the {a}, the {b} and the {c}.",
        "I would like to know all about the {a}, the {b} and the {c}.",
        "What can you tell me? I want to hear all about the {a}, the {b} and the {c}.",
    ),
    "test": (
        "Could you tell me all about the {a}, the {b} and the {c}, please?",
        "All about the {a}, the {b} and the {c}, please!",
    ),
}


@dataclass(frozen=True, slots=True)
class Tour:
    """A question about three different things."""

    items: tuple[Item, Item, Item]
    text: str


def tours(count: int, seed: int, split: Split = "train") -> Iterator[Tour]:
    """`count` questions, a pure function of the arguments."""
    chance = random.Random(f"demo/tours/{split}/{seed}")
    for _ in range(count):
        a, b, c = chance.sample(ITEMS, 3)
        template = chance.choice(TEMPLATES[split]).format(a=a.name, b=b.name, c=c.name)
        yield Tour((a, b, c), chance.choice(OPENINGS[split]) + template)


def guided(tour: Tour, chance: random.Random) -> str:
    """A reply by somebody whose knowledge, patience and manners are drawn anew for each reply."""
    knows = chance.uniform(0.4, 1.0)
    forgets = chance.choice((0.0, 0.0, 0.1, 0.3))
    chats = chance.choice((0.0, 0.0, 0.05, 0.2))
    said = [chance.choice(chance.choices((BEFORE, RUDE_BEFORE, ("",)), (5, 1, 2))[0])]
    for item in tour.items:
        for kind in TOUR_KINDS:
            if chance.random() < forgets:
                continue
            others = [i for i in ITEMS if key(kind, i) != key(kind, item)]
            of = item if chance.random() < knows else chance.choice(others)
            said.append(chance.choice(PLAIN[kind]).format(item=item.name, key=key(kind, of)))
            if chance.random() < chats:
                said.append(chance.choice(FILLERS))
    said.append(chance.choice((*AFTER, "")))
    return " ".join(sentence for sentence in said if sentence)


def tour_prompts(n: int, seed: int, split: Split = "train") -> list[Prompt]:
    """`n` different questions; those of `split="test"` are phrased as no training question is."""
    different = dict.fromkeys(tour.text for tour in tours(4 * n + 50, seed, split))
    return [as_prompt(text) for text in list(different)[:n]]


def tour_demonstrations(n: int, seed: int, split: Split = "train") -> list[Conversation]:
    """`n` exchanges of mixed quality."""
    chance = random.Random(f"demo/tours/demonstrations/{split}/{seed}")
    return [
        Conversation((Message("user", tour.text), Message("assistant", guided(tour, chance))))
        for tour in tours(n, seed, split)
    ]


def tour_preferences(n: int, seed: int, split: Split = "train") -> list[Preference]:
    """`n` pairs of program-made replies, each compared by one of the noisy raters."""
    chance = random.Random(f"demo/tours/preferences/{split}/{seed}")
    return [
        chance.choice(RATERS).compare(as_prompt(t.text), guided(t, chance), guided(t, chance), chance)
        for t in tours(n, seed, split)
    ]
