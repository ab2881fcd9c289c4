"""Quality control of preference data: what a set of comparisons says about itself before anyone trains on it.

    duplicates      rows that repeat another one, and rows that nearly do
    contradictions  the same two replies preferred both ways; and cycles a > b > c > a
    agreement       Krippendorff's alpha over the pairs that several raters compared
    leakage         held-out prompts that stand, exactly or nearly, among the training prompts
    length          how often the longer reply wins: far from half, a model may learn length alone

Every measurement ends in a `Check` against a limit of `QualityLimits`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from training.config import Config
from training.data.preferences import Preference, Prompt
from training.data.quality_near import near_duplicates, normal_form
from training.evaluate.metrics import Figure, share
from training.publish import Check


class QualityLimits(Config):
    """Shares from 0 to 1. `agreement` is the least alpha (Krippendorff asks 0.667 for tentative conclusions;
    0.2 is still more than chance, and what harmlessness raters reach is not far above). `longer_wins` is
    the furthest from one half."""

    duplicates: float = Field(default=0.01, ge=0, le=1)
    near_duplicates: float = Field(default=0.05, ge=0, le=1)
    contradictions: float = Field(default=0.02, ge=0, le=1)
    cycles: float = Field(default=0.02, ge=0, le=1)
    agreement: float = Field(default=0.2, ge=-1, le=1)
    leakage: float = Field(default=0.0, ge=0, le=1)
    longer_wins: float = Field(default=0.15, ge=0, le=0.5)
    overlap: float = Field(default=0.8, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class Quality:
    """The outcome: a check per measurement, and rows to look at, by name of the check."""

    checks: tuple[Check, ...]
    examples: Mapping[str, tuple[str, ...]]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def table(self) -> str:
        """Markdown: check, outcome, figure; then examples of what failed."""
        lines = ["| check | outcome | found |", "|---|---|---|"]
        lines += [f"| {c.name} | {'pass' if c.passed else 'FAIL'} | {c.detail} |" for c in self.checks]
        for check in self.checks:
            shown = () if check.passed else self.examples.get(check.name, ())[:3]
            lines += [f"  {check.name}: {example}" for example in shown]
        return "\n".join(lines)


def examine(
    train: Sequence[Preference], held_out: Sequence[Preference] = (), limits: QualityLimits | None = None
) -> Quality:
    """All measurements; those of one set are made on the training rows."""
    limits = limits or QualityLimits()
    found = [
        _rows("duplicates", duplicates(train), len(train), limits.duplicates),
        _rows("near-duplicates", near_rows(train, limits.overlap), len(train), limits.near_duplicates),
        _rows("contradictions", contradictions(train), len(judged(train)), limits.contradictions, "pairs"),
        _rows("cycles", cycles(train), len({p.prompt for p in train}), limits.cycles, "prompts"),
        (_agreement(train, limits.agreement), ()),
        _rows("leakage", leakage(train, held_out, limits.overlap), len(held_out), limits.leakage),
        (_length(train, limits.longer_wins), ()),
    ]
    return Quality(tuple(c for c, _ in found), {c.name: tuple(e) for c, e in found})


def duplicates(rows: Sequence[Preference]) -> list[str]:
    """Rows that repeat an earlier one: same prompt, replies, objective and rater, up to case and spacing."""
    seen: set[Hashable] = set()
    repeated = []
    for row in rows:
        key = (_key(row.prompt), normal_form(row.chosen), normal_form(row.rejected), row.objective, row.rater)
        if key in seen:
            repeated.append(_show(row))
        seen.add(key)
    return repeated


def near_rows(rows: Sequence[Preference], least: float) -> list[str]:
    """Rows that nearly repeat another: prompt and both replies, in either order, as one text.

    Rows about the very same pair are not counted: several raters may compare it (`duplicates` and
    `contradictions` are about those).
    """
    texts = [
        " ".join([_key(r.prompt), *sorted((normal_form(r.chosen), normal_form(r.rejected)))]) for r in rows
    ]
    pairs = [(i, j) for i, j, _ in near_duplicates(texts, least) if texts[i] != texts[j]]
    return [_show(rows[j]) for j in sorted({j for _, j in pairs})]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to a prompt under one objective, whichever of them was preferred."""

    prompt: str
    objective: str
    replies: frozenset[str]

    def __str__(self) -> str:
        return (
            f"{self.prompt[-60:]!r}: {' against '.join(repr(reply[:40]) for reply in sorted(self.replies))}"
        )


def judged(rows: Iterable[Preference]) -> dict[Pair, list[tuple[str | None, str]]]:
    """Per pair of replies: who preferred which."""
    votes: dict[Pair, list[tuple[str | None, str]]] = defaultdict(list)
    for row in rows:
        chosen, rejected = normal_form(row.chosen), normal_form(row.rejected)
        if chosen != rejected:
            votes[Pair(_key(row.prompt), row.objective, frozenset((chosen, rejected)))].append(
                (row.rater, chosen)
            )
    return votes


