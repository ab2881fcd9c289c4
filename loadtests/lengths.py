"""How long people's turns are and how many a dialogue has: figures of real dialogues, and draws from them.

Only the figures are kept (`lengths.json`), never a text. They are quantiles, so that a draw by the inverse
of the distribution function has the same lengths as the dialogues. `python -m loadtests.lengths FILE…` takes
them anew from gzipped JSON lines with a field `turns`, a list of texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FIGURES = Path(__file__).with_name("lengths.json")
LEVELS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)  # per cent


@dataclass(frozen=True)
class Quantiles:
    """A distribution by its values at `LEVELS`; between two of them it is taken as even."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, sample: Sequence[int]) -> Quantiles:
        """The quantiles of a sample."""
        ordered = sorted(sample)
        return cls(tuple(float(ordered[round(level / 100 * (len(ordered) - 1))]) for level in LEVELS))

    def draw(self, rng: random.Random) -> int:
        """One value, at least 1."""
        level = rng.random() * LEVELS[-1]
        at = next(i for i, upper in enumerate(LEVELS[1:], 1) if level <= upper)
        share = (level - LEVELS[at - 1]) / (LEVELS[at] - LEVELS[at - 1])
        low, high = self.values[at - 1], self.values[at]
        return max(1, round(low + share * (high - low)))


@dataclass(frozen=True)
class Lengths:
    """Words of a turn, and turns of a dialogue."""

    words: Quantiles
    turns: Quantiles

    @classmethod
    def load(cls, path: Path = FIGURES) -> Lengths:
        """The figures that this repository holds."""
        kept = json.loads(path.read_text())
        return cls(Quantiles(tuple(kept["words_per_turn"])), Quantiles(tuple(kept["turns_per_dialogue"])))


def _dialogues(paths: Sequence[Path]) -> Iterator[list[str]]:
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["turns"]


def main() -> None:
    """Measure dialogues and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.lengths", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="gzipped JSON lines with a field 'turns'")
    parser.add_argument("--source", required=True, help="where the dialogues come from, and their licences")
    parser.add_argument("--out", type=Path, default=FIGURES)
    args = parser.parse_args()
    dialogues = [[len(text.split()) for text in turns] for turns in _dialogues(args.files)]
    words = [count for turns in dialogues for count in turns]
    figures = {
        "source": args.source,
        "dialogues": len(dialogues),
        "turns": len(words),
        "quantiles_per_cent": list(LEVELS),
        "words_per_turn": list(Quantiles.of(words).values),
        "turns_per_dialogue": list(Quantiles.of([len(turns) for turns in dialogues]).values),
    }
    args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
