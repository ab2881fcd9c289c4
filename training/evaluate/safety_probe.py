"""The safety classifier and its baselines, asked about the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policies.manifest import Evaluation
from policies.spec import HarmSpec, InjectionSpec, ToxicitySpec
from training.data.safety_example import TOXICITY_LABELS, SafetyData
from training.evaluate.baseline import Baseline
from training.evaluate.metrics import Figure, Floats, auc, average_precision, bootstrap, share
from training.evaluate.scorer import Scorer

DEFAULTS = {
    "toxicity": ToxicitySpec().threshold,
    "injection": InjectionSpec().threshold,
    "harm": HarmSpec().threshold,
    "unsafe_reply": HarmSpec().ladders["unsafe_reply"][0].at,
}
"""The guards' default thresholds, and that of `harm` for replies."""
ORDINARY = "instructions"
"""The ordinary requests on which 1 % false positives are set: a source that was held out."""
ANY = "any harm"
MODERATION = (*TOXICITY_LABELS, "self_harm", "violence")
"""What a moderation sample may be flagged for; the highest of their scores counts for ANY."""


@dataclass(frozen=True, slots=True)
class Result:
    """One figure, and the baseline's where there is one. `shown` says how it is printed."""

    name: str
    data: str
    figure: Figure
    baseline: Figure | None = None
    shown: str = "value"

    def row(self) -> str:
        def show(figure: Figure | None) -> str:
            if figure is None:
                return "–"
            return figure.percent() if self.shown == "percent" else str(figure)

        return (
            f"| {self.name} | {self.data} | {self.figure.n} | {show(self.figure)} | {show(self.baseline)} |"
        )

    def evaluation(self) -> Evaluation:
        f = self.figure
        return Evaluation(metric=self.name, value=f.value, low=f.low, high=f.high, data=self.data, n=f.n)


class Probe:
    """Scores of named texts under the classifier and the baselines, each computed once.

    `limits`: per label, ours and the baseline's score that one in a hundred ordinary requests reaches, of a
    source that neither has seen. Both are compared there.
    """

    def __init__(self, scorer: Scorer, data: SafetyData, baselines: Mapping[str, Baseline]) -> None:
        self._scorer, self._data, self._baselines = scorer, data, baselines
        self._seen: dict[str, Floats] = {}
        self.limits = {
            label: tuple(float(np.quantile(f(label, ORDINARY), 0.99)) for f in (self.ours, self.theirs))
            for label in ("injection", "harm", "toxicity")
        }

    def texts(self, name: str) -> list[str]:
        return [e.text for e in self._data.test[name]]

    def truth(self, label: str, name: str) -> Floats:
        """Whether each text has the label, or one of the labels of a moderation sample for `any`."""
        known = MODERATION if label == ANY else (label,)
        return np.array(
            [float(max(e.labels.get(k, 0.0) for k in known) >= 0.5) for e in self._data.test[name]]
        )

    def ours(self, label: str, name: str) -> Floats:
        if name not in self._seen:
            self._seen[name] = self._scorer.probabilities(self.texts(name))
        if label == ANY:
            columns = [self._scorer.labels.index(k) for k in MODERATION if k in self._scorer.labels]
            return np.asarray(self._seen[name][:, columns].max(axis=1))
        return np.asarray(self._seen[name][:, self._scorer.labels.index(label)])

    def theirs(self, label: str, name: str) -> Floats:
        return self._baselines[label].scores(self.texts(name))

    def ranked(self, metric: str, label: str, *names: str) -> Result:
        """AUC or AP over the rows of all named sets."""
        truth = np.concatenate([self.truth(label, name) for name in names])
        measure = {"AUC": auc, "AP": average_precision}[metric]
        ours, theirs = (
            bootstrap(measure, truth, np.concatenate([f(label, name) for name in names]))
            for f in (self.ours, self.theirs)
        )
        return Result(f"{label} {metric}", " + ".join(names), ours, theirs)

    def flagged(
        self, label: str, name: str, threshold: float | None = None, only: float | None = None
    ) -> Result:
        """Share flagged from a threshold on, or where 1 % of ordinary requests are; of rows whose label is
        `only`, if given. The baseline always stands at its 1 %."""
        limit, theirs_limit = self.limits[label]
        truth = self.truth(label, name)
        rows = truth == only if only is not None else np.ones(len(truth), bool)
        kind = "recall" if truth[rows].mean() >= 0.5 else "false positives"
        words = f"at {threshold:g}" if threshold is not None else "at 1 %"
        ours = self.ours(label, name)[rows] >= (limit if threshold is None else threshold)
        theirs = self.theirs(label, name)[rows] >= theirs_limit
        return Result(f"{label} {kind} {words}", name, share(ours), share(theirs), "percent")
