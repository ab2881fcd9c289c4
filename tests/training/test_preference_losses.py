"""What the preference losses promise beside their minima: refusals, symmetries, numbers worked by hand."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from training.losses.preference import (
    LOGIT_LOSSES,
    SORTED_LOSSES,
    PairLogprobs,
    PairLoss,
    kto_loss,
    orpo_loss,
    pair_loss,
)

ALL_LOSSES = get_args(PairLoss)


def pairs(difference: float) -> PairLogprobs:
    """One pair whose log-ratios are half of the difference up and half of it down."""

    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, requires_grad=True)

    return PairLogprobs(one(-10 + difference / 2), one(-12 - difference / 2), one(-10.0), one(-12.0))


@pytest.mark.parametrize("kind", [kind for kind in ALL_LOSSES if kind not in ("apo_down", "discopop")])
def test_every_loss_wants_the_chosen_reply_to_gain_on_the_rejected_one(kind: PairLoss) -> None:
    smoothing = 0.1 if kind == "exo_pair" else 0.0
    start = pairs(0.0)
    pair_loss(kind, start, 0.5, label_smoothing=smoothing).sum().backward()
    assert start.chosen_B.grad is not None and start.rejected_B.grad is not None
    assert start.chosen_B.grad.item() < 0 < start.rejected_B.grad.item()


def test_apo_down_lowers_both_and_the_rejected_one_more() -> None:
    start = pairs(0.0)
    pair_loss("apo_down", start, 0.5).sum().backward()
    assert start.chosen_B.grad is not None and start.rejected_B.grad is not None
    assert start.chosen_B.grad.item() == pytest.approx(0), "both terms pull at the start"
    later = pairs(2.0)
    pair_loss("apo_down", later, 0.5).sum().backward()
    assert later.chosen_B.grad is not None and later.rejected_B.grad is not None
    assert 0 < later.chosen_B.grad.item() < later.rejected_B.grad.item()


def test_discopop_first_pulls_the_wrong_way() -> None:
    """It is not convex: from δ = 0 its loss rises before it falls, which is its authors' finding too."""
    values = [pair_loss("discopop", pairs(difference), 0.5).item() for difference in (0.0, 0.1, 2.0)]
    assert values[1] > values[0] > values[2]


@pytest.mark.parametrize(
    ("kind", "expected"), [("sigmoid", 0.313262), ("hinge", 0.0), ("ipo", 1.0), ("sppo_hard", 0.0)]
)
def test_values_worked_by_hand(kind: PairLoss, expected: float) -> None:
    """β = 0.5, δ = 2: σ's logit is 1, the hinge is met, IPO's and SPPO's goals are 1."""
    assert pair_loss(kind, pairs(2.0), 0.5).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in ALL_LOSSES if kind not in SORTED_LOSSES])
def test_a_label_of_one_half_knows_no_side(kind: PairLoss) -> None:
    smoothing = 0.1 if kind == "exo_pair" else 0.0
    half = torch.tensor([0.5], dtype=torch.float64)
    one = pair_loss(kind, pairs(1.5), 0.5, label_smoothing=smoothing, soft_B=half)
    other = pair_loss(kind, pairs(1.5).exchanged(), 0.5, label_smoothing=smoothing, soft_B=half)
    assert one.item() == pytest.approx(other.item())


@pytest.mark.parametrize("kind", sorted(LOGIT_LOSSES))
def test_a_margin_is_taken_off_the_reward(kind: PairLoss) -> None:
    margin = torch.tensor([0.5], dtype=torch.float64)
    with_margin = pair_loss(kind, pairs(2.0), 0.5, margin_B=margin, label_smoothing=0.0)
    assert with_margin.item() == pytest.approx(pair_loss(kind, pairs(1.0), 0.5).item())


def test_combinations_that_mean_nothing_are_refused() -> None:
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="takes no margins"):
        pair_loss("ipo", pairs(1.0), 0.5, margin_B=one)
    with pytest.raises(ValueError, match="takes no soft labels"):
        pair_loss("aot", pairs(1.0), 0.5, soft_B=one)
    with pytest.raises(ValueError, match="unknown loss"):
        pair_loss("dpo", pairs(1.0), 0.5)  # type: ignore[arg-type]


def test_kto_saturates_for_wanted_and_unwanted_replies_alike() -> None:
    ratios = torch.tensor([-50.0, 0.0, 50.0])
    wanted = kto_loss(ratios, torch.ones(3, dtype=torch.bool), torch.tensor(0.0), 1.0, 2.0, 1.0)
    unwanted = kto_loss(ratios, torch.zeros(3, dtype=torch.bool), torch.tensor(0.0), 1.0, 1.0, 3.0)
    assert wanted.tolist() == pytest.approx([2.0, 1.0, 0.0])
    assert unwanted.tolist() == pytest.approx([0.0, 1.5, 3.0])


def test_orpo_stays_finite_for_replies_that_are_all_but_certain_or_impossible() -> None:
    chosen = torch.tensor([-1e-4, -40.0], requires_grad=True)
    loss, odds = orpo_loss(chosen, torch.tensor([-40.0, -1e-4]), torch.tensor(0.0), 1.0)
    loss.backward()
    assert odds.isfinite().all() and loss.isfinite() and chosen.grad is not None
    assert chosen.grad.isfinite().all()
