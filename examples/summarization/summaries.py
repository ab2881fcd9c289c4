"""Short reports about what was sold in a shop, and how well a model sums them up in a sentence.

    python examples/summarization/summaries.py data runs/summaries-data
    keel-train sft --config examples/summarization/sft.yaml --data runs/summaries-data
    python examples/summarization/summaries.py measure runs/summaries/final

A report has one sale in two sentences, among others that do not matter. A summary is worth the share of the
four facts (who, what, when, for how much) that it tells right; the report's first sentence is the baseline.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.chat_model import read_model, read_tokenizer
from training.data.preferences import as_prompt, write_rows
from training.demo.world import ITEMS
from training.evaluate.metrics import Figure, mean
from training.rl.rollout import SampleConfig, generate

ASK = "Sum this up in one sentence."
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Laura", "Max")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
PRICES = (3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60)
ASIDES = (
    "It rained all morning.",
    "The shop was quiet.",
    "The cat slept in the window.",
    "There was music in the street.",
    "The coffee machine was broken again.",
    "A delivery came late.",
    "The sun was out.",
    "Two children looked at the candles.",
)


@dataclass(frozen=True, slots=True)
class Report:
    """A text, its summary, and the facts that a summary must tell."""

    text: str
    summary: str
    facts: tuple[str, ...]


def reports(count: int, seed: int) -> Iterator[Report]:
    """`count` reports, a function of the arguments."""
    chance = random.Random(f"summaries/{seed}")
    for _ in range(count):
        name, day, thing = chance.choice(NAMES), chance.choice(DAYS), chance.choice(ITEMS).name
        price = f"${chance.choice(PRICES)}"
        sale = chance.choice(
            (
                f"On {day} {name} came in and looked at the {thing}. In the end it was sold for {price}.",
                f"{name} asked for the {thing} on {day}. It cost {price} and was paid at once.",
                f"A {thing} was left, at {price}. {name} took it home on {day}.",
            )
        )
        first, second = chance.sample(ASIDES, 2)
        text = " ".join((first, sale, second) if chance.random() < 0.7 else (sale, first, second))
        yield Report(text, f"{name} bought the {thing} on {day} for {price}.", (name, thing, day, price))


def kept(summary: str, facts: Sequence[str]) -> float:
    """The share of the facts that the summary tells."""
    return sum(bool(re.search(rf"(?<!\w){re.escape(f)}(?!\w)", summary)) for f in facts) / len(facts)


def measure(place: Path, count: int = 200, seed: int = 1) -> dict[str, Figure]:
    """Facts kept and words, of the model's likeliest summary and of the first sentence."""
    tested = list(reports(count, seed))
    prompts = [as_prompt(f"{ASK}\n{report.text}") for report in tested]
    sampling = SampleConfig(max_new_tokens=40, temperature=0)
    found = generate(read_model(place), read_tokenizer(place), prompts, sampling).texts
    leads = [report.text.split(". ")[0] + "." for report in tested]
    return {
        "facts kept": mean([kept(s, r.facts) for s, r in zip(found, tested, strict=True)]),
        "all four": mean([float(kept(s, r.facts) == 1) for s, r in zip(found, tested, strict=True)]),
        "words": mean([float(len(s.split())) for s in found]),
        "facts kept, first sentence": mean([kept(s, r.facts) for s, r in zip(leads, tested, strict=True)]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["data", "measure"])
    parser.add_argument("place", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.what == "data":
        arguments.place.mkdir(parents=True, exist_ok=True)
        rows = (
            {"instruction": ASK, "input": r.text, "output": r.summary} for r in reports(arguments.count, 0)
        )
        print(f"{write_rows(arguments.place / 'summaries.jsonl', rows)} reports")
        return
    for name, figure in measure(arguments.place).items():
        print(f"{name:<28} {figure}")


if __name__ == "__main__":
    main()
