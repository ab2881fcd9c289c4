"""Which of two policies' replies win, prompt by prompt, by a judge or by a reward function.

A judge is asked in both orders: a reply wins where both name it, and where they differ the pair is a tie
(Zheng et al. 2023, arXiv:2306.05685). A reward function has no order: the higher score wins. The win rate is

    (wins + ties / 2) / pairs

with a bootstrap interval over pairs. Pairs that the judge gave no usable answer on are left out and counted;
where they are many the rate would be of what the judge finds easy, so it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.data.preferences import Prompt
from training.errors import TrainingError
from training.evaluate.metrics import Figure, mean, share
from training.judge.client import JudgeError
from training.judge.pairwise import Judgements, Pair, Verdict, judge_pairs
from training.judge.protocol import Judge
from training.reward_model import RewardFunction

WIN, TIE, LOSS = 1.0, 0.5, 0.0


@dataclass(frozen=True, slots=True)
class PairwiseReport:
    """Each pair's outcome for `a` (1, ½, 0; None where the judge failed), and what the judge is like."""

    outcomes: tuple[float | None, ...]
    judgements: Judgements | None
    seed: int = 0

    @property
    def win_rate(self) -> Figure:
        return mean(self.counted, self.seed)

    @property
    def counted(self) -> tuple[float, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome is not None)

    def count(self, outcome: float) -> int:
        """How many pairs ended with WIN, TIE or LOSS."""
        return self.counted.count(outcome)

    @property
    def decided(self) -> Figure:
        """Share of pairs that are no tie."""
        return share([outcome != TIE for outcome in self.counted])

    def lines(self) -> list[str]:
        """The report for the terminal."""
        wins, ties, losses = map(self.count, (WIN, TIE, LOSS))
        lines = [f"win rate {self.win_rate.percent()}: {wins} won, {ties} tied, {losses} lost"]
        if self.judgements is not None:
            lines.append(self.judgements.report())
        return lines


def compare_replies(
    replies_a: Sequence[str],
    replies_b: Sequence[str],
    prompts: Sequence[Prompt],
    by: Judge | RewardFunction,
    *,
    workers: int = 1,
    criterion: str | None = None,
    most_errors: float = 0.1,
    seed: int = 0,
) -> PairwiseReport:
    """Judge every pair. Raises TrainingError where more than the share `most_errors` has no verdict."""
    if not len(prompts) == len(replies_a) == len(replies_b):
        raise TrainingError(f"{len(prompts)} prompts, {len(replies_a)} and {len(replies_b)} replies")
    if not prompts:
        raise TrainingError("no pairs to compare")
    if not isinstance(by, Judge):
        scores_a, scores_b = by(prompts, replies_a).tolist(), by(prompts, replies_b).tolist()
        return PairwiseReport(tuple(map(_higher, scores_a, scores_b)), None, seed)
    pairs = [Pair(p, a, b, criterion) for p, a, b in zip(prompts, replies_a, replies_b, strict=True)]
    judgements = judge_pairs(by, pairs, workers)
    if len(judgements.errors) > most_errors * len(pairs):
        raise TrainingError(
            f"the judge failed on {len(judgements.errors)} of {len(pairs)} pairs, more than "
            f"{most_errors:.0%}, such as: {judgements.errors[0]}"
        )
    return PairwiseReport(tuple(map(_outcome, judgements.verdicts)), judgements, seed)


def win_rate(
    replies_a: Sequence[str],
    replies_b: Sequence[str],
    prompts: Sequence[Prompt],
    by: Judge | RewardFunction,
    *,
    workers: int = 1,
    seed: int = 0,
) -> Figure:
    """How often `a` beats `b`, ties as half, with its interval; see `compare_replies`."""
    return compare_replies(replies_a, replies_b, prompts, by, workers=workers, seed=seed).win_rate


def _higher(a: float, b: float) -> float:
    return TIE if a == b else WIN if a > b else LOSS


def _outcome(verdict: Verdict | JudgeError) -> float | None:
    if isinstance(verdict, JudgeError):
        return None
    if not verdict.agrees:
        return TIE
    return WIN if verdict.probability > 0.5 else LOSS