def contradictions(rows: Sequence[Preference]) -> list[str]:
    """Pairs of replies that were preferred both ways."""
    return [str(pair) for pair, votes in judged(rows).items() if len({chosen for _, chosen in votes}) > 1]


def cycles(rows: Sequence[Preference]) -> list[str]:
    """Prompts under which majorities go round: a over b, b over c, c over a (or further)."""
    beats: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for pair, votes in judged(rows).items():
        (winner, count), *rest = Counter(chosen for _, chosen in votes).most_common()
        if not (rest and rest[0][1] == count):
            beats[pair.prompt, pair.objective][winner] |= pair.replies - {winner}
    return [repr(prompt[-80:]) for (prompt, _), graph in beats.items() if _has_cycle(graph)]


def _has_cycle(graph: Mapping[str, set[str]]) -> bool:
    """Remove what beats nobody that is left, until nothing changes; what remains goes round."""
    left = {reply: set(losers) for reply, losers in graph.items()}
    while True:
        done = [reply for reply, losers in left.items() if not losers & left.keys()]
        if not done:
            return bool(left)
        for reply in done:
            del left[reply]


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Nominal alpha: 1 is full agreement, 0 what chance gives; None where no unit has two values.

    `units` holds the values that each unit was given, by however many raters (Krippendorff 2011,
    "Computing Krippendorff's alpha-reliability"): 1 - observed / expected disagreement.
    """
    coincidences: dict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for values in units:
        counts = Counter(values)
        total = sum(counts.values())
        if total < 2:
            continue
        for a, many in counts.items():
            for b, others in counts.items():
                coincidences[a, b] += many * (others - (a == b)) / (total - 1)
    margins: dict[Hashable, float] = defaultdict(float)
    for (a, _), weight in coincidences.items():
        margins[a] += weight
    n = sum(margins.values())
    if n == 0:
        return None
    observed = sum(weight for (a, b), weight in coincidences.items() if a != b)
    expected = sum(margins[a] * margins[b] for a in margins for b in margins if a != b) / (n - 1)
    return 1.0 if expected == 0 else 1 - observed / expected


def rater_alpha(rows: Sequence[Preference]) -> tuple[float | None, int]:
    """Alpha over pairs that at least two raters compared, and how many pairs those are.

    A vote's value is whether the first reply of the two, in alphabetical order, won: coin tossing gives 0.
    """
    units = []
    for pair, votes in judged(rows).items():
        by_rater = dict(votes)
        if len(by_rater) > 1:
            units.append([chosen == min(pair.replies) for chosen in by_rater.values()])
    return krippendorff_alpha(units), len(units)


def leakage(train: Sequence[Preference], held_out: Sequence[Preference], least: float) -> list[str]:
    """Held-out rows whose first user message stands among the training rows', exactly or nearly."""
    ours = list(dict.fromkeys(normal_form(_first(row.prompt)) for row in train))
    known = set(ours)
    theirs = list(dict.fromkeys(normal_form(_first(row.prompt)) for row in held_out))
    pairs = near_duplicates([*ours, *theirs], least)
    near = {theirs[j - len(ours)] for i, j, _ in pairs if i < len(ours) <= j}
    return [_show(row) for row in held_out if normal_form(_first(row.prompt)) in known | near]


def longer_wins(rows: Sequence[Preference]) -> Figure | None:
    """How often the reply with more characters was chosen, among pairs of different lengths."""
    flags = [len(r.chosen) > len(r.rejected) for r in rows if len(r.chosen) != len(r.rejected)]
    return share(flags) if flags else None


def _agreement(rows: Sequence[Preference], least: float) -> Check:
    alpha, units = rater_alpha(rows)
    if alpha is None:
        return Check("agreement", True, "no pair was compared by two raters")
    return Check("agreement", alpha >= least, f"alpha {alpha:.2f} on {units} pairs, at least {least:g}")


def _length(rows: Sequence[Preference], most: float) -> Check:
    figure = longer_wins(rows)
    if figure is None:
        return Check("longer wins", True, "no pair of different lengths")
    return Check(
        "longer wins",
        abs(figure.value - 0.5) <= most,
        f"{figure.percent()}, within {50 - 100 * most:.0f} and {50 + 100 * most:.0f} %",
    )


def _rows(
    name: str, found: Sequence[str], total: int, most: float, what: str = "rows"
) -> tuple[Check, Sequence[str]]:
    part = len(found) / total if total else 0.0
    detail = f"{len(found)} of {total} {what} ({100 * part:.1f} %), at most {100 * most:g} %"
    return Check(name, part <= most, detail), found


def _key(prompt: Prompt) -> str:
    return "\n".join(f"{m.role}: {normal_form(m.content)}" for m in prompt)


def _first(prompt: Prompt) -> str:
    return next(message.content for message in prompt if message.role == "user")


def _show(row: Preference) -> str:
    who = f" [{row.id}]" if row.id is not None else ""
    return f"{row.prompt[-1].content[:60]!r}: {row.chosen[:40]!r} over {row.rejected[:40]!r}{who}"
