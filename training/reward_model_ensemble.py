"""Several reward models read as one: their mean, the worst of them, or the mean less their disagreement.

Members trained from different seeds (or heads on different samples) agree where data is, and differ where
it is not; optimizing the worst member or penalising the variance keeps a policy from climbing where only
one member is wrong (Coste et al. 2023, arXiv:2310.02743). Members are normalised one by one, so their
scores can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from training.errors import TrainingError
from training.losses.reward import Reduce, combine
from training.reward_model import RewardFunction, RewardModel
from training.reward_model_encoding import Prompt


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """M reward functions. Calling it is `score` with its own `reduce` and `coefficient`."""

    members: tuple[RewardFunction, ...]
    reduce: Reduce = "uncertainty"
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        if not self.members:
            raise TrainingError("an ensemble needs at least one member")

    def member_scores(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
        """Scores `[M, N]`."""
        return torch.stack([member(prompts, replies) for member in self.members])

    def score(
        self,
        prompts: Sequence[Prompt],
        replies: Sequence[str],
        reduce: Reduce | None = None,
        coefficient: float | None = None,
    ) -> Tensor:
        """The ensemble's score, `[N]`."""
        return combine(
            self.member_scores(prompts, replies),
            self.reduce if reduce is None else reduce,
            self.coefficient if coefficient is None else coefficient,
        )

    __call__ = score

    def disagreement(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
        """The members' standard deviation (over M), `[N]`: where the ensemble does not know."""
        return self.member_scores(prompts, replies).std(dim=0, unbiased=False)

    @classmethod
    def load(cls, places: Sequence[Path], reduce: Reduce = "uncertainty", coefficient: float = 1.0) -> Self:
        """Members from their folders."""
        return cls(tuple(RewardModel.load(place) for place in places), reduce, coefficient)
