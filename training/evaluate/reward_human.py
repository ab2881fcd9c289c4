"""A reward model on human preference pairs, by cross-validation over prompts, beside what it must beat.

Every pair is scored once, by a model that saw no pair of its prompt (folds are by the first user message).
The baselines get the same folds: *length* learns which is better, longer or shorter; *bag of words* is a
Bradley–Terry model on TF-IDF of words and word pairs, at the ridge that is best for it. Differences are
paired: McNemar's exact test on the pairs that only one of the two gets right, and a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import vstack
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from training.config import Config
from training.data.mixture import resolve_source
from training.data.preference_data import PreferenceSource, as_pairs
from training.data.preferences import Preference, read_preferences
from training.errors import DataError, TrainingError
from training.evaluate.bias import hack_rates, length_bias, reward_checks
from training.evaluate.metrics import Figure, Floats
from training.evaluate.reward import accuracy, calibrate, clustered_mean, differences, first_messages, right
from training.methods.reward import RewardConfig, fit
from training.methods.reward_head import Fitted, fit_features, head_of, pooled_features, rows_of, texts_of
from training.methods.reward_trainer import Element, LossWeights, comparison_element
from training.publish import Check
from training.reward_model import RewardModel, pad_id, unnormalised
from training.reward_model_backbone import kind_of, load_backbone
from training.reward_model_encoding import encode

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


class HumanConfig(Config):
    """`reward` without its data; `hacked` is on how many prompts of the first fold hacks are tried."""

    name: str = "reward-human"
    pairs: PreferenceSource
    folds: int = Field(default=5, ge=2)
    hacked: int = Field(default=200, ge=1)
    reward: RewardConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """Score differences `[P]` of the model and of the baselines, the checks, and each fold's ridge."""

    pairs: tuple[Preference, ...]
    model: Floats
    baselines: dict[str, Floats]
    checks: tuple[Check, ...]
    ridges: tuple[float, ...]


def folds_of(pairs: Sequence[Preference], folds: int) -> NDArray[np.int64]:
    """Each pair's fold `[P]`, by a hash of its first user message."""
    digests = [hashlib.sha256(first.encode()).digest() for first in first_messages(pairs)]
    return np.array([int.from_bytes(digest[:8], "big") % folds for digest in digests])


def cross_validate(config: HumanConfig, pairs: Sequence[Preference]) -> Outcome:
    """The model and the baselines on every pair, each by a fold that did not see its prompt."""
    fold_P = folds_of(pairs, config.folds)
    score = _heads if config.reward.fit == "head" else _whole
    model_P, first, ridges = score(config, pairs, fold_P)
    baselines = {"length": by_length(pairs, fold_P), "bag of words": bag_of_words(pairs, fold_P)}
    unseen = [p for p, fold in zip(pairs, fold_P, strict=True) if fold == 0][: config.hacked]
    rates = hack_rates(first, [(p.prompt, p.chosen) for p in unseen])
    seed = config.reward.seed
    checks = reward_checks(
        accuracy(model_P, pairs, seed),
        calibrate(model_P, first_messages(pairs)),
        length_bias(model_P, pairs, seed),
        rates,
        config.reward.limits,
    )
    beaten = [_beats(name, model_P, theirs_P, pairs) for name, theirs_P in baselines.items()]
    return Outcome(tuple(pairs), model_P, baselines, (*checks, *beaten), ridges)


def _heads(
    config: HumanConfig, pairs: Sequence[Preference], fold_P: NDArray[np.int64]
) -> tuple[Floats, RewardModel, tuple[float, ...]]:
    """Frozen features are the same in every fold: computed once, and only the outputs are fitted anew."""
    settings = config.reward
    if settings.training.threads is not None:
        torch.set_num_threads(settings.training.threads)
    model, tokenizer = load_backbone(settings.model, settings.objectives, settings.seed)
    kind, longest = kind_of(model.config), settings.training.max_length
    reader = partial(encode, tokenizer, kind, max_length=longest)
    elements = [comparison_element(p, {p.objective: 0}, reader, settings.margin_scale) for p in pairs]
    features_NF = pooled_features(model, kind, texts_of(elements), pad_id(tokenizer))
    groups = first_messages(pairs)
    difference_P, fitted = np.zeros(len(pairs)), []
    for fold in range(config.folds):
        train, test = (np.flatnonzero(fold_P != fold).tolist(), np.flatnonzero(fold_P == fold).tolist())
        fitted.append(_fit(features_NF, elements, groups, train, settings))
        reward_N = features_NF[rows_of(elements, test)] @ fitted[-1].weight_F
        difference_P[test] = (reward_N[0::2] - reward_N[1::2]).numpy()
    head = head_of(model)
    with torch.no_grad():
        head.weight[0] = fitted[0].weight_F.to(head.weight)
    about = unnormalised(kind, settings.objectives, settings.weights, longest)
    return difference_P, RewardModel(model, tokenizer, about), tuple(f.ridge for f in fitted)


def _fit(
    features_NF: torch.Tensor,
    elements: Sequence[Element],
    groups: Sequence[str],
    train: Sequence[int],
    settings: RewardConfig,
) -> Fitted:
    (fitted,) = fit_features(
        features_NF[rows_of(elements, train)],
        [elements[index] for index in train],
        [groups[index] for index in train],
        LossWeights(center=settings.center),
        settings.ridge,
    )
    return fitted


