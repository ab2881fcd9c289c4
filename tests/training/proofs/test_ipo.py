"""IPO stops at a margin of 1/(2β) where DPO's grows without end (Azar et al. 2023, section 5).

Where a reply always wins, the reward that explains it is infinite, and DPO's regularization has no hold on
it: the tilted distribution puts everything on the winner whatever β is. IPO's target is finite.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.proofs.discrete import descended, minimized, pairs_of, random_table
from training.losses.preference import PairLoss, pair_loss

REFERENCE = random_table(1, 2, seed=3).log_softmax(-1)
ALWAYS = torch.tensor([0]), torch.tensor([0]), torch.tensor([1])


def margin(policy_XY: Tensor) -> float:
    return pairs_of(policy_XY, REFERENCE, *ALWAYS).difference_B.item()


def loss_of(kind: PairLoss, beta: float, policy_XY: Tensor) -> Tensor:
    return pair_loss(kind, pairs_of(policy_XY, REFERENCE, *ALWAYS), beta).mean()


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5, 1.0])
def test_ipo_s_margin_is_one_over_two_beta(beta: float) -> None:
    found = minimized(lambda policy: loss_of("ipo", beta, policy), REFERENCE)
    assert margin(found) == pytest.approx(1 / (2 * beta), rel=1e-5)


def test_dpo_s_margin_keeps_growing_where_ipo_s_has_come_to_rest() -> None:
    beta, steps = 0.5, (30, 300, 3_000)
    dpo = [margin(descended(lambda p: loss_of("sigmoid", beta, p), REFERENCE, n, 0.5)) for n in steps]
    ipo = [margin(descended(lambda p: loss_of("ipo", beta, p), REFERENCE, n, 0.05)) for n in steps]
    assert dpo[0] + 2 < dpo[1] and dpo[1] + 2 < dpo[2], "each tenfold training adds the like again"
    assert ipo[1] == pytest.approx(1, rel=1e-6) and ipo[2] == pytest.approx(1, rel=1e-6)


def test_the_margin_is_the_mean_over_tokens_where_replies_have_several() -> None:
    """A reply of four tokens needs four times the log-ratio of one that has a single token."""
    lengths = torch.tensor([4.0], dtype=torch.float64)

    def loss(policy: Tensor) -> Tensor:
        pairs = pairs_of(policy, REFERENCE, *ALWAYS)
        longer = type(pairs)(
            pairs.chosen_B,
            pairs.rejected_B,
            pairs.reference_chosen_B,
            pairs.reference_rejected_B,
            lengths,
            lengths,
        )
        return pair_loss("ipo", longer, 0.5).mean()

    assert margin(minimized(loss, REFERENCE)) == pytest.approx(4, rel=1e-5)
