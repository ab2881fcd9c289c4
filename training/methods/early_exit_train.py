"""Fit an early exit to the encoder's scores."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.methods.early_exit_model import EarlyExit
from training.methods.early_exit_scores import Floats, Scored

Rows = NDArray[np.int64]
TOKENS_PER_BATCH = 6_000
REPLY = "unsafe_reply"
"""The head that knows only of replies after their prompts."""
NAMES_SHARE = 0.1
"""What the single places' names count beside the whole texts' scores."""
WARM_UP = 200
"""Steps in which the learning rate rises."""
_PAIRED = re.compile(r"(?:^|/)reply_|pair")


def batches(scored: Scored, size: int, rng: np.random.Generator | None) -> Iterator[Rows]:
    """Rows of like length together, shuffled; in order of length without `rng`."""
    lengths = np.diff(scored.starts)
    noise = rng.uniform(0.9, 1.1, len(lengths)) if rng is not None else 1.0
    order = np.argsort(lengths * noise, kind="stable")
    groups: list[Rows] = []
    first = 0
    while first < len(order):
        last = first + size
        while last - first > 1 and (last - first) * int(lengths[order[first:last]].max()) > TOKENS_PER_BATCH:
            last = first + (last - first) // 2
        groups.append(order[first:last])
        first = last
    if rng is not None:
        groups = [groups[i] for i in rng.permutation(len(groups))]
    yield from groups


def collate(scored: Scored, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """States `[B, T, D]` and names `[B, T, E]`, padded with zeros, and lengths `[B]`."""
    starts, ends = scored.starts[rows], scored.starts[rows + 1]
    longest = int((ends - starts).max())
    states, names = (
        np.zeros((len(rows), longest, table.shape[1]), np.float32)
        for table in (scored.states_TD, scored.names_TE)
    )
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        states[i, : end - start] = scored.states_TD[start:end]
        names[i, : end - start] = scored.names_TE[start:end]
    return torch.from_numpy(states), torch.from_numpy(names), torch.from_numpy(ends - starts)


def known(scored: Scored) -> NDArray[np.float32]:
    """`[N, H]`: 0 for what a reply gives, of texts that are no reply after its prompt; else 1."""
    mask_NH = np.ones(scored.targets_NH.shape, np.float32)
    if REPLY in scored.heads:
        plain = [_PAIRED.search(source) is None for source in scored.sources]
        mask_NH[np.array(plain), scored.heads.index(REPLY)] = 0.0
    return mask_NH


def loss(logits: Tensor, targets: Tensor, known: Tensor, positive_weight: float) -> Tensor:
    """Cross-entropy against probabilities, summed over all but the first dimension, of which the mean is
    taken; a missed score costs `positive_weight` times a false one."""
    weights = known * (1.0 + (positive_weight - 1.0) * targets)
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weights * each).flatten(1).sum(dim=1).mean()


def fit(
    model: EarlyExit,
    scored: Scored,
    *,
    epochs: int,
    rows_per_batch: int,
    learning_rate: float,
    positive_weight: float,
    seed: int,
) -> None:
    """AdamW with a linear decay. The places' names are learnt along, each at its place."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    targets, mask = torch.from_numpy(scored.targets_NH), torch.from_numpy(known(scored))
    step, total = 0, 0
    for epoch in range(epochs):
        began, sums, seen = time.monotonic(), 0.0, 0
        groups = list(batches(scored, rows_per_batch, rng))
        total = total or epochs * len(groups)
        for group in groups:
            for parameters in optimizer.param_groups:
                rate = min(1.0, (step + 1) / WARM_UP) * max(0.02, 1.0 - step / total)
                parameters["lr"] = learning_rate * rate
            states, names, lengths = collate(scored, group)
            logits, places = model(states, lengths)
            inside = (torch.arange(states.shape[1])[None] < lengths[:, None]).float()[..., None]
            # Beyond a length the places' logits are infinite: 0 times that is no number.
            of_names = places[..., places.shape[2] - names.shape[2] :].clamp(min=-30.0)
            value = loss(logits, targets[group], mask[group], positive_weight)
            value = value + NAMES_SHARE * loss(of_names, names, inside, positive_weight)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step, sums, seen = step + 1, sums + float(value.detach()) * len(group), seen + len(group)
        print(f"epoch {epoch + 1}: loss {sums / seen:.4f}, {time.monotonic() - began:.0f} s", flush=True)


@torch.inference_mode()
def logits(model: EarlyExit, scored: Scored) -> Floats:
    """`[N, H]`."""
    out = np.zeros(scored.targets_NH.shape, np.float32)
    for group in batches(scored, 256, None):
        states, _, lengths = collate(scored, group)
        out[group] = model(states, lengths)[0].numpy()
    return out
