"""Names found by `keel-guard` and by Presidio with a spaCy pipeline, in the same texts.

`python scripts/safety_names.py --pipeline FOLDER --document docs/SAFETY.md` writes the table between the
document's `<!-- names -->` marks. FOLDER is a spaCy pipeline, such as the inner folder of the package
`en_core_web_sm` (the one with `config.cfg`); nothing is downloaded. Presidio runs with its own recognizers,
its defaults, and ORGANIZATION, which it leaves out by default, asked for. A street address counts as a place
for both, since Presidio knows no other kind of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine

from training.data.safety import entity_tests
from training.data.safety_example import Example
from training.evaluate.figures import Figure
from training.evaluate.metrics import Span, span_scores
from training.evaluate.safety import insert
from training.evaluate.scorer import Scorer

KINDS = {
    "PERSON": "PERSON",
    "LOCATION": "LOCATION",
    "ADDRESS": "LOCATION",
    "ORGANIZATION": "ORGANIZATION",
    "DATE_TIME": "DATE_TIME",
}
RESAMPLES = 300
Finder = Callable[[str], Sequence[Span]]


def presidio(pipeline: Path) -> Finder:
    """What Presidio finds with this pipeline, of the kinds that are compared."""
    configuration = NerModelConfiguration()  # ignores no labels; Presidio's configuration file does
    engine = SpacyNlpEngine([{"lang_code": "en", "model_name": str(pipeline)}], configuration)
    engine.load()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
    wanted = sorted(set(KINDS.values()))

    def find(text: str) -> Sequence[Span]:
        found = analyzer.analyze(text, language="en", entities=wanted)
        return [(result.entity_type, result.start, result.end) for result in found]

    return find


def scores(truth: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]]) -> str:
    """Precision, recall and F2 as the cells of a row, F2 with a bootstrap interval over texts."""
    precision, recall, f2 = span_scores(truth, found, 2.0, exact=False)
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES)]
    drawn = [span_scores([truth[i] for i in d], [found[i] for i in d], 2.0, exact=False)[2] for d in draws]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{precision:.2f} | {recall:.2f} | {Figure(f2, float(low), float(high), len(truth))}"


def table(sets: dict[str, list[Example]], finders: dict[str, Finder]) -> str:
    """For each set and kind that it has marked, a row with both."""
    lines = [
        "| data | type | spans | "
        + " | ".join(f"{name}: precision | recall | F2 (overlap)" for name in finders)
        + " |",
        "|---|---|---|" + "---|" * (3 * len(finders)),
    ]
    for name, rows in sets.items():
        truth = [[(KINDS[k], a, b) for k, a, b in e.spans or () if k in KINDS] for e in rows]
        kinds = sorted({kind for spans in truth for kind, *_ in spans})
        found = {}
        for who, find in finders.items():
            began = time.thread_time()
            told = [[(KINDS.get(k, k), a, b) for k, a, b in find(e.text)] for e in rows]
            print(
                f"{name}, {who}: {1e3 * (time.thread_time() - began) / len(rows):.1f} ms CPU a text",
                flush=True,
            )
            found[who] = [[span for span in spans if span[0] in kinds] for spans in told]
        for kind in (None, *kinds):
            of = [[s for s in spans if kind in (None, s[0])] for spans in truth]
            cells = [scores(of, [[s for s in r if kind in (None, s[0])] for r in found[w]]) for w in finders]
            lines.append(f"| {name} | {kind or 'all'} | {sum(map(len, of))} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, required=True, help="a spaCy pipeline's folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/keel-guard"))
    parser.add_argument("--document", type=Path, help="the document whose table is replaced")
    arguments = parser.parse_args()
    ours = Scorer(arguments.checkpoint, arguments.checkpoint / "model.onnx")
    finders = {"keel-guard": ours.spans, "Presidio": presidio(arguments.pipeline)}
    text = table(entity_tests(arguments.data, seed=1), finders)
    if arguments.document is not None:
        insert(arguments.document, text, "names")


if __name__ == "__main__":
    main()
