"""Noisy raters: they compare two replies by what the gold judge says, plus their own error and taste.

A rater perceives `gold + per_word · words + ε`, with ε normal of standard deviation `noise`, and prefers
what they perceive as better; in a share `careless` of their comparisons they answer at random. Two of the
five like long replies, as people were seen to (Singhal et al. 2023, arXiv:2310.03716): what is fitted to
their choices is a proxy that can be gamed with words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from training.data.preferences import Preference, Prompt
from training.demo.gold import gold_score


@dataclass(frozen=True, slots=True)
class Rater:
    """`noise` in points of the gold score, `per_word` in points a word, `careless` a share of comparisons."""

    name: str
    noise: float
    per_word: float = 0.0
    careless: float = 0.0

    def compare(self, prompt: Prompt, a: str, b: str, chance: random.Random) -> Preference:
        """The rater's choice between two different replies; strength is 1 (slightly) to 3 (much better)."""
        difference = self._perceive(prompt, a, chance) - self._perceive(prompt, b, chance)
        if chance.random() < self.careless:
            difference = abs(difference) * chance.choice((-1, 1))
        chosen, rejected = (a, b) if difference >= 0 else (b, a)
        strength = 1.0 + (abs(difference) > 1.0) + (abs(difference) > 2.5)
        return Preference(prompt, chosen, rejected, strength=strength, rater=self.name)

    def _perceive(self, prompt: Prompt, reply: str, chance: random.Random) -> float:
        return gold_score(prompt, reply) + self.per_word * len(reply.split()) + chance.gauss(0, self.noise)


RATERS = (
    Rater("rater-1", noise=0.4),
    Rater("rater-2", noise=0.6, careless=0.05),
    Rater("rater-3", noise=0.8, careless=0.10),
    Rater("rater-4", noise=0.5, per_word=0.08),
    Rater("rater-5", noise=0.5, per_word=0.12, careless=0.05),
)


def compare_all(
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[str]],
    seed: int,
    raters: Sequence[Rater] = RATERS,
) -> Iterator[Preference]:
    """Every pair of different replies to each prompt, each shown to one rater drawn at random."""
    chance = random.Random(f"demo/raters/{seed}")
    for prompt, candidates in zip(prompts, replies, strict=True):
        for a, b in combinations(dict.fromkeys(r.strip() for r in candidates if r.strip()), 2):
            yield chance.choice(raters).compare(prompt, a, b, chance)
