"""How good the safety classifier is, measured on the exported int8 graph that the gateway runs.

Toxicity, jailbreaks and injected mails come from sources that were held out whole. Requests are of
intents, role-play prompts and harmful requests are rows, Presidio's sentences are of templates that were
not trained on. Beside every figure of a label stands a bag of words trained on the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.manifest import Evaluation
from training.data.safety import Example, SafetyData, build
from training.errors import TrainingError
from training.evaluate.baseline import Baseline
from training.evaluate.calibration import HARMLESS
from training.evaluate.metrics import (
    Figure,
    Floats,
    auc,
    average_precision,
    bootstrap,
    calibration_error,
    share,
    span_scores,
)
from training.evaluate.scorer import Scorer
from training.export import load_graph
from training.methods.classifier_config import ClassifierConfig
from training.provenance import RECORD_NAME, RunRecord

DEFAULTS = {"toxicity": 0.7, "injection": 0.9}
"""The guards' default thresholds (`policies.spec`)."""
TIMED_WORDS = (20, 100)


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
    """Scores of named texts under the classifier and the baselines, each computed once."""

    def __init__(self, scorer: Scorer, data: SafetyData, baselines: Mapping[str, Baseline]) -> None:
        self._scorer, self._data, self._baselines = scorer, data, baselines
        self._seen: dict[str, Floats] = {}
        harmless = [e.text for e in data.dev if e.source in HARMLESS]
        self.limits = {label: b.threshold(harmless, 0.01) for label, b in baselines.items()}

    def texts(self, name: str) -> list[str]:
        return [e.text for e in self._data.test[name]]

    def ours(self, label: str, name: str) -> Floats:
        if name not in self._seen:
            self._seen[name] = self._scorer.probabilities(self.texts(name))
        return self._seen[name][:, self._scorer.labels.index(label)]

    def theirs(self, label: str, name: str) -> Floats:
        return self._baselines[label].scores(self.texts(name))

    def separation(self, label: str, positives: str, negatives: str) -> Result:
        """AUC between two named sets."""
        truth = np.repeat([1.0, 0.0], [len(self.texts(positives)), len(self.texts(negatives))])
        pairs = (np.concatenate([f(label, positives), f(label, negatives)]) for f in (self.ours, self.theirs))
        ours, theirs = (bootstrap(auc, truth, scores) for scores in pairs)
        return Result(f"{label} AUC", f"{positives} against {negatives}", ours, theirs)

    def flagged(self, label: str, name: str, threshold: float, words: str, what: str) -> Result:
        """Share flagged; the baseline's at its own threshold of 1 % false positives on harmless dev rows."""
        ours, theirs = self.ours(label, name) >= threshold, self.theirs(label, name) >= self.limits[label]
        return Result(f"{label} {what} {words}", name, share(ours), share(theirs), "percent")


def label_results(
    probe: Probe, data: SafetyData, thresholds: Mapping[str, Mapping[str, float]]
) -> Iterator[Result]:
    """Toxicity and injection on what was held out."""
    truth = np.array([e.labels["toxicity"] for e in data.test["comments"]])
    ours, theirs = probe.ours("toxicity", "comments"), probe.theirs("toxicity", "comments")
    yield Result("toxicity AUC", "comments", bootstrap(auc, truth, ours), bootstrap(auc, truth, theirs))
    yield Result(
        "toxicity AP",
        "comments",
        bootstrap(average_precision, truth, ours),
        bootstrap(average_precision, truth, theirs),
    )
    limit = probe.limits["toxicity"]
    for value, what in ((1.0, "recall"), (0.0, "false positives")):
        rows = truth == value
        name = f"toxicity {what} at {DEFAULTS['toxicity']}"
        yield Result(
            name,
            "comments",
            share(ours[rows] >= DEFAULTS["toxicity"]),
            share(theirs[rows] >= limit),
            "percent",
        )
    yield probe.separation("injection", "jailbreaks", "requests")
    yield probe.separation("injection", "mails_injected", "mails")
    for threshold, words in (
        (DEFAULTS["injection"], "at 0.9"),
        (thresholds["injection"]["0.01"], "at the 1 % threshold"),
    ):
        for name in ("jailbreaks", "mails_injected"):
            yield probe.flagged("injection", name, threshold, words, "recall")
        for name in ("requests", "role_play", "mails", "comments", "harmful_requests"):
            yield probe.flagged("injection", name, threshold, words, "false positives")
    for name in ("requests", "role_play", "mails"):
        yield probe.flagged("toxicity", name, DEFAULTS["toxicity"], "at 0.7", "false positives")
    yield probe.separation("harm", "harmful_requests", "requests")


def seen_results(scorer: Scorer, dev: Sequence[Example]) -> Iterator[Result]:
    """Every label on kept-back rows of trained sources: flattering, but for some labels all there is."""
    rows = [e for e in dev if e.labels]
    scores = scorer.probabilities([e.text for e in rows])
    for column, label in enumerate(scorer.labels):
        known = [i for i, e in enumerate(rows) if label in e.labels]
        truth = np.array([float(rows[i].labels[label] >= 0.5) for i in known])
        yield Result(f"{label} AUC", "dev rows", bootstrap(auc, truth, scores[known, column], resamples=200))
        error = calibration_error(truth, scores[known, column])
        yield Result(f"{label} calibration error", "dev rows", Figure(error, error, error, len(known)))


