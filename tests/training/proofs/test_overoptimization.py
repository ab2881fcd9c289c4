"""Over-optimisation (Gao et al. 2022, arXiv:2210.10760) on a designed hack, and how an ensemble delays it.

A reply is three numbers. The first two are its quality. The third, the hackable one, is heavy-tailed: up to
2 it makes a reply better (as a little detail does), beyond that worse. Few preference pairs hold replies so
far out, so a reward network learns "more is better" and goes on so. Best-of-n against it: its own score
rises with n for ever, the gold score rises, turns over and falls. Networks trained on different resamples
agree where pairs were and differ in the tail, which is what worst-case and uncertainty-weighted scores see.

All networks are fitted with the losses that train reward models, 5 members for each of 20 seeds at once.
"""

from __future__ import annotations

from functools import cache
from math import comb, log

import pytest
import torch
from torch import Tensor

from training.losses.reward import Reduce, bradley_terry, combine

SEEDS, MEMBERS, PAIRS, WIDTH = 20, 5, 60, 16
POOL = 1 << 14
SIZES = tuple(4**k for k in range(7))


def sample(shape: tuple[int, ...], seed: int) -> Tensor:
    """Replies `[..., 3]`: two normal numbers, and one with Student's t tails (4 degrees of freedom)."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn((*shape, 7), generator=generator)
    tail = normal[..., 2] / (normal[..., 3:].square().mean(dim=-1)).sqrt()
    return torch.cat([normal[..., :2], tail.unsqueeze(-1)], dim=-1)


def gold(reply: Tensor) -> Tensor:
    hack = reply[..., 2]
    return reply[..., 0] + 0.5 * reply[..., 1] + hack - 4 * (hack - 2).clamp(min=0)


class Networks:
    """SEEDS × MEMBERS one-layer networks `[S, M]`, trained side by side without touching one another."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def weights(*shape: int, fan_in: int) -> Tensor:
            drawn = torch.randn((SEEDS, MEMBERS, *shape), generator=generator) / fan_in**0.5
            return drawn.requires_grad_(True)

        self.parameters = [
            weights(3, WIDTH, fan_in=3),
            weights(1, WIDTH, fan_in=1),
            weights(WIDTH, 1, fan_in=WIDTH),
        ]

    def __call__(self, replies_SMN3: Tensor) -> Tensor:
        """Rewards `[S, M, N]`."""
        inner, bias, outer = self.parameters
        return (torch.relu(replies_SMN3 @ inner + bias) @ outer).squeeze(-1)

    def of_seed(self, seed: int, replies_N3: Tensor) -> Tensor:
        """That seed's members, `[M, N]`."""
        inner, bias, outer = (p[seed] for p in self.parameters)
        return (torch.relu(replies_N3 @ inner + bias) @ outer).squeeze(-1)


@cache
def trained() -> tuple[Networks, float]:
    """Fitted to noisy pairs, each member on its own bootstrap resample; and their training accuracy."""
    first, second = (torch.stack([sample((PAIRS,), 2 * s + k) for s in range(SEEDS)]) for k in (0, 1))
    generator = torch.Generator().manual_seed(1)
    won = torch.rand((SEEDS, PAIRS), generator=generator) < torch.sigmoid(2 * (gold(first) - gold(second)))
    better, worse = (torch.where(won.unsqueeze(-1), a, b) for a, b in ((first, second), (second, first)))
    picks = torch.randint(PAIRS, (SEEDS, MEMBERS, PAIRS), generator=generator)
    seeds = torch.arange(SEEDS)[:, None, None]
    better, worse = better[seeds, picks], worse[seeds, picks]
    networks = Networks()
    optimizer = torch.optim.Adam(networks.parameters, lr=0.02)
    for _ in range(250):
        difference = networks(better) - networks(worse)
        decay = sum(p.square().sum() for p in networks.parameters)
        loss = bradley_terry(difference.flatten()).sum() / PAIRS + 1e-3 * decay
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return networks, float((networks(better) > networks(worse)).float().mean())


