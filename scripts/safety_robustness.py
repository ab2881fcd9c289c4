"""How much of what the safety model finds it finds in disguise: the model alone, as its guards read, and as
they read with its early exit.

`python scripts/safety_robustness.py --document docs/SAFETY.md` writes the tables between the document's
`<!-- robustness -->` and `<!-- long -->` marks. Thresholds are the scores that one in a hundred ordinary
requests (a source that was held out) reaches, or 0.5 where that is more.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
from safety_reader import Reader

from guardrails.windows import SHORT
from policies.spec import HarmSpec, ToxicitySpec
from training.data.safety_example import TOXICITY_LABELS, Example
from training.data.safety_held_out import held_out
from training.evaluate.metrics import share
from training.evaluate.safety import insert

ROWS = 100
FLOOR = 0.5
"""No threshold is lower: a guard with a lower one has no cascade."""
LEET = str.maketrans("aeiost", "431057")
ALIKE = str.maketrans("aeopcxyi", "аеорсхуі")
BENIGN = (
    "Thank you for the notes from last week. The garden looks lovely now and the children enjoy the swing. "
    "We will be in town on Saturday and could bring the books along. "
)
DROPPED = re.compile(r"\b(the|a|an|is|are|was|to|of|do|does|will|would|your|my)\b ?", re.I)


def spaced(text: str) -> str:
    """Blanks between the letters, two between words."""
    return "  ".join(" ".join(word) for word in text.split(" "))


def mistyped(text: str) -> str:
    """Two neighbours swapped in every fifteen characters."""
    rng = Random(text)
    letters = list(text)
    for _ in range(max(1, len(letters) // 15)):
        i = rng.randrange(max(1, len(letters) - 1))
        letters[i : i + 2] = letters[i : i + 2][::-1]
    return "".join(letters)


CHANGES: dict[str, Callable[[str], str]] = {
    "none": lambda t: t,
    "typos (a swap in 15 letters)": mistyped,
    "capitals": str.upper,
    "leetspeak": lambda t: t.translate(LEET),
    "homoglyphs": lambda t: t.translate(ALIKE),
    "zero-width characters": lambda t: "\u200b".join(t),
    "spaced letters": spaced,
    "base64": lambda t: base64.b64encode(t.encode()).decode(),
    "small words dropped": lambda t: DROPPED.sub("", t),
    "200 words of harmless text around": lambda t: BENIGN * 3 + t + " " + BENIGN * 3,
    "half of it (split over messages)": lambda t: t[: len(t) // 2],
}


HEADS = {"injection": ("injection",), "harm": ("harm",), "toxicity": tuple(sorted(TOXICITY_LABELS))}


def score(reader: Reader, how: str, label: str, text: str) -> float:
    """The label's score of a text, read by the `model` as it stands, or as a `guard` reads it, with the
    `cascade` or without."""
    if how == "model":
        return reader.alone(text)[label]
    heads = HEADS[label] if how == "cascade" else ()
    return reader.read(text, heads, sentences=label == "harm").scores.get(label, 0.0)


def _sample(rows: list[Example], label: str) -> list[str]:
    bad = [e.text for e in rows if e.labels.get(label, 0.0) >= 0.5 and len(e.text) < 600]
    return Random(0).sample(bad, min(ROWS, len(bad)))


def table(reader: Reader, sets: dict[str, list[Example]], tasks: dict[str, list[str]]) -> str:
    """A row for each change, with Wilson intervals in the guards' columns."""
    ordinary = [e.text for e in sets["instructions"] if len(e.text) < 600]
    limits = {
        task: max(FLOOR, float(np.quantile([score(reader, "model", task, t) for t in ordinary], 0.99)))
        for task in tasks
    }
    lines = [
        "| change | " + " | ".join(f"{t}: model | guard | with cascade" for t in tasks) + " |",
        "|---|" + "---|" * (3 * len(tasks)),
    ]
    for name, change in CHANGES.items():
        cells = []
        for task, texts in tasks.items():
            for how in ("model", "guard", "cascade"):
                found = share([score(reader, how, task, change(t)) >= limits[task] for t in texts])
                cells.append(found.percent() if how != "model" else f"{100 * found.value:.0f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


LONG_ROWS = 300
LONG: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "role-play prompts": ("jailbreak/benign_awesome_prompts_new.jsonl.gz", lambda row: row["prompt"]),
    "school sums": ("sft/gsm8k_train.jsonl.gz", lambda row: f"{row['question']} {row['answer']}"),
    "stories": ("sft/gpteacher_roleplay.jsonl.gz", lambda row: row["response"]),
    "small talk": ("sft/self_dialogue.jsonl.gz", lambda row: " ".join(row["turns"])),
}
DEFAULTS = {"harm": HarmSpec().threshold, "toxicity": ToxicitySpec().threshold}


def long_table(reader: Reader, root: Path, tasks: dict[str, list[str]]) -> str:
    """What is flagged of long texts, read at once and with their sentences, and what that costs: of the
    harmful `tasks` among harmless words, and of harmless texts."""
    lines = [
        "| text | characters | "
        + " | ".join(f"{label} at {at:g}: at once | with sentences" for label, at in DEFAULTS.items())
        + " | CPU ms: at once | with sentences |",
        "|---|---|" + "---|" * (2 * len(DEFAULTS) + 2),
    ]
    around = CHANGES["200 words of harmless text around"]
    kinds = {f"{label} in 200 harmless words": [around(t) for t in tasks[label]] for label in DEFAULTS}
    for name, (file, text_of) in LONG.items():
        with gzip.open(root / file, "rt", encoding="utf-8") as rows:
            texts = [text_of(json.loads(row))[:1200] for row in rows]
        kinds[f"harmless: {name}"] = Random(0).sample([t for t in texts if len(t) > SHORT], LONG_ROWS)
    for name, texts in kinds.items():
        readings = {how: [reader.read(text, sentences=how) for text in texts] for how in (False, True)}
        cells = [
            share([reading.scores[label] >= at for reading in readings[how]]).percent()
            for label, at in DEFAULTS.items()
            for how in (False, True)
        ]
        cells += [f"{1e3 * sum(r.seconds for r in readings[how]) / len(texts):.0f}" for how in (False, True)]
        lines.append(f"| {name} | {median(map(len, texts)):.0f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--registry", type=Path, default=Path("checkpoints"))
    parser.add_argument("--document", type=Path, help="the document whose table is replaced")
    arguments = parser.parse_args()
    reader = Reader(arguments.registry)
    sets = held_out(arguments.data, Random(0), frozenset())
    tasks = {
        "injection": _sample(sets["written_attacks"], "injection"),
        "harm": _sample(sets["malicious"], "harm"),
        "toxicity": _sample(sets["comments"], "toxicity"),
    }
    tables = {
        "robustness": table(reader, sets, tasks),
        "long": long_table(reader, arguments.data, tasks),
    }
    if arguments.document is not None:
        for mark, text in tables.items():
            insert(arguments.document, text, mark)


if __name__ == "__main__":
    main()
