"""What the safety model's early exit saves, and what it loses beside the whole encoder.

`python scripts/safety_cascade.py --document docs/SAFETY.md` writes the tables between the document's
`<!-- cascade -->` marks. All sets are held out: nothing was trained, and no limit chosen, on their sources.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from safety_reader import Reader, Reading

from guardrails.guard import Stage
from policies.load import load_policy
from policies.spec import PolicySpec
from training.data.entities import read_rows
from training.data.safety import entity_tests, held_out_intents
from training.data.safety_example import TOXICITY_LABELS, Example
from training.data.safety_held_out import held_out
from training.evaluate.figures import share
from training.evaluate.metrics import auc, bootstrap
from training.evaluate.safety import insert

SEED = 1
MOST = 100
"""Rows of a set whose traffic is measured."""
POLICIES = ("standard", "strict")
ALONE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "injection": ("injection alone, input", ("requests", "instructions", "mails", "written_attacks")),
    "unsafe_reply": ("harm alone, a reply with its prompt", ("safe_answers", "jailbroken_replies")),
}
"""Single guards, by the head that they ask about."""
ORDINARY: Mapping[Stage, tuple[str, ...]] = {
    "input": ("requests", "instructions", "mails"),
    "output": ("replies", "safe_replies"),
}
HARD: Mapping[Stage, tuple[str, ...]] = {
    "input": ("comments", "malicious", "written_attacks"),
    "output": ("comments", "jailbroken"),
}


@dataclass(slots=True)
class Traffic:
    """Sums over the texts of one set."""

    left: int = 0
    pieces: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"cascade": 0.0, "encoder": 0.0})

    def row(self) -> str:
        each = [f"{1e6 * self.seconds[k] / max(1, self.tokens):.1f}" for k in ("encoder", "cascade")]
        saved = 1 - self.seconds["cascade"] / max(1e-9, self.seconds["encoder"])
        passed = self.left / max(1, self.pieces)
        return f"{self.pieces} | {100 * passed:.0f} % | {each[0]} | {each[1]} | {100 * saved:.0f} % |"


def sets(root: Path) -> dict[str, list[Example]]:
    """All held-out sets, with the ordinary replies of AlpacaEval and the replies of JailbreakBench whole."""
    found = held_out(root, Random(f"held out {SEED}"), held_out_intents(root, Random(SEED)))
    rows = read_rows(root / "research_only/alpaca_eval_prompts.jsonl.gz")
    found["replies"] = [Example(r["ref_output"], {}, "alpaca_eval") for r in rows if r["ref_output"].strip()]
    rows = read_rows(root / "research_only/safety_only.jsonl.gz")
    found["safe_replies"] = [Example(r["output"], {}, "safety_only") for r in rows if r["output"].strip()]
    rows = read_rows(root / "jailbreak/jbb_JBC_randomsearch.jsonl.gz")
    found["jailbroken"] = [
        Example(r["response"], {}, "jbb") for r in rows if r["response"] and r["jailbroken"]
    ]
    return found | entity_tests(root, SEED)


def traffic(reader: Reader, texts: Sequence[str], heads: tuple[str, ...], stage: Stage) -> Traffic:
    """Each text read with and without the exit, in turn."""
    total = Traffic()
    for text in texts:
        asked, whole = reader.excerpts(text, heads, stage), reader.excerpts(text, (), stage)
        for name, excerpts in (("encoder", whole), ("cascade", asked)):
            reading = reader.ask(excerpts)
            total.seconds[name] += reading.seconds
        total.left += reading.pieces.get("exit", 0)
        total.pieces += len(asked)
        total.tokens += sum(reader.tokens(excerpt.text) for excerpt in asked)
    return total


def traffic_rows(reader: Reader, data: Mapping[str, list[Example]]) -> Iterator[str]:
    """By policy, stage and set."""
    cost = "CPU ms per 1,000 tokens, whole encoder | with the exit | saved"
    yield f"| guards | data | pieces | left by the exit | {cost} |"
    yield "|---|---|---|---|---|---|---|"
    uses: list[tuple[str, tuple[str, ...], Stage, tuple[str, ...]]] = [
        (where, (head,), "input", kinds) for head, (where, kinds) in ALONE.items()
    ]
    library = Path(__file__).parent.parent / "policies" / "library"
    for name in POLICIES:
        loaded = load_policy(library / f"{name}.yaml")
        assert isinstance(loaded.spec, PolicySpec)  # noqa: S101  a library policy is one
        for stage, heads in reader.policy_heads(loaded.spec).items():
            uses.append((f"`{name}`, {stage}", heads, stage, (*ORDINARY[stage], *HARD[stage])))
    for where, heads, stage, kinds in uses:
        for kind in kinds:
            texts = [e.text for e in data[kind]][:MOST]
            yield f"| {where} | {kind} | {traffic(reader, texts, heads, stage).row()}"


@dataclass(frozen=True, slots=True)
class Figures:
    """One label on one set, by the whole encoder and with the exit."""

    label: str
    data: str
    threshold: float


QUALITY = (
    Figures("toxicity", "comments", 0.5),
    Figures("toxicity", "comments", 0.7),
    Figures("toxicity", "written_comments", 0.5),
    Figures("injection", "jailbreaks", 0.9),
    Figures("injection", "mails_injected", 0.9),
    Figures("injection", "written_attacks", 0.9),
    Figures("injection", "written_attacks", 0.7),
    Figures("injection", "written_documents", 0.9),
    Figures("harm", "malicious", 0.8),
    Figures("harm", "written_harmful", 0.8),
    Figures("unsafe_reply", "jailbroken_replies", 0.8),
)
HEADS: Mapping[str, tuple[str, ...]] = {
    "toxicity": tuple(sorted(TOXICITY_LABELS)),
    "injection": ("injection",),
    "harm": ("harm",),
    "unsafe_reply": ("unsafe_reply",),
}


def quality_rows(reader: Reader, data: Mapping[str, list[Example]]) -> Iterator[str]:
    """Recall at thresholds in use. The exit is asked for the label alone, so that it passes most."""
    yield "| label | data | rows | at | recall, whole encoder | with the exit | of those found, lost |"
    yield "|---|---|---|---|---|---|---|"
    seen: dict[tuple[str, str], tuple[list[Reading], list[Reading]]] = {}
    for one in QUALITY:
        rows = [e for e in data[one.data] if e.labels.get(one.label, 0.0) >= 0.5]
        key = one.label, one.data
        if key not in seen:
            seen[key] = (
                [reader.read(e.text) for e in rows],
                [reader.read(e.text, HEADS[one.label]) for e in rows],
            )
        alone, cascade = (
            np.array([r.scores.get(one.label, 0.0) >= one.threshold for r in readings])
            for readings in seen[key]
        )
        lost = share(~cascade[alone]).percent() if alone.any() else "–"
        yield (
            f"| {one.label} | {one.data} | {len(rows)} | {one.threshold:g} | {share(alone).percent()} | "
            f"{share(cascade).percent()} | {lost} |"
        )
    yield from auc_rows(reader, data)


def auc_rows(reader: Reader, data: Mapping[str, list[Example]]) -> Iterator[str]:
    """AUC with both, over the sets that docs/SAFETY.md ranks."""
    yield ""
    yield "| label | data | rows | AUC, whole encoder | with the exit |"
    yield "|---|---|---|---|---|"
    for label, names in (
        ("toxicity", ("comments",)),
        ("injection", ("mails_injected", "mails")),
        ("harm", ("malicious", "instructions")),
    ):
        rows = [e for name in names for e in data[name]]
        truth = np.array([float(e.labels.get(label, 0.0) >= 0.5) for e in rows])
        figures = [
            bootstrap(auc, truth, np.array([reader.read(e.text, heads).scores[label] for e in rows]))
            for heads in ((), HEADS[label])
        ]
        yield f"| {label} | {' + '.join(names)} | {len(rows)} | {figures[0]} | {figures[1]} |"


def name_rows(reader: Reader, data: Mapping[str, list[Example]]) -> Iterator[str]:
    """Of the texts in which the encoder finds a name of a kind, those that leave before."""
    yield "| kind | data | texts with one, by the encoder | of those, lost |"
    yield "|---|---|---|---|"
    for name in ("presidio", "wnut17", "written"):
        for kind in ("PERSON", "LOCATION", "ORGANIZATION"):
            found = [e.text for e in data[name] if kind in reader.read(e.text).kinds]
            if len(found) >= 20:
                lost = [kind not in reader.read(text, (kind,)).kinds for text in found]
                yield f"| {kind} | {name} | {len(found)} | {share(lost).percent()} |"


def tables(reader: Reader, root: Path) -> str:
    """Everything, as Markdown."""
    data = sets(root)
    parts = {
        "Traffic and cost": traffic_rows(reader, data),
        "Quality": quality_rows(reader, data),
        "Names": name_rows(reader, data),
    }
    lines: list[str] = []
    for title, rows in parts.items():
        lines += [f"### {title}", "", *rows, ""]
        print("\n".join(lines[-50:]), flush=True)
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--registry", type=Path, default=Path("checkpoints"))
    parser.add_argument("--document", type=Path, help="the document whose tables are replaced")
    arguments = parser.parse_args()
    text = tables(Reader(arguments.registry), arguments.data)
    if arguments.document is not None:
        insert(arguments.document, text, "cascade")


if __name__ == "__main__":
    main()
