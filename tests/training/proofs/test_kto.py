"""KTO on labels that come ten to one: what its weights repair, and what goes wrong without them.

Three replies, equally likely at first. What is wanted and what is not is distributed over them so that the
second is typical of unwanted replies (0.35 of the wanted, 0.65 of the unwanted ones), the third of wanted
ones (0.15 and 0.05), and labels of the second are common. Ethayarajh et al. 2024, equation 8, weigh the two
kinds of labels so that both count the same in total.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.proofs.discrete import descended, kl
from training.losses.preference import kto_loss, kto_reference_point, kto_weights

WANTED = torch.tensor([0.50, 0.35, 0.15], dtype=torch.float64)
UNWANTED = torch.tensor([0.30, 0.65, 0.05], dtype=torch.float64)
REFERENCE = torch.zeros(1, 3, dtype=torch.float64).log_softmax(-1)
BETA = 0.5


def trained(wanted: int, unwanted: int, weights: tuple[float, float], steps: int = 1_000) -> Tensor:
    """The policy's log-ratios [Y] after training on so many labels of each kind, in expectation."""

    def loss(policy: Tensor) -> Tensor:
        ratio_Y = (policy - REFERENCE)[0]
        point = kl(policy, REFERENCE)[0].detach()
        good, bad = (
            kto_loss(ratio_Y, torch.full((3,), label), point, BETA, *weights) for label in (True, False)
        )
        return (wanted * WANTED * good + unwanted * UNWANTED * bad).sum() / (weights[0] * wanted + unwanted)

    return (descended(loss, REFERENCE, steps, 1.0) - REFERENCE)[0]


def test_without_weights_the_many_wanted_labels_turn_the_order_around() -> None:
    ratio_Y = trained(10, 1, (1.0, 1.0))
    assert ratio_Y[1] > ratio_Y[2] + 0.5, "the commonly wanted reply gains, though it is unwanted more often"


def test_with_weights_the_unwanted_reply_falls_and_the_others_stay() -> None:
    ratio_Y = trained(10, 1, kto_weights(10, 1))
    assert ratio_Y[1] < -2
    assert ratio_Y[[0, 2]].min() > -0.5


def test_weighted_labels_train_exactly_as_balanced_ones() -> None:
    weighted, balanced = trained(10, 1, kto_weights(10, 1)), trained(1, 1, (1.0, 1.0))
    assert torch.allclose(weighted, balanced, atol=1e-9)


def test_weights_make_both_sides_weigh_the_same_and_need_both() -> None:
    for wanted, unwanted in ((10, 1), (1, 10), (7, 7)):
        first, second = kto_weights(wanted, unwanted)
        assert first * wanted == pytest.approx(second * unwanted)
        assert max(first, second) == 1
    with pytest.raises(ValueError, match="both labels"):
        kto_weights(5, 0)


def test_the_reference_point_is_no_negative_divergence_and_has_no_gradient() -> None:
    ratio = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert kto_reference_point(ratio).item() == 0
    assert kto_reference_point(-ratio).item() == 1
    assert not kto_reference_point(ratio).requires_grad
