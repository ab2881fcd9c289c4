"""A trained reward model, served by the guard workers: how good is this reply to this conversation.

This module is light: the gateway reads a checkpoint's `reward.json` with it, and mixes what the workers
answer. The models, and torch with them, are in `guardrails.reward_torch`, which only a worker imports.

A model gives one standardised score per objective, z_k (mean 0, deviation 1 on its reference samples). With
weights w and the objectives' correlation R, the mix Σ w_k z_k / √(wᵀ R w) has deviation 1 as well; it is
training's `About.mix`, which a test compares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrails.servable import ServableSpec, folder_servable, is_path
from policies.alignment import RewardModels
from policies.errors import Problem
from policies.manifest import CheckpointError
from policies.registry import Registry, RegistryError

ABOUT_NAME = "reward.json"
ENSEMBLE_NAME = "ensemble.json"

Turn = tuple[str, str]
"""A message's role, one of system, user and assistant, and its text."""

Payload = tuple[tuple[Turn, ...], str]
"""What a worker is asked: a conversation, and the reply to it."""

Scores = tuple[tuple[float, ...], ...]
"""What it answers: for each member of the checkpoint, its objectives' standardised scores."""


class About(BaseModel):
    """`reward.json`. `mean` `[K]` and `covariance` `[K, K]` are of the raw scores."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["causal", "encoder"]
    objectives: tuple[str, ...] = Field(min_length=1)
    weights: dict[str, float]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    max_length: int

    def mixing(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        """What each standardised score is multiplied by, `[K]`; empty weights are the checkpoint's own."""
        chosen = weights or self.weights
        w = [chosen.get(name, 0.0) for name in self.objectives]
        sigma = [math.sqrt(self.covariance[k][k]) for k in range(len(w))]
        variance = sum(
            w[i] * w[j] * self.covariance[i][j] / (sigma[i] * sigma[j])
            for i in range(len(w))
            for j in range(len(w))
        )
        # Weights may point where the objectives, as correlated as they are, hardly vary at all.
        spread = math.sqrt(max(variance, 1e-6))
        return tuple(weight / spread for weight in w)


@dataclass(frozen=True, slots=True)
class RewardCheckpoint:
    """A reward checkpoint that workers can serve: one model, or the members of an ensemble."""

    servable: ServableSpec
    members: tuple[About, ...]


def members_of(folder: Path) -> tuple[Path, ...]:
    """The folders of the models in a checkpoint. Raises OSError, ValueError for a damaged one."""
    path = folder / ENSEMBLE_NAME
    if not path.is_file():
        return (folder,)
    names = json.loads(path.read_bytes())["members"]
    return tuple(folder / Path(str(name)).name for name in names)


def read_about(folder: Path) -> About:
    """A model's description. Raises OSError, ValueError (pydantic's too)."""
    return About.model_validate_json((folder / ABOUT_NAME).read_bytes())


def reward_checkpoint(model: str, registry: Registry) -> RewardCheckpoint:
    """The reward model called `model`, or in the folder of that path.

    Raises RegistryError or CheckpointError, which say what is wrong with it.
    """
    if is_path(model):
        folder = Path(model)
        if not folder.is_dir():
            raise CheckpointError(
                f"there is no folder {model!r}; give a checkpoint's name or a reward model's folder"
            )
        servable = folder_servable("reward", model, "guardrails.reward_torch:serve_folder")
    else:
        checkpoint = registry.resolve(model)
        if checkpoint.manifest.kind != "reward":
            raise CheckpointError(
                f"checkpoint {model!r} is of kind {checkpoint.manifest.kind!r}; what scores replies is of "
                "kind 'reward'"
            )
        folder = checkpoint.path
        servable = ServableSpec(
            f"{checkpoint.name}@{checkpoint.digest[:16]}",
            "guardrails.reward_torch:serve_checkpoint",
            {"root": str(registry.root), "ref": checkpoint.ref},
            cache=True,
        )
    try:
        members = tuple(read_about(member) for member in members_of(folder))
    except ValidationError as error:
        raise CheckpointError(f"{folder}: not a reward model's description: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: no reward model here, {ABOUT_NAME} can't be read ({error}); give what `keel-train "
            "reward` wrote"
        ) from error
    return RewardCheckpoint(servable, members)


def problems(spec: RewardModels, registry: Registry) -> Iterator[Problem]:
    """What is wrong with reward models and the weights for them; nothing is loaded."""
    for index, model in enumerate(spec.models):
        loc: tuple[str | int, ...] = ("model", index) if isinstance(spec.model, tuple) else ("model",)
        if isinstance(model, str):
            try:
                objectives = _common(reward_checkpoint(model, registry).members)
            except RegistryError as error:
                yield Problem(loc, str(error))
                continue
        else:
            objectives = model.objectives
        unknown = sorted(set(spec.reward) - set(objectives))
        if unknown:
            yield Problem(
                ("reward", unknown[0]),
                f"no objective of this reward model; it has: {', '.join(objectives)}",
            )


def _common(members: Sequence[About]) -> tuple[str, ...]:
    shared = set(members[0].objectives).intersection(*(member.objectives for member in members))
    return tuple(name for name in members[0].objectives if name in shared)
