"""One step's experience: rollouts, their scores, KL to the reference, values, advantages.

Everything that needs a pass over the replies is computed once here: the sampling policy's log-probabilities
come with the rollout, values as well where they share the trunk, the reference's take one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.data.preferences import Prompt
from training.errors import TrainingError
from training.models import Reference
from training.reward_model import RewardFunction
from training.rl.actor_critic import ActorCritic
from training.rl.advantages import explained_variance, gae, token_rewards, whiten
from training.rl.config import OnPolicyConfig
from training.rl.kl import kl_estimate
from training.rl.processes import ALONE, Processes
from training.rl.replies import reply_logprobs
from training.rl.rewards import checked_scores
from training.rl.rollout import Rollouts

Sampler = Callable[[Sequence[Prompt], int, int], Rollouts]
"""`(prompts, seed, weight_version) -> Rollouts` sampled from the policy as it is now."""


@dataclass(frozen=True, slots=True)
class Experience:
    """What an update learns from; tensors are [B, T], 0 beyond the replies."""

    rollouts: Rollouts
    mask_BT: Tensor
    logprobs_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    figures: dict[str, float]


def step_seed(seed: int, step: int) -> int:
    """One number for all chance of one step, so that a resumed run draws what an uninterrupted one draws."""
    return (seed * 1_000_003 + step) % 2**63


def prompts_of_step(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """Step `step`'s `count` prompts: the list in a new order each time it has been gone through."""
    chosen: list[Prompt] = []
    for place in range(step * count, (step + 1) * count):
        lap, index = divmod(place, len(prompts))
        if not chosen or index == 0:
            generator = torch.Generator().manual_seed(step_seed(seed, lap))
            order = torch.randperm(len(prompts), generator=generator).tolist()
        chosen.append(prompts[order[index]])
    return chosen


def collect(
    actor: ActorCritic,
    reference: Reference,
    reward: RewardFunction,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    config: OnPolicyConfig,
    *,
    step: int,
    kl_coef: float,
    processes: Processes = ALONE,
) -> Experience:
    """Sample, score and weigh one step's replies; each of the `processes` returns all of it."""
    rollouts = sampler(prompts, step_seed(config.seed, step), step)
    if rollouts.weight_version != step:
        raise TrainingError(
            f"replies were sampled from weights {rollouts.weight_version}, the policy has weights {step}"
        )
    scores_B = _scores(reward, rollouts, processes)
    penalised_B = scores_B - config.eos_penalty * (~rollouts.ended_B).float()
    if config.reward_clip is not None:
        penalised_B = penalised_B.clamp(-config.reward_clip, config.reward_clip)
    mask_BT, budget = rollouts.mask_BT, config.micro_batch_tokens
    temperature, half = config.sample.temperature, config.precision == "bf16"
    with torch.autocast(actor.device.type, torch.bfloat16, enabled=half):
        with reference.weights() as model:
            reference_BT = reply_logprobs(model, rollouts, temperature, budget, processes)
        if half:
            # Decoding rounds otherwise than a pass over the whole text does: the update's old
            # log-probabilities must come from the same arithmetic as its new ones.
            logprobs_BT = reply_logprobs(actor.policy, rollouts, temperature, budget, processes)
            rollouts = replace(rollouts, logprobs_BT=logprobs_BT)
    values_BT = rollouts.readout_BT
    if values_BT is None:
        values_BT = actor.values(rollouts, budget, processes)
    kl_BT = kl_estimate(rollouts.logprobs_BT, reference_BT, config.kl.estimator) * mask_BT
    rewards_BT = token_rewards(penalised_B, kl_BT, rollouts.lengths_B, kl_coef)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift=False)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.gamma, config.lam)
    figures = _figures(rollouts, scores_B, reference_BT, values_BT, returns_BT, kl_coef)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    return Experience(
        rollouts, mask_BT, rollouts.logprobs_BT, reference_BT, values_BT, advantages_BT, returns_BT, figures
    )


def _scores(reward: RewardFunction, rollouts: Rollouts, processes: Processes) -> Tensor:
    """The reward's scores, [B]; each process asks for its own rows."""
    own = list(processes.share(range(len(rollouts))))
    scores_B = torch.zeros(len(rollouts))
    if own:
        texts = [rollouts.texts[row] for row in own]
        scores_B[own] = checked_scores(reward, [rollouts.prompts[row] for row in own], texts)
    processes.add_up(scores_B)
    return scores_B


def _figures(
    rollouts: Rollouts,
    scores_B: Tensor,
    reference_BT: Tensor,
    values_BT: Tensor,
    returns_BT: Tensor,
    kl_coef: float,
) -> dict[str, float]:
    """What is told about a step's replies. `kl` is nats a reply (k1), `entropy` -log π of what was drawn."""
    mask_BT = rollouts.mask_BT
    logprobs_BT = rollouts.logprobs_BT
    kl_BT = (logprobs_BT - reference_BT) * mask_BT
    kl3_BT = kl_estimate(logprobs_BT, reference_BT, "k3") * mask_BT
    kl = float(kl_BT.sum(1).mean())
    return {
        "reward": float(scores_B.mean()),
        "reward_std": float(scores_B.std(correction=0)),
        "objective": float(scores_B.mean()) - kl_coef * kl,
        "kl": kl,
        "kl_k3": float(kl3_BT.sum(1).mean()),
        "kl_coef": kl_coef,
        "sampled_entropy": float(-logprobs_BT[mask_BT].mean()),
        "length": float(rollouts.lengths_B.float().mean()),
        "ended": float(rollouts.ended_B.float().mean()),
        "explained_variance": explained_variance(values_BT[mask_BT], returns_BT[mask_BT]),
        "value_mean": float(values_BT[mask_BT].mean()),
        "weight_version": float(rollouts.weight_version),
        "sampled_tokens": float(rollouts.tokens),
    }