def entity_rows(scorer: Scorer, data: SafetyData) -> Iterator[str]:
    """Precision, recall and F by type; `overlap` counts a span that touches one of its type."""
    for name in ("presidio", "wnut17"):
        rows = data.test[name]
        found = [scorer.spans(e.text) for e in rows]
        for kind in (None, "PERSON", "LOCATION", "ORGANIZATION"):
            truth = [[s for s in e.spans or () if kind in (None, s[0])] for e in rows]
            ours = [[s for s in spans if kind in (None, s[0])] for spans in found]
            precision, recall, f2 = span_scores(truth, ours, 2.0, exact=False)
            _, _, f1 = span_scores(truth, ours, 1.0, exact=True)
            count = sum(map(len, truth))
            figures = " | ".join(f"{figure:.2f}" for figure in (precision, recall, f2, f1))
            yield f"| {name} | {kind or 'all'} | {count} | {figures} |"


def parity_rows(run: Path, folder: Path, data: SafetyData) -> Iterator[str]:
    """The int8 graph against the fp32 one: scores, AUC and time for one text on one thread."""
    graphs = {
        "fp32": load_graph(run / "model").SerializeToString(),
        "int8": (folder / "model.onnx").read_bytes(),
    }
    scorers = {name: Scorer(folder, graph) for name, graph in graphs.items()}
    rows = data.test["comments"]
    truth = np.array([e.labels["toxicity"] for e in rows])
    logits = {name: scorer.logits([e.text for e in rows]) for name, scorer in scorers.items()}
    column = scorers["int8"].labels.index("toxicity")
    p = {name: scorers[name].calibrated(z) for name, z in logits.items()}
    difference = np.abs(p["int8"] - p["fp32"])
    mean, most = difference.mean(), np.quantile(difference, 0.99)
    yield f"Over all labels of {len(rows)} comments, scores differ by {mean:.4f} on average,"
    yield f"and by {most:.3f} or less in 99 % of cases."
    yield ""
    yield "| graph | MB | toxicity AUC | " + " | ".join(f"ms, {n} words" for n in TIMED_WORDS) + " |"
    yield "|---|---|---|" + "---|" * len(TIMED_WORDS)
    words = " ".join(e.text for e in data.test["requests"]).split()
    for name, scorer in scorers.items():
        times = [milliseconds(scorer, " ".join(words[:count])) for count in TIMED_WORDS]
        yield (
            f"| {name} | {len(graphs[name]) / 1e6:.1f} | {auc(truth, logits[name][:, column]):.4f} | "
            + " | ".join(f"{t:.1f}" for t in times)
            + " |"
        )


def milliseconds(scorer: Scorer, text: str, rounds: int = 30) -> float:
    """The fastest of several rounds: what the work costs, without what else the machine does."""
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        scorer.read(text)
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def report(run: Path, data: SafetyData) -> tuple[str, tuple[Evaluation, ...]]:
    """The tables of docs/SAFETY.md, and the figures for the manifest."""
    folder = run / "final"
    scorer = Scorer(folder, folder / "model.onnx")
    thresholds = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["thresholds"]
    baselines = {label: Baseline(data.train, label) for label in ("toxicity", "injection", "harm")}
    held_out = list(label_results(Probe(scorer, data, baselines), data, thresholds))
    head = ["| figure | data | rows | keel-guard, int8 | bag of words |", "|---|---|---|---|---|"]
    lines = ["### Labels, on held-out data", "", *head, *(r.row() for r in held_out), ""]
    lines += [
        "### Entities",
        "",
        "| data | type | spans | precision | recall | F2 (overlap) | F1 (exact) |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [*entity_rows(scorer, data), ""]
    lines += [
        "### Labels, on kept-back rows of trained sources",
        "",
        *head,
        *(r.row() for r in seen_results(scorer, data.dev)),
        "",
    ]
    lines += [
        "### Thresholds",
        "",
        "Scores that flag a stated share of harmless dev rows:",
        "",
        "| label | 0.1 % | 1 % | 5 % |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {label} | " + " | ".join(f"{t:.3f}" for t in rates.values()) + " |"
        for label, rates in thresholds.items()
    ]
    lines += ["", "### int8 against fp32", "", *parity_rows(run, folder, data)]
    return "\n".join(lines), tuple(r.evaluation() for r in held_out)


def insert(document: Path, tables: str) -> None:
    """Put the tables between the document's markers; raises TrainingError where it has none."""
    text = document.read_text(encoding="utf-8")
    block = f"<!-- figures -->\n{tables}\n<!-- /figures -->"
    replaced, count = re.subn(r"<!-- figures -->.*<!-- /figures -->", lambda _: block, text, flags=re.S)
    if count != 1:
        raise TrainingError(f"{document}: needs one block from <!-- figures --> to <!-- /figures -->")
    document.write_text(replaced, encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keel-train evaluate safety", description="Measure a finished classifier run."
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's directory")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument(
        "--document", type=Path, help="a document whose figures are replaced, such as docs/SAFETY.md"
    )
    arguments = parser.parse_args(argv)
    record = RunRecord.read(arguments.run)
    config = ClassifierConfig.model_validate(record.config)
    tables, evaluations = report(arguments.run, build(arguments.data, config.seed, config.synthetic_scale))
    print(tables)
    record.model_copy(update={"evaluations": evaluations}).write(arguments.run)
    print(f"\nfigures recorded in {arguments.run / RECORD_NAME}")
    if arguments.document is not None:
        insert(arguments.document, tables)
    return 0
