"""Fit a reward model's outputs alone, on the backbone's frozen features: exact, and minutes where a
fine-tuning takes hours.

Each reply is encoded once. With features φ, standardised over all replies, what remains is convex in w,

    mean over elements of their loss at  r = w·φ + b   +   ridge / 2 · |w|²

the same loss as `training.methods.reward_trainer`'s, and L-BFGS takes it to its optimum; the result does not
depend on a learning rate, an order or a seed. With a thousand comparisons this is not only faster than
training the backbone, it generalises no worse. Objectives have outputs of their own, so each is its own
problem. Where no `ridge` is given it is chosen from a grid by the likelihood of held-out groups of
prompts, three-fold.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.methods.reward_trainer import Element, LossWeights, element_losses
from training.reward_model import forward
from training.reward_model_backbone import HEADS
from training.reward_model_encoding import Encoded, Kind, pad

RIDGES = (3.0, 1.0, 0.3, 0.1)
FOLDS = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One objective's elements over rows of the standardised features; `known` holds `Batch` columns."""

    features_NF: Tensor
    known: dict[str, Tensor]
    elements: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """One objective's optimum, for features as they are: reward = `weight_F` · φ + `bias`."""

    objective: int
    weight_F: Tensor
    bias: float
    loss: float
    ridge: float
    elements: int


def fit_head(
    model: PreTrainedModel,
    kind: Kind,
    elements: Sequence[Element],
    groups: Sequence[Hashable],
    filler: int,
    weights: LossWeights,
    ridge: float | None = None,
) -> list[dict[str, Any]]:
    """Set the model's outputs to the optimum; returns a record per objective (loss, ridge, elements).

    `groups` `[B]`, such as prompts, are what the choice of the ridge does not split.
    """
    head = head_of(model)
    features_NF = pooled_features(model, kind, texts_of(elements), filler)
    history = []
    for fitted in fit_features(features_NF, elements, groups, weights, ridge):
        with torch.no_grad():
            head.weight[fitted.objective] = fitted.weight_F.to(head.weight)
            if head.bias is not None:
                head.bias[fitted.objective] = fitted.bias
        record = {"loss": fitted.loss, "ridge": fitted.ridge, "elements": fitted.elements}
        history.append({"step": 1, "objective": fitted.objective, **record})
    return history


def fit_features(
    features_NF: Tensor,
    elements: Sequence[Element],
    groups: Sequence[Hashable],
    weights: LossWeights,
    ridge: float | None = None,
) -> list[Fitted]:
    """The optimum of every objective that an element is about; `features_NF` are of all their replies."""
    mean_F, scale_F = features_NF.mean(dim=0), features_NF.std(dim=0).clamp(min=1e-6)
    features_NF = (features_NF - mean_F) / scale_F
    found = []
    for objective in sorted({element.objective for element in elements}):
        rows = [index for index, element in enumerate(elements) if element.objective == objective]
        chosen = ridge if ridge is not None else choose_ridge(features_NF, elements, rows, groups, weights)
        weight_F, bias, loss = solve(gather(features_NF, elements, rows), weights, chosen)
        weight_F = weight_F / scale_F
        found.append(Fitted(objective, weight_F, float(bias - weight_F @ mean_F), loss, chosen, len(rows)))
    return found


def texts_of(elements: Sequence[Element]) -> list[Encoded]:
    """Every element's replies, one after the other: the rows of the features."""
    return [Encoded(i, t) for e in elements for i, t in zip(e.ids, e.types, strict=True)]


def rows_of(elements: Sequence[Element], chosen: Sequence[int]) -> list[int]:
    """The feature rows of the chosen elements' replies."""
    starts = np.cumsum([0, *(len(e.ids) for e in elements)])
    return [place for index in chosen for place in range(starts[index], starts[index + 1])]


def head_of(model: PreTrainedModel) -> nn.Linear:
    for name in HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise TypeError(f"{type(model).__name__} has none of the outputs {', '.join(HEADS)}")


