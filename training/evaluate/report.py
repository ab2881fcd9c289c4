"""What an evaluation leaves behind: named figures with intervals, and the rows that they are means of.

The rows are what makes a later comparison paired: two checkpoints that answered the same prompts are
compared prompt by prompt, which takes the prompts' own differences out of the interval.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError, model_validator
from rich.console import Console
from rich.table import Table

from policies.manifest import Evaluation
from training.config import Config
from training.data.preferences import Prompt, prompt_as_json
from training.errors import TrainingError
from training.evaluate.metrics import Figure, Floats, mean

EVALUATION_NAME = "evaluation.json"


class Metric(Config):
    """A figure with its 95 % interval. `rows`, where there are any, average to it, weighted by `weights`.

    `about` says in a few words what it is and how it was estimated; `data` on what.
    """

    name: str
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    n: int = Field(ge=0)
    about: str = ""
    data: str = ""
    rows: tuple[FiniteFloat, ...] = ()
    weights: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weights and len(self.weights) != len(self.rows):
            raise ValueError(f"{self.name}: as many weights as rows")
        return self

    @property
    def figure(self) -> Figure:
        return Figure(self.value, self.low, self.high, self.n)

    def evaluation(self) -> Evaluation:
        """The figure as a manifest holds it."""
        return Evaluation(
            metric=self.name, value=self.value, low=self.low, high=self.high, data=self.data, n=self.n
        )

    @classmethod
    def of(cls, name: str, figure: Figure, about: str, data: str, rows: Iterable[float] = ()) -> Metric:
        f = figure
        return cls(
            name=name, value=f.value, low=f.low, high=f.high, n=f.n, about=about, data=data, rows=tuple(rows)
        )

    @classmethod
    def averaged(cls, name: str, rows: Sequence[float], about: str, data: str, seed: int = 0) -> Metric:
        """The rows' mean with its bootstrap interval."""
        return cls.of(name, mean(rows, seed), about, data, rows)


class EvaluationFile(Config):
    """The figures of one model; `baseline` are those of another one, measured in the same run.

    `questions` is a digest of what was asked: rows of two files are paired only where it is the same.
    `weights` is one of what answered (`training.provenance.folder_digest`).
    """

    subject: str
    weights: str | None = None
    questions: str
    seed: int = 0
    metrics: tuple[Metric, ...]
    baseline: EvaluationFile | None = None

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.name == name), None)

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises TrainingError for a file that is no evaluation."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise TrainingError(f"{path}: not an evaluation file: {error.errors()[0]['msg']}") from error

    def differences(self) -> tuple[Metric, ...]:
        """Each metric less the baseline's, where both have it; empty without a baseline."""
        if self.baseline is None:
            return ()
        paired = self.questions == self.baseline.questions
        found = [(metric, self.baseline.metric(metric.name)) for metric in self.metrics]
        return tuple(difference(ours, theirs, paired) for ours, theirs in found if theirs is not None)

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        (console or Console()).print(self._table())

    def _table(self) -> Table:
        table = Table("figure", self.subject, "n", title=None)
        changes = {metric.name: metric for metric in self.differences()}
        if self.baseline is not None:
            table.add_column(self.baseline.subject)
            table.add_column("difference")
        table.add_column("what it is")
        for metric in self.metrics:
            cells = [metric.name, str(metric.figure), str(metric.n)]
            if self.baseline is not None:
                theirs, change = self.baseline.metric(metric.name), changes.get(metric.name)
                cells += [str(theirs.figure) if theirs else "–", str(change.figure) if change else "–"]
            table.add_row(*cells, metric.about)
        return table


def difference(ours: Metric, theirs: Metric, paired: bool, seed: int = 0) -> Metric:
    """`ours` less `theirs`, with its interval.

    Paired where both have as many rows for the same questions: a bootstrap over rows, of both at once; for
    rows of 0 and 1 by Agresti and Min 2005 (Statistics in Medicine 24:729), as resampling rows without a
    single violation would take it for certain that there never is one. Otherwise from the two intervals, by
    Zou and Donner 2008 (doi:10.1002/sim.3095): each end's distance to its own figure, squared and added.
    """
    value = ours.value - theirs.value
    if paired and ours.rows and len(ours.rows) == len(theirs.rows):
        low, high = _paired_interval(ours, theirs, seed)
        about = "difference, paired over rows"
    else:
        low = value - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
        high = value + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
        about = "difference of two samples"
    n = min(ours.n, theirs.n)
    return Metric(name=ours.name, value=value, low=low, high=high, n=n, about=about, data=ours.data)


def weighted_bootstrap(rows: Floats, weights: Floats, seed: int, resamples: int = 2000) -> Floats:
    """Resampled weighted means `[S, K]` of rows and weights `[N, K]`, the same rows in all columns."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        picks = rng.integers(len(rows), size=len(rows))
        found.append((rows[picks] * weights[picks]).sum(axis=0) / weights[picks].sum(axis=0))
    return np.stack(found)


def _paired_interval(ours: Metric, theirs: Metric, seed: int) -> tuple[float, float]:
    rows = np.stack([np.asarray(ours.rows), np.asarray(theirs.rows)], axis=1)
    if not ours.weights and not theirs.weights and np.isin(rows, (0, 1)).all():
        return _matched_shares(rows)
    columns = [np.asarray(m.weights) if m.weights else np.ones(len(m.rows)) for m in (ours, theirs)]
    means = weighted_bootstrap(rows, np.stack(columns, axis=1), seed)
    low, high = np.quantile(means[:, 0] - means[:, 1], (0.025, 0.975))
    return float(low), float(high)


def _matched_shares(rows_N2: Floats) -> tuple[float, float]:
    """The 95 % interval for the difference of two shares on the same rows: half a row is added to each of the
    four ways in which a pair can turn out."""
    n = len(rows_N2) + 2
    only_ours = float((rows_N2[:, 0] > rows_N2[:, 1]).sum()) + 0.5
    only_theirs = float((rows_N2[:, 0] < rows_N2[:, 1]).sum()) + 0.5
    middle = (only_ours - only_theirs) / n
    half = 1.959964 * math.sqrt(only_ours + only_theirs - n * middle**2) / n
    return max(-1.0, middle - half), min(1.0, middle + half)


def questions_digest(prompts: Iterable[Prompt]) -> str:
    """Hex SHA-256 of the prompts, in their order."""
    text = json.dumps([prompt_as_json(prompt) for prompt in prompts], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
