"""The natural-gradient step within a KL ball: conjugate gradient, then a line search that measures.

    maximise L(θ)  subject to  KL(π_old ‖ π_θ) ≤ δ

To first order L is gᵀs and to second order the KL is ½ sᵀFs with F the Fisher matrix, so the step is along
F⁻¹g, scaled to √(2δ / gᵀF⁻¹g) (Schulman et al. 2015, arXiv:1502.05477, section 6 and appendix C). F is never
formed: conjugate gradient needs only Fv. Since both are approximations, the step is then halved until the
*measured* KL is within δ and L has grown; if it never is, nothing changes.

Vectors are flat, [P], over a list of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from training.config import Config

Product = Callable[[Tensor], Tensor]


class TrustRegionConfig(Config):
    """`max_kl` is δ, the mean over reply tokens, in nats. `damping` is added to F's diagonal."""

    max_kl: float = Field(default=0.01, gt=0)
    damping: float = Field(default=0.1, ge=0)
    cg_iterations: int = Field(default=10, ge=1)
    cg_tolerance: float = Field(default=1e-8, ge=0)
    backtracks: int = Field(default=10, ge=1)
    backtrack: float = Field(default=0.5, gt=0, lt=1)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. A refused one has kl and improvement 0, and left the parameters as they were."""

    accepted: bool
    kl: float
    improvement: float
    expected: float
    backtracks: int
    residual: float


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector [P] of all their numbers."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector_P: Tensor) -> None:
    """Write the vector's numbers into the parameters."""
    start = 0
    for parameter in parameters:
        parameter.copy_(vector_P[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()


def kl_hessian_product(kl: Tensor, parameters: Sequence[Tensor], vector_P: Tensor) -> Tensor:
    """H v for the Hessian H of `kl` [] by a second backward pass (Pearlmutter 1994).

    At π_θ = π_old, H of KL(π_old ‖ π_θ) is the Fisher matrix. A parameter that has no part in it gets 0.
    """
    gradients = torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True)
    return flat(torch.autograd.grad(flat(gradients) @ vector_P, parameters, materialize_grads=True))


def conjugate_gradient(
    product: Product, target_P: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, float]:
    """(x, |Ax - b| / |b|) with A x ≈ b for a symmetric positive A given by its product (Hestenes 1952)."""
    x_P = torch.zeros_like(target_P)
    residual_P = target_P.clone()
    direction_P = target_P.clone()
    squared = residual_P @ residual_P
    goal = tolerance * squared
    for _ in range(iterations):
        if squared <= goal:
            break
        product_P = product(direction_P)
        step = squared / (direction_P @ product_P)
        x_P += step * direction_P
        residual_P -= step * product_P
        following = residual_P @ residual_P
        direction_P = residual_P + (following / squared) * direction_P
        squared = following
    scale = target_P.norm().clamp(min=1e-30)
    return x_P, float(residual_P.norm() / scale)


def trust_region_step(
    parameters: Sequence[Tensor],
    gradient_P: Tensor,
    fisher: Product,
    measure: Callable[[Tensor], tuple[float, float]],
    config: TrustRegionConfig,
) -> StepReport:
    """Move the parameters along the natural gradient, at most δ far.

    `gradient_P` is that of L, `fisher(v)` is Fv without damping, and `measure(old_P)` returns (growth of L,
    KL from the old policy) of the parameters as they then are; it may use them but must leave them as is.
    """
    old_P = flat([p.detach() for p in parameters]).clone()

    def damped(vector_P: Tensor) -> Tensor:
        return fisher(vector_P) + config.damping * vector_P

    direction_P, residual = conjugate_gradient(damped, gradient_P, config.cg_iterations, config.cg_tolerance)
    curvature = float(direction_P @ damped(direction_P))
    if not curvature > 0:
        return StepReport(False, 0.0, 0.0, 0.0, 0, residual)
    full_P = (2 * config.max_kl / curvature) ** 0.5 * direction_P
    expected = float(gradient_P @ full_P)
    for tried in range(config.backtracks):
        scale = config.backtrack**tried
        assign(parameters, old_P + scale * full_P)
        improvement, kl = measure(old_P)
        if improvement > 0 and kl <= config.max_kl:
            return StepReport(True, kl, improvement, scale * expected, tried, residual)
    assign(parameters, old_P)
    return StepReport(False, 0.0, 0.0, 0.0, config.backtracks, residual)
