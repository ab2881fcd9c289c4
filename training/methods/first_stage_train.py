"""Fit the first stage to the encoder's scores."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.methods.first_stage_model import REACH, FirstStage
from training.methods.first_stage_scores import Floats, Scored

Rows = NDArray[np.int64]
TOKENS_PER_BATCH = 16_384
REPLY = "unsafe_reply"
"""The head that knows only of replies after their prompts."""
_PAIRED = re.compile(r"(?:^|/)reply_|pair")


def usable(scored: Scored) -> Rows:
    """Rows long enough for the first stage."""
    return np.flatnonzero(np.diff(scored.starts) >= REACH)


def batches(scored: Scored, rows: Rows, size: int, rng: np.random.Generator | None) -> Iterator[Rows]:
    """Rows of like length together, shuffled; in order of length without `rng`."""
    lengths = np.diff(scored.starts)[rows]
    noise = rng.uniform(0.9, 1.1, len(rows)) if rng is not None else np.ones(len(rows))
    order = rows[np.argsort(lengths * noise, kind="stable")]
    groups: list[Rows] = []
    first = 0
    while first < len(order):
        last = first + size
        while (last - first) * int(np.diff(scored.starts)[order[first:last]].max()) > TOKENS_PER_BATCH:
            last = first + (last - first) // 2
        groups.append(order[first:last])
        first = last
    if rng is not None:
        groups = [groups[i] for i in rng.permutation(len(groups))]
    yield from groups


def collate(scored: Scored, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and case types `[B, T]`, padded, and lengths `[B]`."""
    starts, ends = scored.starts[rows], scored.starts[rows + 1]
    longest = int((ends - starts).max())
    ids, types = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        ids[i, : end - start] = scored.ids[start:end]
        types[i, : end - start] = scored.types[start:end]
    return torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(ends - starts)


def known(scored: Scored) -> NDArray[np.float32]:
    """`[N, H]`: 0 for what a reply gives, of texts that are no reply after its prompt; else 1."""
    mask_NH = np.ones(scored.targets_NH.shape, np.float32)
    if REPLY in scored.heads:
        plain = [_PAIRED.search(source) is None for source in scored.sources]
        mask_NH[np.array(plain), scored.heads.index(REPLY)] = 0.0
    return mask_NH


def loss(logits_BH: Tensor, targets_BH: Tensor, known_BH: Tensor, positive_weight: float) -> Tensor:
    """Cross-entropy against probabilities; a missed score costs `positive_weight` times a false one."""
    weights_BH = known_BH * (1.0 + (positive_weight - 1.0) * targets_BH)
    each_BH = F.binary_cross_entropy_with_logits(logits_BH, targets_BH, reduction="none")
    return (weights_BH * each_BH).sum(dim=1).mean()


def fit(
    model: FirstStage,
    scored: Scored,
    *,
    epochs: int,
    rows_per_batch: int,
    learning_rate: float,
    words_rate: float,
    positive_weight: float,
    seed: int,
) -> None:
    """Adam with a linear decay; the words' vectors move at `words_rate` of the learning rate."""
    rows, rng = usable(scored), np.random.default_rng(seed)
    words = [model.words.weight]
    others = [p for name, p in model.named_parameters() if name != "words.weight"]
    groups = [
        {"params": others, "lr": learning_rate, "initial": learning_rate},
        {"params": words, "lr": learning_rate * words_rate, "initial": learning_rate * words_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    targets, mask = torch.from_numpy(scored.targets_NH), torch.from_numpy(known(scored))
    step, total = 0, 0
    for epoch in range(epochs):
        began, sums, seen = time.monotonic(), 0.0, 0
        groups_of_rows = list(batches(scored, rows, rows_per_batch, rng))
        total = total or epochs * len(groups_of_rows)
        for group in groups_of_rows:
            for parameters in optimizer.param_groups:
                parameters["lr"] = parameters["initial"] * max(0.02, 1.0 - step / total)
            value = loss(model(*collate(scored, group)), targets[group], mask[group], positive_weight)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step, sums, seen = step + 1, sums + float(value.detach()) * len(group), seen + len(group)
        print(f"epoch {epoch + 1}: loss {sums / seen:.4f}, {time.monotonic() - began:.0f} s", flush=True)


@torch.inference_mode()
def logits(model: FirstStage, scored: Scored) -> Floats:
    """`[N, H]`; infinite for rows that are too short, which the encoder answers."""
    out = np.full(scored.targets_NH.shape, np.inf, np.float32)
    for group in batches(scored, usable(scored), 256, None):
        out[group] = model(*collate(scored, group)).numpy()
    return out
