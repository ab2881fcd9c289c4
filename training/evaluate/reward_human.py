"""A reward model on human preference pairs, by cross-validation over prompts, beside what it must beat.

Every pair is scored by a model that saw no pair of its prompt (folds are by the first user message), once
for each of `repeats` ways of cutting the folds, which takes the luck of one cut out of the figures. The
baselines get the same folds: *length* learns which is better, longer or shorter; *bag of words* is a
Bradley–Terry model on TF-IDF of words and word pairs, at the ridge that is best for it. Leads are paired,
their intervals a bootstrap over prompts; McNemar's exact test is of the first cut.
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
from training.data.decoys import with_decoys
from training.data.mixture import resolve_source
from training.data.preference_data import PreferenceSource, as_pairs
from training.data.preferences import Preference, read_preferences
from training.errors import DataError, TrainingError
from training.evaluate.bias import hack_rates, length_bias, reward_checks
from training.evaluate.metrics import Figure, Floats
from training.evaluate.reward import calibrate, clustered_mean, differences, first_messages, right
from training.methods.reward import RewardConfig, fit
from training.methods.reward_head import Fitted, fit_features, head_of, pooled_features, rows_of, texts_of
from training.methods.reward_trainer import Element, LossWeights, comparison_element
from training.publish import Check
from training.reward_model import RewardModel, pad_id, unnormalised
from training.reward_model_backbone import kind_of, load_backbone
from training.reward_model_encoding import encode

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


class HumanConfig(Config):
    """`reward` without its data; `hacked` is on how many prompts of a held-out fold hacks are tried."""

    name: str = "reward-human"
    pairs: PreferenceSource
    folds: int = Field(default=5, ge=2)
    repeats: int = Field(default=3, ge=1)
    hacked: int = Field(default=200, ge=1)
    reward: RewardConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """Score differences `[R, P]` of the model and of the baselines in each repeat, and the checks."""

    pairs: tuple[Preference, ...]
    model: Floats
    baselines: dict[str, Floats]
    checks: tuple[Check, ...]


def folds_of(pairs: Sequence[Preference], folds: int, repeat: int = 0) -> NDArray[np.int64]:
    """Each pair's fold `[P]`, by a hash of its first user message and the repeat."""
    digests = [hashlib.sha256(f"{repeat}/{first}".encode()).digest() for first in first_messages(pairs)]
    return np.array([int.from_bytes(digest[:8], "big") % folds for digest in digests])


def cross_validate(config: HumanConfig, pairs: Sequence[Preference]) -> Outcome:
    """The model and the baselines on every pair, each by a fold that did not see its prompt."""
    fold_RP = np.stack([folds_of(pairs, config.folds, repeat) for repeat in range(config.repeats)])
    score = _heads if config.reward.fit == "head" else _whole
    model_RP, last = score(config, pairs, fold_RP)
    baselines = {
        "length": np.stack([by_length(pairs, fold_P) for fold_P in fold_RP]),
        "bag of words": bag_of_words(pairs, fold_RP),
    }
    unseen = [p for p, fold in zip(pairs, fold_RP[-1], strict=True) if fold == config.folds - 1]
    seed = config.reward.seed
    checks = reward_checks(
        mean_accuracy(model_RP, pairs),
        calibrate(model_RP[0], first_messages(pairs)),
        length_bias(model_RP[0], pairs, seed),
        hack_rates(last, [(p.prompt, p.chosen) for p in unseen[: config.hacked]]),
        config.reward.limits,
    )
    beaten = [_beats(name, model_RP, theirs_RP, pairs) for name, theirs_RP in baselines.items()]
    return Outcome(tuple(pairs), model_RP, baselines, (*checks, *beaten))


def mean_accuracy(difference_RP: Floats, pairs: Sequence[Preference]) -> Figure:
    """Over repeats and pairs, with its interval over prompts."""
    return clustered_mean(right(difference_RP).mean(axis=0), first_messages(pairs))


def _heads(
    config: HumanConfig, pairs: Sequence[Preference], fold_RP: NDArray[np.int64]
) -> tuple[Floats, RewardModel]:
    """Frozen features are the same in every fold: computed once, and only the outputs are fitted anew.

    Returns the differences `[R, P]`, and the model that did not see the last repeat's last fold.
    """
    settings = config.reward
    if settings.training.threads is not None:
        torch.set_num_threads(settings.training.threads)
    model, tokenizer = load_backbone(settings.model, settings.objectives, settings.seed)
    kind, longest = kind_of(model.config), settings.training.max_length
    reader = partial(encode, tokenizer, kind, max_length=longest)
    # The pairs first, then those with decoys, which are only ever trained on.
    learnt = [pair for c in with_decoys(pairs, settings.decoys, settings.seed) for pair in as_pairs(c)]
    elements = [comparison_element(p, {p.objective: 0}, reader, settings.margin_scale) for p in learnt]
    features_NF = pooled_features(model, kind, texts_of(elements), pad_id(tokenizer))
    groups, difference_RP = first_messages(learnt), np.zeros(fold_RP.shape)
    for repeat, fold_P in enumerate(fold_RP):
        fold_L = folds_of(learnt, config.folds, repeat)
        for fold in range(config.folds):
            train, test = (np.flatnonzero(part).tolist() for part in (fold_L != fold, fold_P == fold))
            fitted = _fit(features_NF, elements, groups, train, settings)
            reward_N = features_NF[rows_of(elements, test)] @ fitted.weight_F
            difference_RP[repeat, test] = (reward_N[0::2] - reward_N[1::2]).numpy()
    head = head_of(model)
    with torch.no_grad():
        head.weight[0] = fitted.weight_F.to(head.weight)
    about = unnormalised(kind, settings.objectives, settings.weights, longest)
    return difference_RP, RewardModel(model, tokenizer, about)


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
    config: HumanConfig, pairs: Sequence[Preference], fold_RP: NDArray[np.int64]
) -> tuple[Floats, RewardModel]:
    """The same with the backbone trained in every fold."""
    difference_RP = np.zeros(fold_RP.shape)
    for repeat, fold_P in enumerate(fold_RP):
        for fold in range(config.folds):
            train = [p for p, f in zip(pairs, fold_P, strict=True) if f != fold]
            test = [p for p, f in zip(pairs, fold_P, strict=True) if f == fold]
            model = fit(config.reward, train)[0]
            difference_RP[repeat, fold_P == fold] = differences(model, test)
    return difference_RP, model


