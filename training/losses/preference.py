"""Losses on preferences, as functions of the log-probabilities of whole replies.

With the reply's log-ratio ρ(y) = log π(y|x) − log π_ref(y|x), in nats, DPO's implicit reward is β ρ(y), and
most losses here are functions of the difference δ = ρ(chosen) − ρ(rejected). All return one value a pair,
[B]; the mean over pairs is minimized. TRL's trainers compute the same values, which tests compare.

Papers: DPO and its sigmoid loss, Rafailov et al. 2023 (arXiv:2305.18290); label smoothing (cDPO), Mitchell
2023; margins (offset DPO), Amini et al. 2024 (arXiv:2402.10571); hinge (SLiC), Zhao et al. 2023
(arXiv:2305.10425); IPO, Azar et al. 2023 (arXiv:2310.12036); robust, Chowdhury et al. 2024
(arXiv:2403.00409); EXO, Ji et al. 2024 (arXiv:2402.00856); NCA, Chen et al. 2024 (arXiv:2402.05369); BCO,
Jung et al. 2024 (arXiv:2404.04656); SPPO, Wu et al. 2024 (arXiv:2405.00675); AOT, Melnyk et al. 2024
(arXiv:2406.05882); APO, D'Oosterlinck et al. 2024 (arXiv:2408.06266); DiscoPOP, Lu et al. 2024
(arXiv:2406.08414); KTO, Ethayarajh et al. 2024 (arXiv:2402.01306); ORPO, Hong et al. 2024
(arXiv:2403.07691). SPIN (Chen et al. 2024, arXiv:2401.01335) is the sigmoid loss of a human's reply against
the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PairLoss = Literal[
    "sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "discopop", "aot", "aot_unpaired",
]  # fmt: skip
"""Names are TRL's."""

LOGIT_LOSSES: frozenset[PairLoss] = frozenset({"sigmoid", "hinge", "robust"})
"""Losses of the one number β δ, from which a reward margin can be taken off."""

SMOOTHED_LOSSES: frozenset[PairLoss] = frozenset({"robust", "exo_pair", "aot", "aot_unpaired"})
"""Losses with a way of their own to treat labels that may be wrong."""

SORTED_LOSSES: frozenset[PairLoss] = frozenset({"aot", "aot_unpaired"})
"""Losses that compare the batch's distributions; a pair has no loss of its own."""


@dataclass(frozen=True, slots=True)
class PairLogprobs:
    """Log-probabilities of B pairs of replies given their prompts, summed over each reply's tokens, [B].

    The token counts [B] are only needed by losses that average over tokens (`ipo`, `sigmoid_norm`); without
    them a reply counts as one token.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    reference_chosen_B: Tensor
    reference_rejected_B: Tensor
    chosen_tokens_B: Tensor | None = None
    rejected_tokens_B: Tensor | None = None

    @property
    def chosen_ratio_B(self) -> Tensor:
        return self.chosen_B - self.reference_chosen_B

    @property
    def rejected_ratio_B(self) -> Tensor:
        return self.rejected_B - self.reference_rejected_B

    @property
    def difference_B(self) -> Tensor:
        """δ: how much more than the reference the policy prefers the chosen reply."""
        return self.chosen_ratio_B - self.rejected_ratio_B

    @property
    def difference_per_token_B(self) -> Tensor:
        """The difference of the two log-ratios' means over tokens."""
        chosen_B = _per_token(self.chosen_ratio_B, self.chosen_tokens_B)
        return chosen_B - _per_token(self.rejected_ratio_B, self.rejected_tokens_B)

    def exchanged(self) -> PairLogprobs:
        """The pairs as they would be had the rejected replies been chosen."""
        return PairLogprobs(
            self.rejected_B,
            self.chosen_B,
            self.reference_rejected_B,
            self.reference_chosen_B,
            self.rejected_tokens_B,
            self.chosen_tokens_B,
        )


