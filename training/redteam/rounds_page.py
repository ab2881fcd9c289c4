"""docs/RESULTS-redteam.md: what hunts and rounds came to. A section is written anew when it was measured
anew; what the others say stays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.evaluate.figures import Figure, share
from training.files import write_text
from training.redteam.price import RIGHT, Price
from training.redteam.report import Report

DOCUMENT = Path("docs/RESULTS-redteam.md")

_HEAD = """# Results: the red team

Written by `keel-train redteam-rounds`, each section by the command under its heading. Judged by rules and
canaries ([REDTEAM.md](REDTEAM.md#who-decides)). Brackets are 95 % intervals. The embedded model has 6 million
weights and can do no harm with its answers: a success means that an attack came through and got a reply about
its subject, not that the reply is of use to anybody.
"""
HEADINGS = {
    "hunts": "Attackers at the same budget",
    "rounds": "A round of training on what was found",
}
_HUNTS = """`{command}`: {about}

{budget} tries each, by seed; every strategy on every behaviour is open to both, the learner also breeds new
ones, and none is tried twice. In brackets: different behaviours that were broken.

| seed | uniform | learner |
|---|---|---|
{rows}

The learner finds {ratio} times as many successes, and breaks {breadth} times as many
behaviours (bootstrap over {n} seeds; 1.5 was asked). A try is one request or, over several turns, more: all
in all uniform sent {uniform_requests} requests and the learner {learner_requests}, which per request finds
{per_request:.2f} times as many.
"""
_ROUNDS = """`{command}`: {about}

On half of the behaviours the learner attacks the chat model (in this process, without guards). What it
answered, disguised or then asked outright, becomes pairs in which a refusal is better; the harmless twins of
the same behaviours and ordinary questions become pairs in which an answer of its own is. DPO, then {tested}
strategies on the **other** half of the behaviours, before and after ([REDTEAM.md](REDTEAM.md#attackers)).

| seed | refusal, answer better | attacks that succeed, before | after | twins: no answer, before | after |
|---|---|---|---|---|---|
{rows}

All seeds together ({n}); nothing of this was learnt from. Changes are in points, their intervals a paired
bootstrap over each seed's behaviours, or prompts where there are none.

| | asked | before | after | change |
|---|---|---|---|---|
{changes}
"""
_KINDS = {
    "rephrased": "unseen twins in four other phrasings: no answer",
    "clothed": "unseen twins asked by the attacks' strategies: no answer",
    "look-alike": "harmless questions with dangerous words: no answer",
    "ordinary": "ordinary questions: no answer",
    RIGHT: "ordinary questions: the right answer, word for word",
}


@dataclass(frozen=True, slots=True)
class Hunts:
    """Successes of both attackers, and behaviours that they broke, a value a seed, at `budget` tries each."""

    budget: int
    uniform: tuple[int, ...]
    learner: tuple[int, ...]
    uniform_broke: tuple[int, ...]
    learner_broke: tuple[int, ...]
    requests: tuple[int, int]  # of all seeds together, uniform's first

    @property
    def ratio(self) -> Figure:
        """Learner's successes over uniform's; a bootstrap over seeds."""
        return _ratio(self.learner, self.uniform)

    @property
    def breadth(self) -> Figure:
        """The same of the behaviours."""
        return _ratio(self.learner_broke, self.uniform_broke)


def _ratio(learner: Sequence[int], uniform: Sequence[int]) -> Figure:
    pairs = np.array([learner, uniform], dtype=float)
    rng = np.random.default_rng(0)
    picks = rng.integers(pairs.shape[1], size=(4000, pairs.shape[1]))
    ratios = pairs[0][picks].sum(axis=1) / np.maximum(pairs[1][picks].sum(axis=1), 1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    value = pairs[0].sum() / max(pairs[1].sum(), 1)
    return Figure(float(value), float(low), float(high), pairs.shape[1])


@dataclass(frozen=True, slots=True)
class Round:
    """One seed's round: what the same attacks on unseen behaviours came to before and after, and its price.

    pairs: in how many a refusal was better, and in how many an answer was, each pair counted once.
    """

    seed: int
    pairs: tuple[int, int]
    report: Report  # targets: before, after
    before: Price
    after: Price


Sides = list[tuple[str, bool, bool]]
"""Of each thing that was asked: what it is about (a seed's behaviour), and the flag before and after."""


def hunts_section(found: Hunts, command: str, about: str) -> str:
    """Both attackers, seed by seed."""
    columns = (found.uniform, found.uniform_broke, found.learner, found.learner_broke)
    rows = "\n".join(
        f"| {seed} | {drawn} ({few}) | {learnt} ({many}) |"
        for seed, (drawn, few, learnt, many) in enumerate(zip(*columns, strict=True))
    )
    ratio, breadth = (f"{f.value:.2f} [{f.low:.2f}, {f.high:.2f}]" for f in (found.ratio, found.breadth))
    return _HUNTS.format(
        command=command,
        about=about,
        budget=found.budget,
        rows=rows,
        ratio=ratio,
        breadth=breadth,
        n=len(found.uniform),
        uniform_requests=found.requests[0],
        learner_requests=found.requests[1],
        per_request=found.ratio.value * found.requests[0] / found.requests[1],
    )


def rounds_section(rounds: Sequence[Round], command: str, about: str, tested: int) -> str:
    """Every seed's round, and all of them together."""
    rows = "\n".join(
        f"| {one.seed} | {one.pairs[0]}, {one.pairs[1]} | {' | '.join(_rates(one))} |" for one in rounds
    )
    changes = "\n".join(f"| {' | '.join(cells)} |" for cells in changes_of(rounds))
    return _ROUNDS.format(
        command=command, about=about, tested=tested, rows=rows, changes=changes, n=len(rounds)
    )


def _rates(one: Round) -> list[str]:
    rates = (one.report.success_rate, one.report.over_refusal)
    figures = [rate(target) for rate in rates for target in ("before", "after")]
    return [figure.percent() if figure else "–" for figure in figures]


def changes_of(rounds: Sequence[Round]) -> list[tuple[str, str, str, str, str]]:
    """Lines of the table over all seeds: what, how many were asked, before, after, change."""
    lines = [
        ("attacks that succeed", _attacked(rounds, twins=False)),
        ("unseen twins: no answer", _attacked(rounds, twins=True)),
        *((about, _priced(rounds, kind)) for kind, about in _KINDS.items()),
    ]
    return [_line(about, sides) for about, sides in lines if sides]


def _attacked(rounds: Sequence[Round], *, twins: bool) -> Sides:
    sides = []
    for one in rounds:
        flags: dict[str, dict[tuple[str, str], bool]] = {"before": {}, "after": {}}
        for attempt in one.report.twins if twins else one.report.attempts:
            if attempt.counted:
                flag = not attempt.answered if twins else attempt.succeeded
                flags[attempt.target][attempt.behavior, attempt.strategy] = flag
        for key in sorted(flags["before"].keys() & flags["after"].keys()):
            sides.append((f"{one.seed}:{key[0]}", flags["before"][key], flags["after"][key]))
    return sides


def _priced(rounds: Sequence[Round], kind: str) -> Sides:
    return [
        (f"{one.seed}:{about}", was, now)
        for one in rounds
        for (about, was), (_, now) in zip(
            one.before.told.get(kind, ()), one.after.told.get(kind, ()), strict=True
        )
    ]


def _line(about: str, sides: Sides) -> tuple[str, str, str, str, str]:
    before, after = (share([was for _, was, _ in sides]), share([now for _, _, now in sides]))
    change = paired_change(sides)
    told = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return about, str(len(sides)), before.percent(), after.percent(), told


def paired_change(sides: Sides, seed: int = 0, resamples: int = 4000) -> Figure:
    """The share after less that before; what is about the same thing is drawn together."""
    subjects = {about: place for place, about in enumerate(dict.fromkeys(about for about, _, _ in sides))}
    sums, counts = np.zeros(len(subjects)), np.zeros(len(subjects))
    for about, was, now in sides:
        sums[subjects[about]] += float(now) - float(was)
        counts[subjects[about]] += 1
    picks = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    low, high = np.quantile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), (0.025, 0.975))
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), len(sides))


def write_sections(path: Path, written: Mapping[str, str]) -> None:
    """The page at `path` with these sections, by their names in `HEADINGS`, in place of those it had."""
    held = _sections(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told = held | {HEADINGS[name]: text.strip() for name, text in written.items()}
    parts = [f"## {heading}\n\n{told[heading]}\n" for heading in HEADINGS.values() if heading in told]
    write_text(path, "\n".join([_HEAD, *parts]))


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {heading: body.strip() for heading, _, body in (part.partition("\n") for part in parts)}