@torch.no_grad()
def pooled_features(
    model: PreTrainedModel, kind: Kind, encoded: Sequence[Encoded], filler: int, batch_size: int = 32
) -> Tensor:
    """What the output layer reads for each text, `[N, F]`, float32: seen where it goes in."""
    seen: list[Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()  # type: ignore[no-untyped-call]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    features: dict[int, Tensor] = {}
    try:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            ids_BT, mask_BT, types_BT = (t.to(model.device) for t in pad([encoded[r] for r in rows], filler))
            forward(model, ids_BT, mask_BT, types_BT if kind == "encoder" else None)
            state = seen.pop()
            if state.ndim == 3:  # a causal model's output layer reads every token; the last one counts
                state = state[torch.arange(len(rows)), mask_BT.sum(dim=1) - 1]
            features |= dict(zip(rows, state.float().cpu(), strict=True))
    finally:
        hook.remove()
    return torch.stack([features[index] for index in range(len(encoded))])


def gather(features_NF: Tensor, elements: Sequence[Element], rows: Sequence[int]) -> Problem:
    """The elements `rows` with the features of their replies."""
    names = "better worse margin soft pair_element label score element".split()
    known: dict[str, list[Any]] = {name: [] for name in names}
    first = 0
    for number, element in enumerate(elements[row] for row in rows):
        known["better"] += [first + index for index in element.better]
        known["worse"] += [first + index for index in element.worse]
        known["margin"] += element.margin
        known["soft"] += element.soft
        known["pair_element"] += [number] * len(element.better)
        known["label"] += [element.label] * len(element.ids)
        known["score"] += [element.score] * len(element.ids)
        known["element"] += [number] * len(element.ids)
        first += len(element.ids)
    decimal = ("margin", "soft", "label", "score")
    tensors = {
        name: torch.tensor(values, dtype=torch.float32 if name in decimal else torch.long)
        for name, values in known.items()
    }
    return Problem(features_NF[rows_of(elements, rows)], tensors, len(rows))


def solve(
    problem: Problem, weights: LossWeights, ridge: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, float]:
    """The optimum: weights `[F]` and bias of the standardised features, and the loss without the ridge."""
    weight_F, bias = start or (torch.zeros(problem.features_NF.shape[1]), torch.zeros(()))
    weight_F, bias = weight_F.clone().requires_grad_(True), bias.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([weight_F, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        total = _loss(problem, weights, weight_F, bias) + 0.5 * ridge * weight_F.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return weight_F.detach(), bias.detach(), float(_loss(problem, weights, weight_F, bias))


def choose_ridge(
    features_NF: Tensor,
    elements: Sequence[Element],
    rows: Sequence[int],
    groups: Sequence[Hashable],
    weights: LossWeights,
) -> float:
    """The ridge of RIDGES whose fits give held-out groups the least loss."""
    fold = {group: i % FOLDS for i, group in enumerate(dict.fromkeys(groups[row] for row in rows))}
    losses = dict.fromkeys(RIDGES, 0.0)
    for number in range(min(FOLDS, len(fold))):
        train = gather(features_NF, elements, [r for r in rows if fold[groups[r]] != number])
        test = gather(features_NF, elements, [r for r in rows if fold[groups[r]] == number])
        start = None
        for ridge in RIDGES:  # from the hardest on, each from the last one's optimum
            if train.elements:
                weight_F, bias, _ = solve(train, weights, ridge, start)
                start = (weight_F, bias)
                losses[ridge] += float(_loss(test, weights, weight_F, bias)) * test.elements
    return min(losses, key=lambda ridge: losses[ridge])


def _loss(problem: Problem, weights: LossWeights, weight_F: Tensor, bias: Tensor) -> Tensor:
    reward_N = problem.features_NF @ weight_F + bias
    return element_losses(reward_N, problem.known, problem.elements, weights).mean()
