"""From a policy to the strategy that makes its replies."""

from __future__ import annotations

from policies.spec import PolicySpec
from service.alignment.blockwise import Blockwise
from service.alignment.rerank import Rerank
from service.alignment.revise import Revise, Rewards
from service.alignment.rewards import make_reward
from service.alignment.strategy import Means, Single, Strategy


class StrategyError(Exception):
    """A policy asks for a reply that can't be made this way; the message says why."""


def strategy_for(spec: PolicySpec, means: Means) -> Strategy | None:
    """How the policy's replies come about; None where its engine's own reply is the reply.

    Reranking comes first: what is criticised and revised is the chosen reply. Loads nothing. Raises
    `StrategyError`, `RegistryError` for a reward model that isn't there, and `PolicyError` for a constitution
    that can't be read.
    """
    strategy: Strategy | None = None
    rewards: Rewards | None = None
    if spec.rerank is not None:
        method = Blockwise if spec.rerank.method == "blockwise" else Rerank
        reward = make_reward(spec.rerank, means.registry, means.runner, means.engines)
        rerank = method(spec.rerank, reward, means)
        strategy, rewards = rerank, rerank.rewards
    if spec.revise is not None:
        strategy = Revise(spec.revise, strategy or Single(), means, rewards)
    return strategy
