"""What a bag of words gets from the same rows: TF-IDF of words and pairs, logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from training.data.safety_example import Example
from training.evaluate.metrics import Floats

MOST = 20_000


class Baseline:
    """One label's baseline, trained on rows that know the label, MOST of them at most."""

    def __init__(self, train: Sequence[Example], label: str) -> None:
        rows = [e for e in train if label in e.labels]
        if len(rows) > MOST:
            rows = Random(0).sample(rows, MOST)
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=200_000)
        self._model: Pipeline = make_pipeline(words, LogisticRegression(C=4.0, max_iter=300))
        self._model.fit([e.text for e in rows], [e.labels[label] >= 0.5 for e in rows])

    def scores(self, texts: Sequence[str]) -> Floats:
        """Probabilities `[B]`."""
        return np.asarray(self._model.predict_proba(list(texts))[:, 1])
