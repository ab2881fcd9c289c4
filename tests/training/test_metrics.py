"""Figures against values worked out by hand, and intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluate.calibration import fit_platt
from training.evaluate.metrics import (
    Figure,
    auc,
    average_precision,
    bootstrap,
    calibration_error,
    share,
    span_scores,
)
from training.evaluate.scorer import sigmoid


def test_auc_and_average_precision() -> None:
    truth, scores = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    assert auc(truth, scores) == pytest.approx(0.75)
    assert average_precision(truth, scores) == pytest.approx(5 / 6)


def test_bootstrap_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(30):
        truth = np.repeat([0.0, 1.0], 100)
        figure = bootstrap(auc, truth, rng.normal(truth, 1.0), seed=trial, resamples=60)
        held += figure.low <= 0.7602 <= figure.high  # the normal distribution function at 1 / sqrt 2
    assert held >= 25


def test_wilson_interval() -> None:
    none = share([False] * 100)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.0370, abs=1e-4)
    half = share([True, False] * 50)
    assert (half.low, half.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_calibration_error_of_scores_that_are_right_and_that_are_too_sure() -> None:
    truth = np.repeat([1.0, 0.0], [75, 25])
    assert calibration_error(truth, np.full(100, 0.75)) == pytest.approx(0.0)
    assert calibration_error(truth, np.full(100, 0.95)) == pytest.approx(0.2)


def test_spans_exact_and_overlapping() -> None:
    truth = [[("PERSON", 0, 8), ("LOCATION", 12, 16)], []]
    found = [[("PERSON", 0, 4), ("ORGANIZATION", 12, 16)], [("PERSON", 0, 2)]]
    assert span_scores(truth, found, 1.0, exact=True) == (0.0, 0.0, 0.0)
    precision, recall, f2 = span_scores(truth, found, 2.0, exact=False)
    assert (precision, recall) == pytest.approx((1 / 3, 1 / 2))
    assert f2 == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_platt_finds_the_true_scale() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 20_000)
    a, b = fit_platt(logits, rng.random(20_000) < sigmoid(0.5 * logits - 1.0))
    assert (a, b) == pytest.approx((0.5, -1.0), abs=0.05)
    assert fit_platt(np.ones(3), np.ones(3, bool)) == (1.0, 0.0)


def test_figures_print_with_their_interval() -> None:
    assert str(Figure(0.91234, 0.9, 0.93, 10)) == "0.912 [0.900, 0.930]"
    assert Figure(0.05, 0.01, 0.1, 10).percent() == "5.0 % [1.0, 10.0]"
