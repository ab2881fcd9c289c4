"""Active learning: what is picked, and that asking about it teaches more than asking at random."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from training.active import Candidate, candidates_of, disagreement, pick, reply_diversity, select
from training.data.preferences import Prompt, as_prompt
from training.errors import TrainingError
from training.losses.reward import bradley_terry
from training.reward_model_ensemble import RewardEnsemble

PROMPT = as_prompt("Which one?")


def scorer(values: dict[str, float]) -> object:
    def score(prompts: list[Prompt], replies: list[str]) -> Tensor:
        return torch.tensor([values[reply] for reply in replies])

    return score


def ensemble(*members: dict[str, float]) -> RewardEnsemble:
    return RewardEnsemble(tuple(scorer(m) for m in members))  # type: ignore[arg-type]


def test_members_disagree_on_differences_and_not_on_shifts() -> None:
    shifted = ensemble({"a": 0.0, "b": 1.0}, {"a": 5.0, "b": 6.0})
    assert disagreement(shifted, [Candidate(PROMPT, "a", "b")]).item() == pytest.approx(0.0)
    turned = ensemble({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.0})
    expected = (torch.sigmoid(torch.tensor(1.0)) - 0.5).item()
    assert disagreement(turned, [Candidate(PROMPT, "a", "b")]).item() == pytest.approx(expected)


def test_every_two_different_replies_are_a_candidate_once() -> None:
    found = [(c.first, c.second) for c in candidates_of(PROMPT, ["a", "b", "a", "c"])]
    assert found == [("a", "b"), ("a", "c"), ("b", "c")]


def test_replies_without_shared_words_are_diverse() -> None:
    assert reply_diversity(["it is four", "it is four"]) == pytest.approx(0.0, abs=1e-6)
    assert reply_diversity(["it is four", "green whales sing"]) > 0.9
    assert reply_diversity(["alone"]) == 0.0


def test_the_unsure_pair_is_picked_first() -> None:
    unsure = ensemble({"a": 0, "b": 1, "c": 0, "d": 3}, {"a": 0, "b": -1, "c": 0, "d": 3})
    chosen = select(unsure, [Candidate(PROMPT, "c", "d"), Candidate(PROMPT, "a", "b")], 1)
    assert (chosen[0].candidate.first, chosen[0].candidate.second) == ("a", "b")
    with pytest.raises(TrainingError, match="3 pairs were asked for"):
        select(unsure, [Candidate(PROMPT, "a", "b")], 3)


def test_a_batch_does_not_ask_the_same_thing_twice() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    unsure = np.array([1.0, 0.99, 0.9])
    assert [index for index, _ in pick(unsure, features, 2, diversity=0.0)] == [0, 1]
    assert [index for index, _ in pick(unsure, features, 2, diversity=5.0)] == [0, 2]


DIMENSIONS, POOL, START, BATCH, ROUNDS, MEMBERS = 16, 240, 12, 8, 4, 6


def fit(difference_PD: Tensor, seed: int) -> Tensor:
    """MEMBERS linear rewards `[M, D]` by ridge Bradley–Terry, each on its own resample of the pairs."""
    generator = torch.Generator().manual_seed(seed)
    picks_MP = torch.randint(len(difference_PD), (MEMBERS, len(difference_PD)), generator=generator)
    weight_MD = torch.zeros((MEMBERS, DIMENSIONS), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight_MD], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        margins_MP = (difference_PD[picks_MP] * weight_MD[:, None]).sum(dim=-1)
        loss = bradley_terry(margins_MP.flatten()).sum() + 0.1 * weight_MD.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weight_MD.detach()


def accuracy_after(seed: int, active: bool) -> float:
    """Accuracy on new pairs after ROUNDS batches of labels, chosen actively or at random.

    Pairs differ along directions of very different spread, as topics of different frequency do.
    """
    generator = torch.Generator().manual_seed(seed)
    spread_D = torch.logspace(0, -1.5, DIMENSIONS, dtype=torch.float64)
    truth_D = torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64) * 3
    pool_CD, test_CD = (
        torch.randn((n, DIMENSIONS), generator=generator, dtype=torch.float64) * spread_D
        for n in (POOL, 1000)
    )
    noise_C = torch.rand(POOL, generator=generator, dtype=torch.float64)
    sign_C = torch.where(noise_C < torch.sigmoid(2 * pool_CD @ truth_D), 1.0, -1.0).double()
    known = list(range(START))
    chance = np.random.default_rng(seed)
    for round_ in range(ROUNDS):
        open_ = [i for i in range(POOL) if i not in set(known)]
        if active:
            weight_MD = fit(pool_CD[known] * sign_C[known, None], seed * 100 + round_)
            unsure_C = torch.sigmoid(weight_MD @ pool_CD[open_].T).std(dim=0, unbiased=False).numpy()
            unit_CD = torch.nn.functional.normalize(pool_CD[open_], dim=1).numpy()
            chosen = [index for index, _ in pick(unsure_C, unit_CD, BATCH, diversity=0.5)]
        else:
            chosen = list(chance.choice(len(open_), BATCH, replace=False))
        known += [open_[index] for index in chosen]
    weight_D = fit(pool_CD[known] * sign_C[known, None], seed).mean(dim=0)
    return float(((test_CD @ weight_D > 0) == (test_CD @ truth_D > 0)).double().mean())


def test_asking_where_the_ensemble_disagrees_beats_asking_at_random() -> None:
    """Paired over 20 seeds, the same pool and the same first labels."""
    gains = np.array([accuracy_after(s, active=True) - accuracy_after(s, active=False) for s in range(20)])
    wins = int((gains > 0).sum())
    assert sum(comb(20, k) for k in range(wins, 21)) / 2**20 < 0.05
    assert gains.mean() > 2 * gains.std(ddof=1) / 20**0.5
