"""Problems small enough to be solved exactly: X prompts, Y replies each, a policy that is a table of logits.

Everything is float64. A "reply" is one symbol, so the log-probability of a reply is one number and every
expectation is a finite sum; what a loss ought to find is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.losses.preference import PairLogprobs


def random_table(prompts: int, replies: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers, [X, Y]: logits of a reference policy, or rewards."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(prompts, replies, generator=generator, dtype=torch.float64)


def tilted(reference_XY: Tensor, reward_XY: Tensor, beta: float) -> Tensor:
    """log of π_ref exp(r/β) / Z, [X, Y]: the policy of highest E r − β KL(π ‖ π_ref). `reference_XY`
    are log-probabilities."""
    return (reference_XY + reward_XY / beta).log_softmax(-1)


def kl(log_p_XY: Tensor, log_q_XY: Tensor) -> Tensor:
    """KL(p ‖ q) of each row, in nats, [X]."""
    return (log_p_XY.exp() * (log_p_XY - log_q_XY)).nan_to_num().sum(-1)


def minimized(
    loss: Callable[[Tensor], Tensor], start_XY: Tensor, steps: int = 200, tolerance: float = 1e-13
) -> Tensor:
    """The log-probabilities [X, Y] at which `loss(log-probabilities)` is least, found by L-BFGS."""
    logits_XY = start_XY.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [logits_XY],
        max_iter=steps,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits_XY.log_softmax(-1))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logits_XY.detach().log_softmax(-1)


def descended(loss: Callable[[Tensor], Tensor], start_XY: Tensor, steps: int, learning_rate: float) -> Tensor:
    """The log-probabilities [X, Y] after `steps` of plain gradient descent on the logits."""
    logits_XY = start_XY.clone().requires_grad_(True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(logits_XY.log_softmax(-1)), logits_XY)
        logits_XY = (logits_XY - learning_rate * gradient).detach().requires_grad_(True)
    return logits_XY.detach().log_softmax(-1)


def pairs_of(
    policy_XY: Tensor, reference_XY: Tensor, x_B: Tensor, won_B: Tensor, lost_B: Tensor
) -> PairLogprobs:
    """What the losses take, for replies `won_B` and `lost_B` to prompts `x_B` (indices)."""
    return PairLogprobs(
        policy_XY[x_B, won_B], policy_XY[x_B, lost_B], reference_XY[x_B, won_B], reference_XY[x_B, lost_B]
    )


def all_pairs(prompts: int, replies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (x, a, b) of every prompt with every ordered pair of different replies, [X Y (Y − 1)] each."""
    x, a, b = torch.meshgrid(
        torch.arange(prompts), torch.arange(replies), torch.arange(replies), indexing="ij"
    )
    different = a != b
    return x[different], a[different], b[different]


def sampled_preferences(
    reference_XY: Tensor, reward_XY: Tensor, count: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (x, won, lost) of `count` comparisons: two of the reference's replies, by Bradley–Terry."""
    generator = torch.Generator().manual_seed(seed)
    prompts = len(reference_XY)
    x_B = torch.randint(prompts, (count,), generator=generator)
    replies_B2 = torch.multinomial(reference_XY.exp()[x_B], 2, replacement=False, generator=generator)
    a_B, b_B = replies_B2.unbind(-1)
    wins_B = (reward_XY[x_B, a_B] - reward_XY[x_B, b_B]).sigmoid()
    a_won_B = torch.rand(count, generator=generator, dtype=torch.float64) < wins_B
    return x_B, torch.where(a_won_B, a_B, b_B), torch.where(a_won_B, b_B, a_B)


def best_of(log_p_Y: Tensor, reward_Y: Tensor, n: int) -> Tensor:
    """The probabilities [Y] of the best of n independent replies; of equally good ones, any is returned.

    P(best = y) = (F(r_y)^n − F⁻(r_y)^n) p_y / P(r = r_y), F and F⁻ the reward's distribution up to and below.
    """
    p_Y = log_p_Y.exp()
    same_YY = reward_Y[:, None] == reward_Y[None, :]
    below_YY = reward_Y[None, :] < reward_Y[:, None]
    tie_Y, below_Y = (same_YY * p_Y).sum(-1), (below_YY * p_Y).sum(-1)
    return ((below_Y + tie_Y) ** n - below_Y**n) * p_Y / tie_Y
