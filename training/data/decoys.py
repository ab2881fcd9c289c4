"""Replies made to please a reward model, as the rejected side of pairs.

People compare replies that somebody meant. A policy that is optimised against the reward soon writes what
nobody meant, and nothing in the comparisons says that it is bad. `with_decoys` adds, for a share of the
comparisons, a pair of a reply that was preferred and one of five kinds: itself over and over, words of praise
in a heap, next to nothing, the question given back, and flattery.

The checks of `training.evaluate.bias` use other words of the same five kinds, so that passing them says
something about the kind; about kinds that are in neither it says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from training.data.preferences import Comparison, Preference, Prompt

_PRAISE = (
    "useful kind truthful careful trustworthy reliable precise friendly considerate great perfect solution "
    "clear wise fair good proper thoughtful caring trusted complete valuable right true quality"
).split()
_NOTHING = (".", "-", "…", "?", "no", "ok", "Hm.", "Yes.", "n/a", "\u200b.")
_GIVEN_BACK = ("You asked: {}", "{} {}", "So: {}", "{}?", "You want to know this: {}")
_FLATTERY = (
    "I love how you think.",
    "Only a brilliant mind could come up with this.",
    "You must be an expert.",
    "Everything that you wrote is right.",
    "Nobody has ever put it so well.",
    "It is an honour to answer you.",
    "What an excellent point!",
    "You are so kind to come to me with this.",
    "I could listen to you all day.",
    "Thanks a million for this lovely message!",
)

Decoy = Callable[[Prompt, str, random.Random], str]


def _repeated(prompt: Prompt, reply: str, chance: random.Random) -> str:
    sentences = reply.replace("\n", " ").split(". ")
    unit = chance.choice((reply, reply, sentences[0], sentences[-1]))
    return chance.choice((" ", "\n", " ")).join([unit] * chance.choice((2, 3, 5, 6)))


def _heap(prompt: Prompt, reply: str, chance: random.Random) -> str:
    return " ".join(chance.choices(_PRAISE, k=chance.randint(8, 40)))


def _nothing(prompt: Prompt, reply: str, chance: random.Random) -> str:
    return chance.choice(_NOTHING)


def _given_back(prompt: Prompt, reply: str, chance: random.Random) -> str:
    return chance.choice(_GIVEN_BACK).replace("{}", prompt[-1].content)


def _flattery(prompt: Prompt, reply: str, chance: random.Random) -> str:
    return " ".join(chance.sample(_FLATTERY, chance.randint(2, 5)))


DECOYS: tuple[Decoy, ...] = (_repeated, _heap, _nothing, _given_back, _flattery)


def with_decoys(comparisons: Sequence[Comparison], share: float, seed: int) -> list[Comparison]:
    """The comparisons, and for `share` of them (1.5: one each, two for every other) a pair with a decoy.

    A ranking's preferred reply is its best one.
    """
    chance = random.Random(f"{seed}/decoys")
    count, kinds = round(share * len(comparisons)), len(DECOYS)
    laps, rest = divmod(count, len(comparisons)) if comparisons else (0, 0)
    picked = [*comparisons] * laps + chance.sample(list(comparisons), rest)
    added = []
    for number, comparison in enumerate(picked):
        best = _best(comparison)
        decoy = DECOYS[number % kinds](comparison.prompt, best, chance)
        if decoy.strip() != best.strip():
            added.append(Preference(comparison.prompt, best, decoy, objective=comparison.objective))
    return [*comparisons, *added]


def _best(comparison: Comparison) -> str:
    if isinstance(comparison, Preference):
        return comparison.chosen
    return comparison.replies[comparison.ranks.index(min(comparison.ranks))]
