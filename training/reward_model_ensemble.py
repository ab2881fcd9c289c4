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
from pydantic import ValidationError
from torch import Tensor

from training.config import Config
from training.data.preferences import Prompt
from training.errors import TrainingError
from training.files import appearing
from training.losses.reward import Reduce, combine
from training.reward_model import RewardFunction, RewardModel

ENSEMBLE_NAME = "ensemble.json"


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


class AboutEnsemble(Config):
    """`ensemble.json`: the members' folders, beside it, and how they are read as one."""

    members: tuple[str, ...]
    reduce: Reduce
    coefficient: float


def save_ensemble(place: Path, members: Sequence[RewardModel], reduce: Reduce, coefficient: float) -> None:
    """Write the members' folders and `ensemble.json`, whole or not at all."""
    names = tuple(f"member-{number}" for number in range(len(members)))
    with appearing(place) as partial:
        for name, member in zip(names, members, strict=True):
            member.save(partial / name)
        about = AboutEnsemble(members=names, reduce=reduce, coefficient=coefficient)
        (partial / ENSEMBLE_NAME).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_reward(place: Path) -> RewardModel | RewardEnsemble:
    """What a `keel-train reward` run left in its `final` folder, one model or an ensemble."""
    path = place / ENSEMBLE_NAME
    if not path.is_file():
        return RewardModel.load(place)
    try:
        about = AboutEnsemble.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise TrainingError(f"{path}: not an ensemble's description: {error}") from error
    return RewardEnsemble.load([place / name for name in about.members], about.reduce, about.coefficient)
