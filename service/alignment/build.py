"""From a policy to the strategy that makes its replies."""

from __future__ import annotations

from policies.spec import PolicySpec
from service.alignment.rerank import Rerank
from service.alignment.rewards import make_reward
from service.alignment.strategy import Means, Strategy


class StrategyError(Exception):
    """A policy asks for a reply that can't be made this way; the message says why."""


def strategy_for(spec: PolicySpec, means: Means) -> Strategy | None:
    """How the policy's replies come about; None where its engine's own reply is the reply.

    Reranking comes first: what is criticised and revised is the chosen reply. Loads nothing. Raises
    `StrategyError`, and `RegistryError` for a reward model that isn't there.
    """
    strategy: Strategy | None = None
    if spec.rerank is not None:
        strategy = Rerank(spec.rerank, make_reward(spec.rerank, means), means)
    if spec.revise is not None:
        raise StrategyError(f"policy {spec.name!r}: 'revise' can't be served yet")
    return strategy