def pair_loss(
    kind: PairLoss,
    pairs: PairLogprobs,
    beta: float,
    *,
    label_smoothing: float = 0.0,
    margin_B: Tensor | None = None,
    soft_B: Tensor | None = None,
    discopop_tau: float = 0.05,
) -> Tensor:
    """The loss of each pair, [B].

    `margin_B` asks for a reward difference β δ of at least so much (`LOGIT_LOSSES`). `soft_B` in [0, 1] is
    the probability that the chosen reply is better: the loss is the expectation over which of the two is
    (not for `SORTED_LOSSES`). `label_smoothing` is the probability that the label is wrong;
    `SMOOTHED_LOSSES` have their own way to treat it, for the others it softens the labels (cDPO). Raises
    ValueError for a combination that means nothing.
    """
    check_pair_loss(kind, margins=margin_B is not None, soft=soft_B is not None)
    if margin_B is not None:
        shifted_B = pairs.reference_chosen_B + margin_B / beta
        pairs = replace(pairs, reference_chosen_B=shifted_B)
    loss = _LOSSES[kind]
    options = _Options(beta, label_smoothing, discopop_tau)
    if label_smoothing and kind not in SMOOTHED_LOSSES:
        certain_B = torch.ones_like(pairs.chosen_B) if soft_B is None else soft_B
        soft_B = (1 - label_smoothing) * certain_B + label_smoothing * (1 - certain_B)
    if soft_B is None:
        return loss(pairs, options)
    return soft_B * loss(pairs, options) + (1 - soft_B) * loss(pairs.exchanged(), options)


def check_pair_loss(kind: str, *, margins: bool, soft: bool) -> None:
    """Raise ValueError where this loss has no meaning for margins or soft labels."""
    if kind not in get_args(PairLoss):
        raise ValueError(f"unknown loss {kind!r}; losses are {', '.join(get_args(PairLoss))}")
    if margins and kind not in LOGIT_LOSSES:
        raise ValueError(f"loss {kind!r} takes no margins; {', '.join(sorted(LOGIT_LOSSES))} do")
    if soft and kind in SORTED_LOSSES:
        raise ValueError(f"loss {kind!r} takes no soft labels: it compares distributions, not pairs")


def kto_loss(
    ratio_B: Tensor,
    wanted_B: Tensor,
    kl: Tensor,
    beta: float,
    wanted_weight: float = 1.0,
    unwanted_weight: float = 1.0,
) -> Tensor:
    """KTO's loss of each rated reply, [B].

    `ratio_B` are log-ratios ρ(y), `wanted_B` bool labels, `kl` the reference point ≥ 0, taken as a constant
    (`kto_reference_point`). A wanted reply should gain more than that point, an unwanted one less; the
    weights make up for labels that come in unequal numbers.
    """
    wanted_loss_B = wanted_weight * (1 - torch.sigmoid(beta * (ratio_B - kl)))
    unwanted_loss_B = unwanted_weight * (1 - torch.sigmoid(beta * (kl - ratio_B)))
    return torch.where(wanted_B, wanted_loss_B, unwanted_loss_B)


def kto_reference_point(mismatched_ratio_B: Tensor) -> Tensor:
    """KTO's estimate of KL(π ‖ π_ref), without gradient: the mean log-ratio of replies that belong to other
    prompts, not below 0."""
    return mismatched_ratio_B.mean().detach().clamp(min=0)


def kto_weights(wanted: int, unwanted: int) -> tuple[float, float]:
    """(wanted_weight, unwanted_weight) with which both labels weigh the same in total, the larger one 1.

    The paper's equation 8 allows wanted labels up to 4/3 of the other side's total weight; this is its
    lower end. Raises ValueError where one kind of label is missing: then nothing tells replies apart.
    """
    if wanted < 1 or unwanted < 1:
        raise ValueError(f"KTO needs both labels, found {wanted} wanted and {unwanted} unwanted replies")
    return min(1.0, unwanted / wanted), min(1.0, wanted / unwanted)


