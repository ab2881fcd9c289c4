"""KL(π ‖ π_ref) of what was sampled: estimators per token, and who sets the coefficient.

With r = π_ref(a)/π(a) and a ~ π, Schulman's estimators (2020, "Approximating KL divergence") are

    k1 = -log r            unbiased; its sum over a reply is what the KL-regularised objective subtracts
    k2 = ½ (log r)²        biased, low variance; its *gradient* is that of the KL
    k3 = (r - 1) - log r   unbiased, never negative

In the reward only k1 gives the objective E[score] - β KL exactly; k2 and k3 are offered since others train
with them. What is reported is always k1's and k3's mean.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from training.config import Config

Estimator = Literal["k1", "k2", "k3"]

# Ziegler et al. 2019 (arXiv:1909.08593, section 2.2): the proportional controller's gain and error bound.
_GAIN, _BOUND = 0.1, 0.2


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) from tokens that π drew; the inputs' shape."""
    log_ratio = reference_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return log_ratio.expm1() - log_ratio


class KlConfig(Config):
    """`coef` is β, in reward units per nat. With `target` (nats a reply) it is adapted, else it is fixed."""

    coef: float = Field(default=0.05, ge=0)
    estimator: Estimator = "k1"
    target: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _can_adapt(self) -> KlConfig:
        if self.target is not None and self.coef == 0:
            raise ValueError("kl.coef 0 cannot be adapted, since it is multiplied; start above 0")
        return self

    def adapted(self, coef: float, kl: float) -> float:
        """The next step's coefficient after a step whose replies had `kl` nats on average."""
        if self.target is None:
            return coef
        error = min(max(kl / self.target - 1, -_BOUND), _BOUND)
        return coef * (1 + _GAIN * error)
