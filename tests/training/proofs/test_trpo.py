"""TRPO on a table of logits, all of it exact: a step is within δ and improves; they find the optimum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.proofs.discrete import kl, random_table
from training.rl.trust_region import TrustRegionConfig, flat, kl_hessian_product, trust_region_step

X, Y, BETA = 4, 8, 0.5


def value(policy_XY: Tensor, reward_XY: Tensor, reference_XY: Tensor) -> Tensor:
    """E[r] - β KL(π ‖ π_ref), averaged over prompts."""
    return ((policy_XY.exp() * reward_XY).sum(-1) - BETA * kl(policy_XY, reference_XY)).mean()


@pytest.mark.parametrize("delta", [0.001, 0.02])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_step_is_within_delta_and_improves(delta: float, seed: int) -> None:
    reference_XY = random_table(X, Y, seed).log_softmax(-1)
    reward_XY = random_table(X, Y, seed + 100)
    logits_XY = reference_XY.clone().requires_grad_(True)
    config = TrustRegionConfig(max_kl=delta, damping=1e-6, cg_iterations=30, cg_tolerance=1e-12)
    best = float((BETA * (reference_XY + reward_XY / BETA).logsumexp(-1)).mean())
    values, steps = [float(value(reference_XY, reward_XY, reference_XY))], 0
    for _ in range(120):
        old_XY = logits_XY.detach().log_softmax(-1)
        before = float(value(old_XY, reward_XY, reference_XY))
        gain = value(logits_XY.log_softmax(-1), reward_XY, reference_XY)
        gradient_P = flat(torch.autograd.grad(gain, [logits_XY]))

        def fisher(vector_P: Tensor, old_XY: Tensor = old_XY) -> Tensor:
            return kl_hessian_product(kl(old_XY, logits_XY.log_softmax(-1)).mean(), [logits_XY], vector_P)

        def measure(_: Tensor, old_XY: Tensor = old_XY, before: float = before) -> tuple[float, float]:
            new_XY = logits_XY.detach().log_softmax(-1)
            growth = float(value(new_XY, reward_XY, reference_XY)) - before
            return growth, float(kl(old_XY, new_XY).mean())

        report = trust_region_step([logits_XY], gradient_P, fisher, measure, config)
        new_XY = logits_XY.detach().log_softmax(-1)
        assert float(kl(old_XY, new_XY).mean()) <= delta
        values.append(float(value(new_XY, reward_XY, reference_XY)))
        assert values[-1] > values[-2] if report.accepted else values[-1] == values[-2]
        steps += report.accepted
        if values[0] + 0.9 * (best - values[0]) <= values[-1]:
            break
    assert steps >= 2
    assert values[-1] >= values[0] + 0.9 * (best - values[0])


def test_the_first_steps_use_the_whole_region() -> None:
    """Far from the optimum the KL of a step is δ up to the curvature's change along it."""
    reference_XY = random_table(X, Y, 0).log_softmax(-1)
    reward_XY = random_table(X, Y, 100)
    logits_XY = reference_XY.clone().requires_grad_(True)
    gradient_P = flat(
        torch.autograd.grad(value(logits_XY.log_softmax(-1), reward_XY, reference_XY), [logits_XY])
    )

    def fisher(vector_P: Tensor) -> Tensor:
        return kl_hessian_product(kl(reference_XY, logits_XY.log_softmax(-1)).mean(), [logits_XY], vector_P)

    def measure(_: Tensor) -> tuple[float, float]:
        new_XY = logits_XY.detach().log_softmax(-1)
        return 1.0, float(kl(reference_XY, new_XY).mean()) * 0.9

    config = TrustRegionConfig(max_kl=1e-4, damping=1e-6, cg_iterations=30, cg_tolerance=1e-12)
    report = trust_region_step([logits_XY], gradient_P, fisher, measure, config)
    assert report.accepted
    assert report.kl / 0.9 == pytest.approx(1e-4, rel=0.1)
