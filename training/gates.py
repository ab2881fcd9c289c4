"""Gates on measured figures, written as a person says them.

    perplexity<=30             the figure itself, at the end of its interval that is worse
    reward>=parent             the difference to the parent's, at the end of its interval that is worse
    violations<=parent+0.01    … with room

A gate holds where the interval's worse end holds: "at least the parent's" must be shown, not merely not
refuted. With few rows that fails for equals; give room (`reward>=parent-0.05`) or measure on more. The
difference is paired where both were measured on the same questions (`training.evaluate.report`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from policies.manifest import Evaluation
from training.checks import Check
from training.errors import PublishError
from training.evaluate.report import EvaluationFile, Metric, difference

_FORM = re.compile(
    r"\s*(?P<metric>[^<>=]*[^<>=\s])\s*(?P<op><=|>=)\s*"
    r"(?:(?P<parent>parent)\s*(?:(?P<sign>[+-])\s*(?P<room>[0-9.eE-]+))?|(?P<limit>-?[0-9.][0-9.eE+-]*))\s*"
)


@dataclass(frozen=True, slots=True)
class Gate:
    """`metric` on the right side of `limit`, which is added to the parent's figure where `parent`."""

    metric: str
    op: Literal["<=", ">="]
    limit: float
    parent: bool

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Raises PublishError for what is no gate."""
        found = _FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            op: Literal["<=", ">="] = "<=" if found["op"] == "<=" else ">="
            if found["parent"] is None:
                return cls(found["metric"], op, float(found["limit"]), False)
            room = float(found["room"] or 0)
            return cls(found["metric"], op, -room if found["sign"] == "-" else room, True)
        except ValueError as error:
            raise PublishError(
                f"gate {text!r}: write METRIC<=NUMBER, METRIC>=parent or METRIC<=parent+NUMBER"
            ) from error

    def __str__(self) -> str:
        right = f"parent{self.limit:+g}" if self.limit else "parent"
        return f"{self.metric} {self.op} {right if self.parent else format(self.limit, 'g')}"

    def check(self, measured: EvaluationFile, parent: EvaluationFile | None) -> Check:
        """Whether it holds; what was not measured does not."""
        ours = measured.metric(self.metric)
        if ours is None:
            return Check(str(self), False, "was not measured")
        if not self.parent:
            return self._holds(ours, f"{ours.value:.4g} [{ours.low:.4g}, {ours.high:.4g}]")
        theirs = parent.metric(self.metric) if parent is not None else None
        if parent is None or theirs is None:
            return Check(str(self), False, "was not measured for the parent")
        change = difference(ours, theirs, paired=measured.questions == parent.questions)
        figures = f"{ours.value:.4g} against {theirs.value:.4g}"
        return self._holds(
            change, f"{figures}, {change.about} {change.value:+.4g} [{change.low:+.4g}, {change.high:+.4g}]"
        )

    def _holds(self, metric: Metric, told: str) -> Check:
        worse, holds = (
            (metric.high, metric.high <= self.limit)
            if self.op == "<="
            else (metric.low, metric.low >= self.limit)
        )
        reason = "" if holds else f"; its worse end, {worse:.4g}, is beyond {self.limit:.4g}"
        return Check(str(self), holds, f"{told} on {metric.n} rows{reason}")


def check_gates(
    gates: Iterable[Gate], measured: EvaluationFile, parent: EvaluationFile | None
) -> list[Check]:
    """Every gate's outcome."""
    return [gate.check(measured, parent) for gate in gates]


def gathered(evaluations: Sequence[Evaluation], file: EvaluationFile | None, subject: str) -> EvaluationFile:
    """A run's or a manifest's figures and those of an evaluation file in one; the file's come first."""
    known = file or EvaluationFile(subject=subject, questions="", metrics=())
    more = [_metric(e) for e in evaluations if known.metric(e.metric) is None]
    return known.model_copy(update={"metrics": (*known.metrics, *more)})


def _metric(evaluation: Evaluation) -> Metric:
    e = evaluation
    low, high = (e.value if end is None else end for end in (e.low, e.high))
    return Metric(name=e.metric, value=e.value, low=low, high=high, n=e.n, data=e.data)
