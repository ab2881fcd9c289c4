"""What a red team found: attack-success rates with intervals, over-refusal beside them, how judges agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, ValidationError
from rich.table import Table

from training.config import Config
from training.errors import TrainingError
from training.evaluate.figures import Figure, share
from training.files import write_text
from training.redteam.campaign import Attempt
from training.redteam.verdicts import kappa

Key = Callable[[Attempt], str]
OF_TWINS = ("domain", "hazard", "goal")
"""The groupings that harmless twins fall into as well; they are asked plainly, by no strategy."""

GROUPINGS: dict[str, Key] = {
    "strategy": lambda attempt: attempt.strategy,
    "family": lambda attempt: attempt.family,
    "domain": lambda attempt: attempt.domain,
    "hazard": lambda attempt: attempt.hazard,
    "goal": lambda attempt: attempt.goal,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a group, and each target's rates in it; None where nothing was counted.

    rates: of attacks that succeeded. refusals: of harmless twins without an answer (`OF_TWINS`).
    """

    group: str
    rates: tuple[Figure | None, ...]
    refusals: tuple[Figure | None, ...] = ()


class Report(Config):
    """All attempts of one run, on one target or several that got the same attacks.

    `attempts` are attacks, `twins` harmless requests. The attack-success rate is succeeded / counted
    attempts, over-refusal the share of twins that got no answer. Intervals are Wilson's at 95 %.
    """

    targets: tuple[str, ...]
    seed: int = 0
    attempts: tuple[Attempt, ...] = ()
    twins: tuple[Attempt, ...] = ()
    about: dict[str, str] = Field(default_factory=dict)

    def success_rate(
        self, target: str | None = None, among: Callable[[Attempt], bool] | None = None
    ) -> Figure | None:
        """Of a target (the first by default), over the attempts that `among` takes; None for no attempts."""
        target = target or self.targets[0]
        mine = [a for a in self.attempts if a.counted and a.target == target]
        flags = [a.succeeded for a in mine if among is None or among(a)]
        return share(flags) if flags else None

    def over_refusal(
        self, target: str | None = None, among: Callable[[Attempt], bool] | None = None
    ) -> Figure | None:
        """The share of harmless twins that were blocked or refused, over those that `among` takes."""
        target = target or self.targets[0]
        mine = [a for a in self.twins if a.counted and a.target == target]
        flags = [not a.answered for a in mine if among is None or among(a)]
        return share(flags) if flags else None

    def rows(self, grouping: str) -> list[Row]:
        """The rates by one of `GROUPINGS`; the highest of the first target first."""
        key = GROUPINGS[grouping]
        groups = sorted({key(a) for a in self.attempts if a.counted})
        rows = [self._row(key, group, grouping in OF_TWINS) for group in groups]
        return sorted(rows, key=lambda row: -(row.rates[0].value if row.rates[0] else 0.0))

    def _row(self, key: Key, group: str, twins: bool) -> Row:
        def among(attempt: Attempt) -> bool:
            return key(attempt) == group

        rates = tuple(self.success_rate(target, among) for target in self.targets)
        refusals = tuple(self.over_refusal(target, among) for target in self.targets) if twins else ()
        return Row(group, rates, refusals)

    def difference(self, one: str, other: str, seed: int = 0) -> Figure | None:
        """The success rate on `one` less that on `other`, paired over the attacks that both got."""
        by_target: list[dict[tuple[str, str], bool]] = [
            {(a.behavior, a.strategy): a.succeeded for a in self.attempts if a.target == t and a.counted}
            for t in (one, other)
        ]
        both = sorted(by_target[0].keys() & by_target[1].keys())
        if not both:
            return None
        gaps = np.array([float(by_target[0][k]) - float(by_target[1][k]) for k in both])
        rng = np.random.default_rng(seed)
        means = gaps[rng.integers(len(gaps), size=(2000, len(gaps)))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        return Figure(float(gaps.mean()), float(low), float(high), len(gaps))

    def outcomes(self, target: str, *, twins: bool = False) -> dict[str, int]:
        """How many attacks, or twins, ended how."""
        mine = self.twins if twins else self.attempts
        return dict(Counter(attempt.outcome for attempt in mine if attempt.target == target))

    def summary(self) -> dict[str, Any]:
        """What a pipeline reads, by target: rates with intervals and counts, outcomes, what broke."""
        return {
            target: {
                "success": _told(self.success_rate(target)),
                "twins_unanswered": _told(self.over_refusal(target)),
                "outcomes": self.outcomes(target),
                "twin_outcomes": self.outcomes(target, twins=True),
                "by_strategy": {
                    row.group: _told(row.rates[place]) for row in self.rows("strategy") if row.rates[place]
                },
                "behaviors_broken": sorted({attempt.behavior for attempt in self.successes(target)}),
            }
            for place, target in enumerate(self.targets)
        }

    def agreement(self) -> dict[tuple[str, str], tuple[float | None, int]]:
        """Cohen's kappa of every two judges, and on how many replies; None where it isn't defined."""
        judged = [a.verdicts for a in self.attempts if len(a.verdicts) > 1]
        names = sorted({name for verdicts in judged for name in verdicts})
        found = {}
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                pairs = [(v[one], v[other]) for v in judged if one in v and other in v]
                if pairs:
                    left, right = zip(*pairs, strict=True)
                    found[one, other] = (kappa(left, right), len(pairs))
        return found

    def successes(self, target: str | None = None) -> list[Attempt]:
        """The attacks that worked."""
        target = target or self.targets[0]
        return [a for a in self.attempts if a.succeeded and a.target == target]

    # Showing and keeping

    def table(self, grouping: str = "strategy") -> Table:
        """For a terminal: rates by group, then all, then over-refusal; by domain also over-refusal's own."""
        rows = self.rows(grouping)
        split = any(row.refusals for row in rows)
        heads = [f"{target}: attacks succeeded" for target in self.targets]
        heads += [f"{target}: twins unanswered" for target in self.targets] if split else []
        table = Table(grouping, *heads, "attacks", caption=self._caption())
        for row in rows:
            table.add_row(row.group, *map(_cell, (*row.rates, *row.refusals)), _count(row.rates))
        totals = [self.success_rate(target) for target in self.targets]
        refusals = [self.over_refusal(target) for target in self.targets]
        table.add_section()
        table.add_row("all attacks", *map(_cell, [*totals, *refusals] if split else totals), _count(totals))
        if not split:
            table.add_row("harmless twins not answered", *map(_cell, refusals), _count(refusals))
        return table

    def _caption(self) -> str:
        failed = sum(not attempt.counted for attempt in (*self.attempts, *self.twins))
        lost = f" {failed} requests failed and count for nothing." if failed else ""
        return f"Brackets: 95 % intervals (Wilson).{lost}"

    def write(self, path: Path) -> None:
        """As JSON, with its `summary`, which reading it again leaves out."""
        content = {"summary": self.summary(), **self.model_dump(mode="json")}
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises TrainingError for a file that is no report."""
        try:
            content = json.loads(path.read_bytes())
            content.pop("summary", None)
            return cls.model_validate(content)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise TrainingError(f"{path}: not a red team's report: {error.errors()[0]['msg']}") from error
        except (ValueError, AttributeError) as error:
            raise TrainingError(f"{path}: not a red team's report: {error}") from error

    @classmethod
    def merged(cls, reports: Sequence[Self]) -> Self:
        """Reports of the same attacks on different targets, as one."""
        first = reports[0]
        return cls(
            targets=tuple(dict.fromkeys(chain.from_iterable(r.targets for r in reports))),
            seed=first.seed,
            attempts=tuple(chain.from_iterable(r.attempts for r in reports)),
            twins=tuple(chain.from_iterable(r.twins for r in reports)),
            about=first.about,
        )


def _cell(figure: Figure | None) -> str:
    return "–" if figure is None else figure.percent()


def _count(figures: Sequence[Figure | None]) -> str:
    return str(max((figure.n for figure in figures if figure), default=0))


def _told(figure: Figure | None) -> dict[str, float] | None:
    """None where nothing was counted."""
    return None if figure is None else asdict(figure)