def by_length(pairs: Sequence[Preference], fold_P: NDArray[np.int64]) -> Floats:
    """Characters' difference, with the sign that is right more often in the other folds."""
    length_P = np.array([float(len(p.chosen) - len(p.rejected)) for p in pairs])
    out_P = np.zeros(len(pairs))
    for fold in np.unique(fold_P):
        train, test = fold_P != fold, fold_P == fold
        out_P[test] = length_P[test] * (1 if np.sign(length_P[train]).sum() > 0 else -1)
    return out_P


def bag_of_words(pairs: Sequence[Preference], fold_RP: NDArray[np.int64]) -> Floats:
    """`[R, P]` at the most accurate, over everything, of several ridges: the choice favours the baseline."""
    tried = [np.stack([_bag_of_words(pairs, fold_P, strength) for fold_P in fold_RP]) for strength in RIDGES]
    return max(tried, key=lambda difference_RP: float(right(difference_RP).mean()))


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


def lead(model_RP: Floats, theirs_RP: Floats, pairs: Sequence[Preference]) -> tuple[Figure, float]:
    """How much more accurate the model is, with its interval over prompts, and McNemar's exact p."""
    ahead_P = (right(model_RP) - right(theirs_RP)).mean(axis=0)
    ours_P, theirs_P = model_RP[0] > 0, theirs_RP[0] > 0
    only_ours, only_theirs = int((ours_P & ~theirs_P).sum()), int((~ours_P & theirs_P).sum())
    discordant = only_ours + only_theirs
    p = float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0
    return clustered_mean(ahead_P, first_messages(pairs)), p


def _beats(name: str, model_RP: Floats, theirs_RP: Floats, pairs: Sequence[Preference]) -> Check:
    ahead, p = lead(model_RP, theirs_RP, pairs)
    return Check(f"beats {name}", ahead.low > 0, f"ahead by {ahead.percent()}, McNemar p = {p:.2g}")


def report(config: HumanConfig, outcome: Outcome) -> str:
    """Markdown: accuracies, leads, checks, reliability."""
    pairs = outcome.pairs
    rows = [("reward model", mean_accuracy(outcome.model, pairs), "")]
    for name, theirs_RP in outcome.baselines.items():
        ahead, p = lead(outcome.model, theirs_RP, pairs)
        rows.append((name, mean_accuracy(theirs_RP, pairs), f"{ahead.percent()}, p = {p:.2g}"))
    calibration = calibrate(outcome.model[0], first_messages(pairs))
    lines = [
        "# Reward accuracy on human preferences",
        "",
        "Written by `keel-train evaluate reward-human --report docs/RESULTS-reward.md`; what it means, and",
        "what was chosen how, is in [training/reward.md](training/reward.md).",
        "",
        f"{len(pairs)} pairs of `{config.pairs.path}` ({config.pairs.origin}, {config.pairs.licence}), "
        f"{config.folds}-fold by prompt, {config.repeats} ways of cutting the folds. 95 % intervals over "
        "prompts; p is McNemar's of the first cut.",
        "",
        "| | accuracy | the reward model's lead (paired) |",
        "|---|---|---|",
        *(f"| {name} | {figure.percent()} | {ahead} |" for name, figure, ahead in rows),
        "",
        "| check | outcome | found |",
        "|---|---|---|",
        *(f"| {c.name} | {'pass' if c.passed else '**fail**'} | {c.detail} |" for c in outcome.checks),
        "",
        "Reliability at the fitted temperature, first cut:",
        "",
        "| confidence | right | pairs |",
        "|---|---|---|",
        *(f"| {b.confidence:.2f} | {b.accuracy:.2f} | {b.n} |" for b in calibration.curve),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit status 1 where a check failed."""
    parser = argparse.ArgumentParser(
        prog="keel-train evaluate reward-human", description="Cross-validate a reward model on human pairs."
    )
    parser.add_argument("--config", type=Path, default=Path("training/configs/reward-human.yaml"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="reward.decoys=0.5, …"
    )
    parser.add_argument("--report", type=Path, help="a Markdown file to write the result to")
    arguments = parser.parse_args(argv)
    config = HumanConfig.load(arguments.config, arguments.set)
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
