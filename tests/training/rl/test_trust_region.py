"""The trust region on problems whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.rl.trust_region import (
    TrustRegionConfig,
    assign,
    conjugate_gradient,
    flat,
    kl_hessian_product,
    trust_region_step,
)


def positive(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_solves_in_as_many_iterations_as_there_are_unknowns() -> None:
    matrix, target = positive(6, 0), torch.arange(6, dtype=torch.float64)
    solution, residual = conjugate_gradient(lambda v: matrix @ v, target, 6, 0.0)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target))
    assert residual < 1e-8
    few, residual = conjugate_gradient(lambda v: matrix @ v, target, 2, 0.0)
    assert residual == pytest.approx(float((matrix @ few - target).norm() / target.norm()), rel=1e-6)


def test_the_kls_hessian_is_the_fisher_matrix() -> None:
    """For a softmax over logits θ it is diag(p) - p pᵀ."""
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    p = logits.detach().softmax(0)
    vector = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    kl = (p * (p.log() - logits.log_softmax(0))).sum()
    expected = (torch.diag(p) - p[:, None] * p) @ vector
    torch.testing.assert_close(kl_hessian_product(kl, [logits], vector), expected)


def test_a_quadratic_is_left_on_the_regions_border() -> None:
    """Linear objective and exactly quadratic KL: the whole step is taken, and lies at KL = δ."""
    parameters = [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    matrix, gradient = positive(6, 1), torch.ones(6, dtype=torch.float64)
    config = TrustRegionConfig(max_kl=0.02, damping=0.0)

    def measure(old: Tensor) -> tuple[float, float]:
        step = flat(parameters) - old
        return float(gradient @ step), float(0.5 * step @ matrix @ step) * (1 - 1e-9)

    report = trust_region_step(parameters, gradient, lambda v: matrix @ v, measure, config)
    assert report.accepted
    assert report.backtracks == 0
    assert report.kl == pytest.approx(0.02)
    assert report.improvement == pytest.approx(report.expected)
    direction = torch.linalg.solve(matrix, gradient)
    torch.testing.assert_close(flat(parameters) / flat(parameters).norm(), direction / direction.norm())


def test_the_step_is_shortened_until_what_is_measured_fits() -> None:
    parameters, gradient = [torch.zeros(3, dtype=torch.float64)], torch.ones(3, dtype=torch.float64)
    config = TrustRegionConfig(max_kl=0.01, damping=0.0)

    def measure(old: Tensor) -> tuple[float, float]:
        """The true KL grows five times as fast as its quadratic model says."""
        step = flat(parameters) - old
        return float(step.sum()), float(2.5 * step @ step)

    report = trust_region_step(parameters, gradient, lambda v: v, measure, config)
    assert report.accepted
    assert report.backtracks == 2
    assert report.kl <= 0.01


def test_where_nothing_improves_nothing_changes() -> None:
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    parameters = [start.clone()]
    report = trust_region_step(
        parameters, torch.ones_like(start), lambda v: v, lambda old: (-1.0, 0.0), TrustRegionConfig()
    )
    assert not report.accepted
    assert torch.equal(parameters[0], start)
    # Without a gradient there is no direction.
    none = trust_region_step(
        parameters, torch.zeros_like(start), lambda v: v, lambda old: (1.0, 0.0), TrustRegionConfig()
    )
    assert not none.accepted


def test_flat_and_assign_are_inverse() -> None:
    tensors = [torch.arange(4.0).view(2, 2), torch.arange(3.0)]
    copies = [torch.zeros_like(tensor) for tensor in tensors]
    assign(copies, flat(tensors))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