def _whole(
    config: HumanConfig, pairs: Sequence[Preference], fold_P: NDArray[np.int64]
) -> tuple[Floats, RewardModel, tuple[float, ...]]:
    difference_P, models = np.zeros(len(pairs)), []
    for fold in range(config.folds):
        train = [p for p, f in zip(pairs, fold_P, strict=True) if f != fold]
        test = [p for p, f in zip(pairs, fold_P, strict=True) if f == fold]
        models.append(fit(config.reward, train)[0])
        difference_P[fold_P == fold] = differences(models[-1], test)
    return difference_P, models[0], ()


def by_length(pairs: Sequence[Preference], fold_P: NDArray[np.int64]) -> Floats:
    """Characters' difference, with the sign that is right more often in the other folds."""
    length_P = np.array([float(len(p.chosen) - len(p.rejected)) for p in pairs])
    out_P = np.zeros(len(pairs))
    for fold in np.unique(fold_P):
        train, test = fold_P != fold, fold_P == fold
        out_P[test] = length_P[test] * (1 if np.sign(length_P[train]).sum() > 0 else -1)
    return out_P


def bag_of_words(pairs: Sequence[Preference], fold_P: NDArray[np.int64]) -> Floats:
    """The most accurate, over all pairs, of several ridges: the choice favours the baseline."""
    tried = [_bag_of_words(pairs, fold_P, strength) for strength in RIDGES]
    return max(tried, key=lambda difference_P: float(right(difference_P).mean()))


def _bag_of_words(pairs: Sequence[Preference], fold_P: NDArray[np.int64], strength: float) -> Floats:
    out_P = np.zeros(len(pairs))
    for fold in np.unique(fold_P):
        train = [p for p, f in zip(pairs, fold_P, strict=True) if f != fold]
        test = [p for p, f in zip(pairs, fold_P, strict=True) if f == fold]
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        words.fit([text for p in train for text in (p.chosen, p.rejected)])
        ours, theirs = (
            words.transform([p.chosen for p in part]) - words.transform([p.rejected for p in part])
            for part in (train, test)
        )
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=500)
        model.fit(vstack([ours, -ours]), np.repeat([1, 0], len(train)))
        out_P[fold_P == fold] = theirs @ model.coef_[0]
    return out_P


def lead(model_P: Floats, theirs_P: Floats, pairs: Sequence[Preference]) -> tuple[Figure, float]:
    """How much more accurate the model is, with its interval over prompts, and McNemar's exact p."""
    ahead = clustered_mean(right(model_P) - right(theirs_P), first_messages(pairs))
    only_model = int(((model_P > 0) & ~(theirs_P > 0)).sum())
    only_theirs = int((~(model_P > 0) & (theirs_P > 0)).sum())
    discordant = only_model + only_theirs
    return ahead, float(binomtest(only_model, discordant).pvalue) if discordant else 1.0


def _beats(name: str, model_P: Floats, theirs_P: Floats, pairs: Sequence[Preference]) -> Check:
    ahead, p = lead(model_P, theirs_P, pairs)
    return Check(f"beats {name}", ahead.low > 0, f"ahead by {ahead.percent()}, McNemar p = {p:.2g}")


def report(config: HumanConfig, outcome: Outcome) -> str:
    """Markdown: accuracies, leads, checks, reliability."""
    pairs, seed = outcome.pairs, config.reward.seed
    rows = [("reward model", accuracy(outcome.model, pairs, seed), "")]
    for name, theirs_P in outcome.baselines.items():
        ahead, p = lead(outcome.model, theirs_P, pairs)
        rows.append((name, accuracy(theirs_P, pairs, seed), f"{ahead.percent()}, p = {p:.2g}"))
    calibration = calibrate(outcome.model, first_messages(pairs))
    lines = [
        f"{len(pairs)} pairs of `{config.pairs.path}` ({config.pairs.origin}, {config.pairs.licence}), "
        f"{config.folds}-fold by prompt. 95 % intervals over prompts.",
        "",
        "| | accuracy | the reward model's lead (paired) |",
        "|---|---|---|",
        *(f"| {name} | {figure.percent()} | {ahead} |" for name, figure, ahead in rows),
        "",
        "| check | outcome | found |",
        "|---|---|---|",
        *(f"| {c.name} | {'pass' if c.passed else '**fail**'} | {c.detail} |" for c in outcome.checks),
        "",
        "Reliability at the fitted temperature:",
        "",
        "| confidence | right | pairs |",
        "|---|---|---|",
        *(f"| {b.confidence:.2f} | {b.accuracy:.2f} | {b.n} |" for b in calibration.curve),
    ]
    if outcome.ridges:
        lines += ["", f"Ridges chosen within the folds: {', '.join(f'{r:g}' for r in outcome.ridges)}."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit status 1 where a check failed."""
    parser = argparse.ArgumentParser(
        prog="keel-train evaluate reward-human", description="Cross-validate a reward model on human pairs."
    )
    parser.add_argument("--config", type=Path, default=Path("training/configs/reward-human.yaml"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument("--report", type=Path, help="a Markdown file to write the result to")
    arguments = parser.parse_args(argv)
    config = HumanConfig.load(arguments.config)
    skipped: list[DataError] = []
    path = resolve_source(arguments.data, config.pairs.path)
    keep = skipped if config.pairs.on_bad_row == "skip" else None
    found = read_preferences(path, config.pairs.format, config.pairs.columns, keep)
    pairs = [pair for comparison in found for pair in as_pairs(comparison)][: config.pairs.limit]
    if not pairs:
        raise TrainingError(f"{path}: no pair to measure on")
    outcome = cross_validate(config, pairs)
    text = report(config, outcome)
    print(text)
    if skipped:
        print(f"{len(skipped)} rows were unreadable, such as {skipped[0]}")
    if arguments.report is not None:
        arguments.report.write_text(text, encoding="utf-8")
    return 0 if all(check.passed for check in outcome.checks) else 1
