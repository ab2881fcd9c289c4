"""PPO's losses as functions of tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.losses.policy_gradient import clipped_policy_loss, clipped_value_loss, token_logprobs


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logp = logits.log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.7])
def test_token_logprobs_and_their_gradient_are_autograds(entropy_weight: float) -> None:
    targets, weights = torch.tensor([0, 5, 3]), normal(3, seed=1)
    gradients = []
    for function in (plain, token_logprobs):
        logits = normal(3, 7).requires_grad_(True)
        logprobs, entropy = function(logits, targets)
        ((logprobs * weights).sum() + entropy_weight * (entropy * weights).sum()).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        gradients.append((logprobs.detach(), entropy.detach(), logits.grad))
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_token_that_is_ruled_out_has_no_part_in_the_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([1]))
    (logprobs + entropy).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(entropy, torch.log(torch.tensor([2.0])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_clip_takes_the_gain_away_and_leaves_the_loss() -> None:
    """Where the policy already went the advantage's way beyond the clip, there is no gradient left."""
    old = torch.zeros(4)
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)  # ratios 1.65 and 0.61
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    clipped_policy_loss(new, old, advantages, clip=0.2).sum().backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None
    assert new.grad[0] == 0
    assert new.grad[3] == 0
    torch.testing.assert_close(new.grad[1:3], torch.tensor([-0.5, 0.5]).exp() * torch.tensor([-1.0, 1.0]))


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    logprobs = normal(5).requires_grad_(True)
    advantages = normal(5, seed=2)
    clipped_policy_loss(logprobs, logprobs.detach(), advantages, 0.2).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_value_loss() -> None:
    values, old, returns = torch.tensor([2.0, 1.1]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])
    assert clipped_value_loss(values, old, returns, None).tolist() == pytest.approx([0.5, 1.805])
    # The first has moved further than 0.2: what counts is how far 1.2 is from 3.
    assert clipped_value_loss(values, old, returns, 0.2).tolist() == pytest.approx([1.62, 1.805])
