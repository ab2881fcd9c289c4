"""Do ensembles and length control delay over-optimisation? Best of n against weak reward models.

The reward models are fitted to few pairs, so that there is something to over-optimise within n = 64. The
replies are those of the pool that came through the gateway; the choice among them is the gateway's own rule.
For each n it is averaged over all sets of n of a question's replies: with replies sorted by their score, the
i-th of P is the best of n in C(i - 1, n - 1) / C(P, n) of them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from pathlib import Path

import numpy as np
import torch

from training.bench.rerank.measure import POOL, Domain, Floats, pool_of
from training.bench.rerank.prepare import WEAK_PAIRS, weak_rewards
from training.demo.gold import gold_score
from training.evaluate.metrics import mean
from training.reward_model import RewardModel

SIZES = (1, 2, 4, 8, 16, 32, 64)
PENALTY = 1.0
"""Taken off the score for each 100 tokens, as `length_penalty`."""


def overoptimization(home: Path, domain: Domain, say: Callable[[str], None]) -> str:
    """A section of the page."""
    places = weak_rewards(home, say)
    prompts = domain.prompts()
    replies = pool_of(home / "replies", domain)
    asked = [(prompt, text) for prompt, texts in zip(prompts, replies, strict=True) for text in texts]
    gold_QP = np.array([gold_score(p, t) for p, t in asked]).reshape(-1, POOL)
    members = []
    for place in places:
        model = RewardModel.load(place)
        members.append(model.score([p for p, _ in asked], [t for _, t in asked]).double())
    scores_MN = torch.stack(members)
    tokens_N = torch.tensor([len(model.tokenizer(t)["input_ids"]) for _, t in asked])
    spread_N = scores_MN.std(dim=0, correction=0)
    choosers = {
        "one model": scores_MN[0],
        f"mean of {len(places)}": scores_MN.mean(dim=0),
        "mean - 1 std": scores_MN.mean(dim=0) - spread_N,
        "mean - 2 std": scores_MN.mean(dim=0) - 2 * spread_N,
        f"mean - 1 std, length_penalty {PENALTY:g}": scores_MN.mean(dim=0)
        - spread_N
        - PENALTY / 100 * tokens_N,
    }
    lines = ["## Over-optimisation", "", _told(domain, len(places)), ""]
    lines += [f"| gold, best of n by | {' | '.join(map(str, SIZES))} |", "|---" * (len(SIZES) + 1) + "|"]
    for name, chooser_N in choosers.items():
        chooser_QP = chooser_N.numpy().reshape(-1, POOL)
        figures = [mean(best_of(chooser_QP, gold_QP, n)) for n in SIZES]
        cells = [f"{f.value:.2f} [{f.low:.2f}, {f.high:.2f}]" for f in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(domain: Domain, count: int) -> str:
    return (
        f"{count} reward models fitted to {WEAK_PAIRS} pairs each ({domain.name} replies), members of an "
        "ensemble or one alone; gold of the best of n by each, over the same pool."
    )


def best_of(chooser_QP: Floats, worth_QP: Floats, n: int) -> Floats:
    """`[Q]`: the worth of the best of n by the chooser, over all sets of n of the P replies."""
    size = chooser_QP.shape[1]
    weight_P = np.array([comb(i, n - 1) / comb(size, n) for i in range(size)])
    ordered_QP = np.take_along_axis(worth_QP, chooser_QP.argsort(axis=1, kind="stable"), axis=1)
    return np.asarray(ordered_QP @ weight_P)
