"""The reward losses against their formulas, and an ensemble's reductions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from training.losses.reward import (
    bradley_terry,
    combine,
    label_loss,
    margin_optimum,
    per_element,
    score_loss,
)

DIFFERENCES = torch.tensor([-2.0, 0.0, 0.5, 30.0, -200.0])


def test_bradley_terry_is_the_negative_log_likelihood_and_stays_finite() -> None:
    loss = bradley_terry(DIFFERENCES)
    assert torch.allclose(loss[:3], -torch.log(torch.sigmoid(DIFFERENCES[:3])))
    assert loss[4] == pytest.approx(200.0)
    assert torch.isfinite(loss).all()


def test_a_margin_must_be_exceeded() -> None:
    margin = torch.full((5,), 1.5)
    assert torch.allclose(bradley_terry(DIFFERENCES, margin), -logsigmoid(DIFFERENCES - 1.5))
    assert bradley_terry(torch.tensor([1.5]), torch.tensor([1.5])).item() == pytest.approx(math.log(2))


def test_a_soft_label_weights_both_orders_and_one_half_has_no_preference() -> None:
    soft = torch.full((5,), 0.5)
    assert torch.allclose(bradley_terry(DIFFERENCES, soft_P=soft), bradley_terry(-DIFFERENCES, soft_P=soft))
    certain = bradley_terry(DIFFERENCES, soft_P=torch.ones(5))
    assert torch.equal(certain, bradley_terry(DIFFERENCES))


@pytest.mark.parametrize("probability", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_the_closed_form_is_where_the_loss_with_a_margin_is_least(probability: float, margin: float) -> None:
    p, m = torch.tensor([probability], dtype=torch.float64), torch.tensor([margin], dtype=torch.float64)
    best = margin_optimum(p, m)
    at = bradley_terry(best, m, p)
    for step in (-0.01, 0.01):
        assert bradley_terry(best + step, m, p) > at
    if margin == 0:
        assert best.item() == pytest.approx(math.log(probability / (1 - probability)))


def test_an_elements_pairs_share_its_weight() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0, 5.0])
    assert per_element(losses, torch.tensor([0, 0, 0, 2]), 3).tolist() == [3.0, 0.0, 5.0]


def test_pointwise_losses() -> None:
    rewards = torch.tensor([2.0, -1.0])
    assert torch.allclose(
        label_loss(rewards, torch.tensor([1.0, 0.0])), -logsigmoid(torch.tensor([2.0, 1.0]))
    )
    assert score_loss(rewards, torch.tensor([0.0, 1.0])).tolist() == [2.0, 2.0]


def test_combining_members() -> None:
    members = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    assert combine(members, "mean").tolist() == [2.0, 4.0]
    assert combine(members, "worst").tolist() == [1.0, 4.0]
    assert combine(members, "uncertainty", 2.0).tolist() == [0.0, 4.0]
