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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from policies.manifest import Evaluation
from training.data.entities import ENTITY_TYPES
from training.data.safety import build
from training.data.safety_example import Example, SafetyData
from training.errors import TrainingError
from training.evaluate.baseline import Baseline
from training.evaluate.metrics import (
    Figure,
    auc,
    bootstrap,
    calibration_error,
    share,
    span_scores,
)
from training.evaluate.safety_curves import pictures
from training.evaluate.safety_probe import ANY, DEFAULTS, MODERATION, ORDINARY, Probe, Result
from training.evaluate.scorer import Scorer
from training.export import load_graph
from training.methods.classifier_config import ClassifierConfig
from training.provenance import RECORD_NAME, RunRecord

GROUP_ROWS = 8
ERRORS_SHOWN = 4
TIMED_WORDS = (20, 100)


def label_results(probe: Probe) -> Iterator[Result]:
    """Every figure on what was held out."""
    yield probe.ranked("AUC", "toxicity", "comments")
    yield probe.ranked("AP", "toxicity", "comments")
    for truth in (1.0, 0.0):
        yield probe.flagged("toxicity", "comments", DEFAULTS["toxicity"], truth)
    for name in ("instructions", "requests", "role_play", "look_alikes", "mails"):
        yield probe.flagged("toxicity", name, DEFAULTS["toxicity"])
    yield probe.ranked("AP", ANY, "written_comments", "written_subjects")
    yield probe.ranked("AUC", "injection", "jailbreaks", ORDINARY)
    yield probe.ranked("AUC", "injection", "mails_injected", "mails")
    for threshold in (None, DEFAULTS["injection"]):
        for name in ("jailbreaks", "mails_injected", "written_attacks"):
            yield probe.flagged("injection", name, threshold)
        yield probe.flagged("injection", "written_documents", threshold, 1.0)
        for name in ("requests", ORDINARY, "role_play", "attack_look_alikes", "mails", "comments"):
            yield probe.flagged("injection", name, threshold)
        yield probe.flagged("injection", "written_documents", threshold, 0.0)
    yield probe.ranked("AUC", "harm", "malicious", ORDINARY)
    for threshold in (None, DEFAULTS["harm"]):
        for name in (
            "malicious",
            "harmful_requests",
            "written_harmful",
            "look_alikes",
            "requests",
            "role_play",
        ):
            yield probe.flagged("harm", name, threshold)
    yield probe.ranked("AUC", "unsafe_reply", "jailbroken_replies")
    yield probe.ranked("AUC", "unsafe_reply", "dialogue_replies")
    limit = DEFAULTS["unsafe_reply"]
    ours, theirs = (f("unsafe_reply", "safe_answers") >= limit for f in (probe.ours, probe.theirs))
    name = f"unsafe_reply false positives at {limit:g}"
    yield Result(name, "safe_answers", share(ours), share(theirs), "percent")


def group_rows(probe: Probe, data: SafetyData) -> Iterator[str]:
    """False positives and recall of toxicity by the group that a sentence speaks of, at the default."""
    rows = data.test["identities"]
    ours, truth = (
        probe.ours("toxicity", "identities") >= DEFAULTS["toxicity"],
        probe.truth("toxicity", "identities"),
    )
    theirs = probe.theirs("toxicity", "identities") >= probe.limits["toxicity"][1]
    groups = sorted({e.source for e in rows})
    for group in groups:
        of = np.array([e.source == group for e in rows])
        clean, bad = of & (truth == 0), of & (truth == 1)
        if min(clean.sum(), bad.sum()) >= GROUP_ROWS:
            figures = (share(ours[clean]), share(theirs[clean]), share(ours[bad]))
            yield f"| {group} | {of.sum()} | " + " | ".join(f.percent() for f in figures) + " |"