def orpo_loss(
    chosen_mean_B: Tensor, rejected_mean_B: Tensor, nll: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """ORPO's loss, a scalar, and each pair's log odds ratio, [B].

    `chosen_mean_B` and `rejected_mean_B` are log-probabilities averaged over a reply's tokens (< 0), `nll`
    the mean negative log-likelihood per token of the chosen side. There is no reference model.
    """
    odds_B = chosen_mean_B - rejected_mean_B - (_log1mexp(chosen_mean_B) - _log1mexp(rejected_mean_B))
    return nll - weight * logsigmoid(odds_B).mean(), odds_B


@dataclass(frozen=True, slots=True)
class _Options:
    beta: float
    label_smoothing: float
    discopop_tau: float


def _sigmoid(pairs: PairLogprobs, o: _Options) -> Tensor:
    return -logsigmoid(o.beta * pairs.difference_B)


def _hinge(pairs: PairLogprobs, o: _Options) -> Tensor:
    return torch.relu(1 - o.beta * pairs.difference_B)


def _ipo(pairs: PairLogprobs, o: _Options) -> Tensor:
    """Squared distance of δ from 1/(2β): a margin to be met, not one that may grow for ever."""
    return (pairs.difference_per_token_B - 1 / (2 * o.beta)) ** 2


def _robust(pairs: PairLogprobs, o: _Options) -> Tensor:
    """Unbiased for the loss under clean labels, where a share `label_smoothing` < 0.5 of them is flipped."""
    logit_B, flip = o.beta * pairs.difference_B, o.label_smoothing
    return (-(1 - flip) * logsigmoid(logit_B) + flip * logsigmoid(-logit_B)) / (1 - 2 * flip)


def _sigmoid_norm(pairs: PairLogprobs, o: _Options) -> Tensor:
    return -logsigmoid(o.beta * pairs.difference_per_token_B)


def _exo_pair(pairs: PairLogprobs, o: _Options) -> Tensor:
    """Reverse KL from the policy's choice between the two to the smoothed label (1 − ε, ε), ε > 0."""
    logit_B = o.beta * pairs.difference_B
    label = torch.tensor([1 - o.label_smoothing, o.label_smoothing], dtype=logit_B.dtype)
    wins_B, loses_B = logsigmoid(logit_B), logsigmoid(-logit_B)
    log_label = label.log()
    return wins_B.exp() * (wins_B - log_label[0]) + loses_B.exp() * (loses_B - log_label[1])


def _nca_pair(pairs: PairLogprobs, o: _Options) -> Tensor:
    chosen_B, rejected_B = o.beta * pairs.chosen_ratio_B, o.beta * pairs.rejected_ratio_B
    return -logsigmoid(chosen_B) - 0.5 * logsigmoid(-chosen_B) - 0.5 * logsigmoid(-rejected_B)


def _bco_pair(pairs: PairLogprobs, o: _Options) -> Tensor:
    return -logsigmoid(o.beta * pairs.chosen_ratio_B) - logsigmoid(-o.beta * pairs.rejected_ratio_B)


def _sppo_hard(pairs: PairLogprobs, o: _Options) -> Tensor:
    goal = 1 / (2 * o.beta)
    return (pairs.chosen_ratio_B - goal) ** 2 + (pairs.rejected_ratio_B + goal) ** 2


def _apo_zero(pairs: PairLogprobs, o: _Options) -> Tensor:
    """For chosen replies that are better than the model's own: raises them, lowers the rejected ones."""
    return 1 - torch.sigmoid(o.beta * pairs.chosen_ratio_B) + torch.sigmoid(o.beta * pairs.rejected_ratio_B)


def _apo_down(pairs: PairLogprobs, o: _Options) -> Tensor:
    """For chosen replies that are worse than the model's own: lowers both, the rejected ones more."""
    return torch.sigmoid(o.beta * pairs.chosen_ratio_B) + 1 - torch.sigmoid(o.beta * pairs.difference_B)


def _discopop(pairs: PairLogprobs, o: _Options) -> Tensor:
    logit_B = o.beta * pairs.difference_B
    share_B = torch.sigmoid(logit_B / o.discopop_tau)
    return -logsigmoid(logit_B) * (1 - share_B) + torch.exp(-logit_B) * share_B


def _aot(pairs: PairLogprobs, o: _Options) -> Tensor:
    policy_B = (pairs.chosen_B - pairs.rejected_B).sort().values
    reference_B = (pairs.reference_chosen_B - pairs.reference_rejected_B).sort().values
    return _smoothed(o.beta * (policy_B - reference_B), o.label_smoothing)


def _aot_unpaired(pairs: PairLogprobs, o: _Options) -> Tensor:
    difference_B = pairs.chosen_ratio_B.sort().values - pairs.rejected_ratio_B.sort().values
    return _smoothed(o.beta * difference_B, o.label_smoothing)


def _smoothed(logit_B: Tensor, flip: float) -> Tensor:
    return -(1 - flip) * logsigmoid(logit_B) - flip * logsigmoid(-logit_B)


def _per_token(ratio_B: Tensor, tokens_B: Tensor | None) -> Tensor:
    return ratio_B if tokens_B is None else ratio_B / tokens_B.clamp(min=1)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0 without cancellation (Mächler 2012)."""
    near_zero = x > -0.6931471805599453  # log 2: either branch is accurate on its own side
    return torch.where(near_zero, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


_LOSSES: dict[PairLoss, Callable[[PairLogprobs, _Options], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "sigmoid_norm": _sigmoid_norm,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
}
