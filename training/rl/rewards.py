"""What replies are scored by: reward models on disk, or a rule that needs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from training.config import Config
from training.data.preferences import Prompt
from training.errors import TrainingError
from training.reward_model import RewardFunction, RewardModel
from training.reward_model_ensemble import RewardEnsemble
from training.rl.processes import on_own_device

Rule = Literal["brevity"]


class RewardSource(Config):
    """`paths` of reward models (several are an ensemble, reduced by `reduce`), or a `rule`."""

    paths: tuple[str, ...] = ()
    reduce: Literal["mean", "worst", "uncertainty"] = "mean"
    coefficient: float = Field(default=1.0, ge=0)
    rule: Rule | None = None

    @model_validator(mode="after")
    def _one(self) -> RewardSource:
        if bool(self.paths) == (self.rule is not None):
            raise ValueError("give either paths of reward models or a rule")
        return self


def brevity(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    """-1 for every ten words, and -1 for an empty reply: a reward that needs no model and is easily seen."""
    return torch.tensor([-len(reply.split()) / 10 if reply.strip() else -1.0 for reply in replies])


_RULES: dict[Rule, RewardFunction] = {"brevity": brevity}


def load_reward(source: RewardSource) -> RewardFunction:
    """The reward function that a config names; raises TrainingError for a folder that holds none."""
    if source.rule is not None:
        return _RULES[source.rule]
    members = [RewardModel.load(Path(path)) for path in source.paths]
    for member in members:
        on_own_device(member.model)
    if len(members) == 1:
        return members[0]
    return RewardEnsemble(tuple(members), source.reduce, source.coefficient)


def checked_scores(reward: Callable[..., Tensor], prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
    """The reward's scores as float32 [B] on the CPU; raises TrainingError for a wrong count or NaN."""
    scores_B = torch.as_tensor(reward(prompts, texts)).detach().float().cpu().flatten()
    if len(scores_B) != len(texts):
        raise TrainingError(f"the reward function returned {len(scores_B)} scores for {len(texts)} replies")
    if not bool(scores_B.isfinite().all()):
        row = int((~scores_B.isfinite()).nonzero()[0])
        raise TrainingError(f"the reward of reply {row} is {scores_B[row].item()}: {texts[row][:200]!r}")
    return scores_B