def error_rows(probe: Probe, data: SafetyData) -> Iterator[str]:
    """The worst mistakes on texts written for this project, by kind; those of others stay where they are."""
    for label, name, truth in (
        ("injection", "written_attacks", 1.0), ("injection", "attack_look_alikes", 0.0),
        ("injection", "written_documents", 1.0), ("harm", "look_alikes", 0.0),
        ("harm", "written_harmful", 1.0), ("toxicity", "written_comments", 0.0),
    ):  # fmt: skip
        rows = np.flatnonzero(probe.truth(label, name) == truth)
        scores = probe.ours(label, name)
        shown: dict[str, str] = {}
        for i in sorted(rows, key=lambda i: scores[i] if truth else -scores[i]):
            example = data.test[name][i]
            words = " ".join(example.text.split())[:110].replace("|", "\\|")
            shown.setdefault(
                " ".join(words.lower().split()[-3:]), f"| {label} | {name} | {scores[i]:.2f} | {words} |"
            )
            if len(shown) == ERRORS_SHOWN:
                break
        yield from shown.values()


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
    """Precision, recall and F by type; `overlap` counts a span that touches one of its type.

    A street address may be told as a place and the other way round: both say where somebody is.
    """
    for name in ("presidio", "wnut17", "written"):
        rows = data.test[name]
        kinds = sorted({kind for e in rows for kind, *_ in e.spans or ()}, key=ENTITY_TYPES.index)
        found = [[s for s in scorer.spans(e.text) if s[0] in kinds] for e in rows]
        for kind in (None, *kinds):
            truth = [[s for s in e.spans or () if kind in (None, s[0])] for e in rows]
            ours = [[s for s in spans if kind in (None, s[0])] for spans in found]
            if kind is None:
                truth, ours = (
                    [[(_WHERE.get(k, k), a, b) for k, a, b in r] for r in side] for side in (truth, ours)
                )
            precision, recall, f2 = span_scores(truth, ours, 2.0, exact=False)
            _, _, f1 = span_scores(truth, ours, 1.0, exact=True)
            count = sum(map(len, truth))
            figures = " | ".join(f"{figure:.2f}" for figure in (precision, recall, f2, f1))
            yield f"| {name} | {kind or 'all'} | {count} | {figures} |"


_WHERE = {"ADDRESS": "LOCATION"}


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


def _any(example: Example) -> float:
    return max((example.labels.get(label, 0.0) for label in MODERATION), default=0.0)


def report(run: Path, data: SafetyData, document: Path | None = None) -> tuple[str, tuple[Evaluation, ...]]:
    """The tables of docs/SAFETY.md, and the figures for the manifest; curves go beside `document`."""
    folder = run / "final"
    scorer = Scorer(folder, folder / "model.onnx")
    thresholds = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["thresholds"]
    trained = [
        *data.train,
        *(replace(e, labels={ANY: _any(e)}) for e in data.train if "toxicity" in e.labels or _any(e)),
    ]
    baselines = {
        label: Baseline(trained, label) for label in ("toxicity", "injection", "harm", "unsafe_reply", ANY)
    }
    probe = Probe(scorer, data, baselines)
    held_out = list(label_results(probe))
    head = ["| figure | data | rows | keel-guard, int8 | bag of words |", "|---|---|---|---|---|"]
    lines = ["### Labels, on held-out data", "", *head, *(r.row() for r in held_out), ""]
    lines += [
        "### Groups",
        "",
        "| group | rows | false positives | of the bag of words | recall |",
        "|---|---|---|---|---|",
        *group_rows(probe, data),
        "",
    ]
    lines += [
        "### Errors",
        "",
        "| label | data | score | text |",
        "|---|---|---|---|",
        *error_rows(probe, data),
        "",
    ]
    curves(probe, (document or run / "SAFETY.md").parent / "safety")
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


def curves(probe: Probe, folder: Path) -> None:
    """ROC, precision against recall, and reliability, as SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "toxicity, comments": ("toxicity", ("comments",)),
        "injection, mails": ("injection", ("mails_injected", "mails")),
        "injection, written": ("injection", ("written_attacks", "attack_look_alikes")),
        "harm, malicious": ("harm", ("malicious", ORDINARY)),
        "harm, look-alikes": ("harm", ("written_harmful", "look_alikes")),
        "unsafe replies": ("unsafe_reply", ("jailbroken_replies",)),
    }
    scored = {
        name: (
            np.concatenate([probe.truth(label, n) for n in names]),
            np.concatenate([probe.ours(label, n) for n in names]),
        )
        for name, (label, names) in sets.items()
    }
    for name, picture in pictures(scored).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def insert(document: Path, tables: str, mark: str = "figures") -> None:
    """Put the tables between the document's marks of that name; raises TrainingError where it has none."""
    text = document.read_text(encoding="utf-8")
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    block = f"{first}\n{tables}\n{last}"
    replaced, count = re.subn(f"{first}.*{last}", lambda _: block, text, flags=re.S)
    if count != 1:
        raise TrainingError(f"{document}: needs one block from {first} to {last}")
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
    data = build(arguments.data, config.seed, config.synthetic_scale)
    tables, evaluations = report(arguments.run, data, arguments.document)
    print(tables)
    record.model_copy(update={"evaluations": evaluations}).write(arguments.run)
    print(f"\nfigures recorded in {arguments.run / RECORD_NAME}")
    if arguments.document is not None:
        insert(arguments.document, tables)
    return 0
