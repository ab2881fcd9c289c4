"""Pairwise judging: every pair in both orders, so that a judge's liking for a place cancels out.

With q_ab = P(a better | a shown first) and q_ba = P(b better | b shown first), a pair's verdict is

    p = (q_ab + 1 - q_ba) / 2

A judge that always prefers the first reply gives every pair p = 1/2, a tie, and not a preference. How much
it does so is measured: the position bias is the mean of (q_ab + q_ba) / 2 - 1/2 over all pairs, 0 for a
judge without one, ±1/2 for a judge that looks at nothing else (Zheng et al. 2023, arXiv:2306.05685).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.preferences import Preference, Prompt
from training.errors import TrainingError
from training.evaluate.metrics import Figure, mean, share
from training.judge.client import JudgeError
from training.judge.progress import answers
from training.judge.protocol import Judge


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt, and what "better" means, where it is not what the judge takes it for."""

    prompt: Prompt
    a: str
    b: str
    criterion: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """P(a is better) as found with `a` shown first, and as found with `b` shown first."""

    a_first: float
    b_first: float

    @property
    def probability(self) -> float:
        """P(a is better), over both orders."""
        return (self.a_first + self.b_first) / 2

    @property
    def agrees(self) -> bool:
        """Whether the same reply wins in both orders."""
        return (self.a_first - 0.5) * (self.b_first - 0.5) > 0

    @property
    def lean(self) -> float:
        """How much more the judge likes the reply that is shown first: -1/2 to 1/2."""
        return (self.a_first + 1 - self.b_first) / 2 - 0.5


@dataclass(frozen=True, slots=True)
class Judgements:
    """Each pair's verdict, or the error that stands in its place; and what they say about the judge."""

    verdicts: tuple[Verdict | JudgeError, ...]

    @property
    def given(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if isinstance(v, Verdict))

    @property
    def errors(self) -> tuple[JudgeError, ...]:
        return tuple(v for v in self.verdicts if isinstance(v, JudgeError))

    def position_bias(self, seed: int = 0) -> Figure:
        """Mean lean towards the reply shown first, with its interval over pairs."""
        return mean([verdict.lean for verdict in self._some()], seed)

    def agreement(self) -> Figure:
        """Share of pairs in which both orders name the same winner."""
        return share([verdict.agrees for verdict in self._some()])

    def report(self) -> str:
        """What a person should know before trusting the verdicts."""
        words = f"{len(self.given)} pairs judged, {len(self.errors)} without a usable answer"
        if not self.given:
            return words
        return (
            f"{words}; both orders name the same winner in {self.agreement().percent()}; "
            f"position bias {self.position_bias()}"
        )

    def _some(self) -> tuple[Verdict, ...]:
        if not self.given:
            first = f": {self.errors[0]}" if self.errors else ""
            raise TrainingError(f"the judge gave no verdict on any of {len(self.verdicts)} pairs{first}")
        return self.given


def judge_pairs(
    judge: Judge, pairs: Sequence[Pair], workers: int = 1, keep: Path | None = None
) -> Judgements:
    """Every pair in both orders, `workers` at a time; a judge's errors are kept in the pairs' places.

    A model in this process takes one worker; one over HTTP as many as its server serves at once. `keep` is
    a file for the verdicts as they come, from which an interrupted call goes on.
    """

    def both(pair: Pair) -> dict[str, float]:
        return {
            "a_first": judge.compare(pair.prompt, pair.a, pair.b, pair.criterion),
            "b_first": 1 - judge.compare(pair.prompt, pair.b, pair.a, pair.criterion),
        }

    rows = answers(pairs, both, workers, keep)
    return Judgements(tuple(row if isinstance(row, JudgeError) else Verdict(**row) for row in rows))


def preferences(
    pairs: Sequence[Pair], judgements: Judgements, least: float = 0.5, rater: str = "judge"
) -> list[Preference]:
    """The pairs with soft labels, without errors, ties, and verdicts less sure than `least`."""
    found = []
    for pair, verdict in zip(pairs, judgements.verdicts, strict=True):
        if isinstance(verdict, JudgeError):
            continue
        p = verdict.probability
        soft = max(p, 1 - p)
        if p == 0.5 or soft < least or pair.a.strip() == pair.b.strip():
            continue
        chosen, rejected = (pair.a, pair.b) if p > 0.5 else (pair.b, pair.a)
        found.append(Preference(pair.prompt, chosen, rejected, rater=rater, id=pair.id, soft=soft))
    return found
