"""Probabilities and thresholds that mean something: Platt scaling (1999) and quantiles of harmless scores.

Fitted on `dev` rows: sources that were trained on, rows that were not. The share of attacks among them is
far above that of real traffic, so a calibrated 0.9 promises less precision there; the false-positive
thresholds do not depend on that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from training.data.entities import TAGS, bio
from training.data.safety_example import IMPLIED, Example
from training.evaluate.scorer import Floats, Scorer, sigmoid, softmax
from training.export import Calibration

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)
HARMLESS = frozenset(
    "clinc instructions gpteacher gpteacher_toolformer gsm8k_train self_dialogue sgd_train "
    "chatterbot_english awesome role_play system_prompt rule_ok foreign_ok "
    "mention request_synthetic document_clean".split()
)
HARMLESS_REPLIES = frozenset("reply_ok reply_twin_ok reply_support reply_refuse reply_refuse_ok".split())
"""Whose scores set the thresholds of `unsafe_reply`, which plain texts don't know."""


def calibrate(folder: Path, graph: bytes, dev: Sequence[Example]) -> Calibration:
    """From the dev rows' scores under `graph` (the one that is shipped): Platt's parameters, "
    "thresholds, temperature."""
    scorer = Scorer(folder, graph)
    plain = [e for e in dev if e.labels]
    logits_BL = scorer.logits([e.text for e in plain])
    harmless = {
        False: [e.source in HARMLESS for e in plain],
        True: [e.source in HARMLESS_REPLIES for e in plain],
    }
    platt: dict[str, tuple[float, float]] = {}
    for column, label in enumerate(scorer.labels):
        known = [i for i, e in enumerate(plain) if label in e.labels]
        truth = np.array([plain[i].labels[label] >= 0.5 for i in known])
        a, b = fit_platt(logits_BL[known, column], truth)
        platt[label] = (round(a, 5), round(b, 5))
    scores = {
        label: sigmoid(a * logits_BL[np.array(harmless[label == "unsafe_reply"]), i] + b)
        for i, (label, (a, b)) in enumerate(platt.items())
    }
    for kind, parent in IMPLIED.items():
        if kind in scores:
            scores[kind] = np.minimum(scores[kind], scores[parent])
    thresholds = {
        label: {f"{rate:g}": round(float(np.quantile(p, 1 - rate)), 5) for rate in FALSE_POSITIVE_RATES}
        for label, p in scores.items()
        if len(p)
    }
    marked = [e for e in dev if e.spans is not None and not e.labels]
    return Calibration(platt, tag_temperature=fit_temperature(scorer, marked), thresholds=thresholds)


def fit_platt(logits: Floats, truth: Floats) -> tuple[float, float]:
    """(a, b) of σ(a z + b) by maximum likelihood with a ≤ 1; the identity where only one class is there.

    A slope above 1 would say that the model is surer on the dev rows than it shows; elsewhere it is not,
    and labels whose dev rows are mostly synthetic would turn nearly every doubt into certainty.
    """
    if truth.all() or not truth.any():
        return 1.0, 0.0
    model = LogisticRegression(C=100.0).fit(logits.reshape(-1, 1), truth)
    a, b = float(model.coef_[0, 0]), float(model.intercept_[0])
    return (a, b) if a <= 1.0 else (1.0, _shift(logits, truth))


def _shift(logits: Floats, truth: Floats) -> float:
    """The b at which the mean of σ(z + b) is the share of positives (what maximum likelihood asks for)."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logits + middle).mean() < truth.mean() else (low, middle)
    return (low + high) / 2


def fit_temperature(scorer: Scorer, marked: Sequence[Example]) -> float:
    """The temperature, of a grid, at which the tags of marked texts are likeliest (Guo et al. 2017)."""
    logits, tags = [], []
    for example in marked:
        reading = scorer.read(example.text)
        logits.append(reading.tags_TK)
        tags += bio(example.spans or (), reading.offsets)
    if not tags:
        return 1.0
    stacked, column = np.concatenate(logits), np.array(tags)
    stacked, column = stacked[column >= 0], column[column >= 0]  # doubts say nothing
    assert stacked.shape[1] == len(TAGS)  # noqa: S101  the exported head is this module's
    rows = np.arange(len(column))
    grid = [round(0.5 + 0.1 * i, 1) for i in range(36)]
    return min(grid, key=lambda t: float(-np.log(softmax(stacked / t)[rows, column] + 1e-12).mean()))