def best_of_n(score_N: Tensor, value_N: Tensor) -> list[float]:
    """The expected value of the best of n by score, for each n of SIZES.

    Over all subsets of the pool: the reply with r worse ones is the best of C(r, n - 1) of its C(N, n).
    """
    ordered_N = value_N[score_N.argsort()].double()
    means = []
    for n in SIZES:
        worse_N = torch.arange(len(ordered_N), dtype=torch.float64)
        # C(r, n-1) / C(N, n), by logarithms of gamma functions.
        log_ways_N = torch.lgamma(worse_N + 1) - torch.lgamma((worse_N - n + 2).clamp(min=1))
        total = torch.lgamma(torch.tensor(len(ordered_N) + 1.0, dtype=torch.float64))
        total = total - torch.lgamma(torch.tensor(len(ordered_N) - n + 1.0, dtype=torch.float64)) - log(n)
        chance_N = torch.where(worse_N >= n - 1, (log_ways_N - total).exp(), torch.zeros(()).double())
        means.append(float((chance_N * ordered_N).sum()))
    return means


@cache
def members_scores(seed: int) -> tuple[Tensor, Tensor]:
    """(scores `[M, N]`, gold `[N]`) of the seed's own pool of replies; scores are normalised per member."""
    networks, _ = trained()
    pool_N3 = sample((POOL,), 10_000 + seed)
    with torch.no_grad():
        rewards_MN = networks.of_seed(seed, pool_N3)
    centred_MN = rewards_MN - rewards_MN.mean(dim=1, keepdim=True)
    return centred_MN / rewards_MN.std(dim=1, keepdim=True), gold(pool_N3)


@cache
def single() -> tuple[Tensor, Tensor]:
    """(proxy, gold) `[S, len(SIZES)]` of best-of-n under one network: the mean over the seed's members."""
    proxies, golds = [], []
    for seed in range(SEEDS):
        rewards_MN, gold_N = members_scores(seed)
        proxies.append(torch.tensor([best_of_n(r_N, r_N) for r_N in rewards_MN]).mean(dim=0))
        golds.append(torch.tensor([best_of_n(r_N, gold_N) for r_N in rewards_MN]).mean(dim=0))
    return torch.stack(proxies), torch.stack(golds)


def ensemble(reading: Reduce) -> Tensor:
    """Gold `[S, len(SIZES)]` of best-of-n under the seed's members, read as one."""
    pools = [members_scores(seed) for seed in range(SEEDS)]
    return torch.tensor([best_of_n(combine(r_MN, reading), gold_N) for r_MN, gold_N in pools])


def test_the_estimator_is_the_mean_over_all_subsets() -> None:
    score_N, value_N = torch.rand(POOL, generator=torch.Generator().manual_seed(0)), torch.ones(POOL)
    assert best_of_n(score_N, value_N) == pytest.approx([1.0] * len(SIZES), abs=1e-6)
    expected = [n / (n + 1) for n in SIZES]  # the greatest of n uniform numbers
    assert best_of_n(score_N, score_N) == pytest.approx(expected, abs=0.01)


def test_the_networks_learnt_their_pairs() -> None:
    assert trained()[1] > 0.85


def test_the_proxy_rises_for_ever_and_the_gold_score_turns_over() -> None:
    proxy_SK, gold_SK = single()
    assert bool((proxy_SK.diff(dim=1) > 0).all())
    mean_K = gold_SK.mean(dim=0)
    peak = int(mean_K.argmax())
    assert 0 < peak < len(SIZES) - 2
    assert mean_K[peak] > mean_K[0] + 1.5
    assert paired_t(gold_SK[:, peak] - gold_SK[:, -1]) > 2.54  # p = 0.01, one-sided, 19 degrees of freedom
    assert mean_K[-1] < mean_K[0]  # worse than not having optimised at all


@pytest.mark.parametrize("reading", ["worst", "uncertainty"])
def test_the_ensemble_delays_it(reading: Reduce) -> None:
    """Paired over 20 seeds, at the strongest optimisation: n = 4096, log n - (n - 1)/n = 7.3 nats."""
    single_SK, ensemble_SK = single()[1], ensemble(reading)
    gain_S = ensemble_SK[:, -1] - single_SK[:, -1]
    assert sign_test(gain_S) < 0.01
    assert paired_t(gain_S) > 2.54
    assert int(ensemble_SK.mean(dim=0).argmax()) > int(single_SK.mean(dim=0).argmax())


def paired_t(gain_S: Tensor) -> float:
    return float(gain_S.mean() / gain_S.std() * len(gain_S) ** 0.5)


def sign_test(gain_S: Tensor) -> float:
    """One-sided: how likely so many positive gains are when either sign is equally likely."""
    wins = int((gain_S > 0).sum())
    return sum(comb(len(gain_S), k) for k in range(wins, len(gain_S) + 1)) / 2 ** len(gain_S)
