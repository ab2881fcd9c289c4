"""docs/RESULTS.md: every figure of a loop, good or bad, as the command found them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from training.evaluate.metrics import Figure
from training.evaluate.report import EvaluationFile
from training.loop.config import LoopConfig
from training.loop.measure import figure, gain, pooled
from training.loop.plots import PpoPath, draw_against_kl, draw_over_steps, smooth
from training.loop.progress import Progress
from training.loop.publish import BASE, evaluation, policies_of, replies_of
from training.provenance import code_revision

COLUMNS = (
    "gold",
    "gain over SFT",
    "win rate",
    "proxy",
    "KL",
    "violations",
    "over-refusals",
    "distinct-2",
    "words",
)
_METHODS = ("dpo", "ppo")


def rows_of(config: LoopConfig, work: Path, by_seed: bool) -> list[tuple[str, list[str]]]:
    """The table's rows as text: SFT, then each method over its seeds, or each seed by itself."""
    base = evaluation(work, BASE, choosing=False)
    rows = [("SFT", cells(base, base))]
    if by_seed:
        return rows + [
            (name, cells(evaluation(work, name, choosing=False), base)) for name in policies_of(config)
        ]
    for method in _METHODS:
        files = [evaluation(work, f"{method}-{seed}", choosing=False) for seed in config.seeds]
        rows.append((method.upper(), cells(pooled(method, files), base)))
    return rows


def cells(file: EvaluationFile, base: EvaluationFile) -> list[str]:
    itself = file.subject == base.subject
    return [
        _number(figure(file, "gold")),
        "–" if itself else _number(gain(file, base, "gold")),
        "–" if itself else _percent(figure(file, "win_rate")),
        _number(figure(file, "proxy")),
        "0" if itself else _number(figure(file, "kl"), 1),
        _percent(figure(file, "violations")),
        _percent(figure(file, "over_refusals")),
        _number(figure(file, "distinct_2"), 3),
        _number(figure(file, "words"), 1),
    ]


def show_table(config: LoopConfig, work: Path, console: Console) -> None:
    """The table on the terminal."""
    table = Table("")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for name, row in rows_of(config, work, by_seed=False):
        table.add_row(name, *row)
    console.print(table)


def write_results(config: LoopConfig, work: Path, progress: Progress, place: Path) -> None:
    """The report and its pictures, beside it in `results/`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    paths = [PpoPath.read(work / f"ppo-{seed}", seed) for seed in config.seeds]
    base = evaluation(work, BASE, choosing=False)
    files = {name: evaluation(work, name, choosing=False) for name in policies_of(config)}
    pictures = place.parent / "results"
    draw_over_steps(paths, pictures / "ppo-proxy-and-gold.svg")
    draw_against_kl(paths, files, base, pictures / "gold-against-kl.svg")
    parts = [
        _heading(config, progress),
        _table("The policies", rows_of(config, work, by_seed=False)),
        *([_table("Each seed", rows_of(config, work, by_seed=True))] if len(config.seeds) > 1 else []),
        _reading(config, files, base, progress),
        _optimisation(paths),
        _served(progress),
        _examples(work, str(progress.results["publish"]["chosen"])),
        _appendix(config),
    ]
    place.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _heading(config: LoopConfig, progress: Progress) -> str:
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in progress.seconds.items())
    minutes = sum(progress.seconds.values()) / 60
    results = progress.results
    accuracy = ", ".join(f"{v:.3f}" for k, v in results["reward"].items() if k.startswith("accuracy"))
    return f"""# Results: the loop, once around

Written by `keel-train loop --profile {config.profile}`, with what it found, good or bad. `make loop` runs the
full profile and writes this file anew. Revision `{code_revision()[:12]}`, {platform.machine()},
{os.cpu_count()} cores, {os.getloadavg()[2]:.0f} processes on them in the last quarter of an hour;
{minutes:.1f} minutes in all ({stages}).

The world is the demo shop (docs/training/demo.md). {config.demonstrations:,} demonstrations of mixed quality
trained the SFT model from `{config.base}`; it gave {config.replies} replies to each of
{config.questions} training questions, and five noisy raters, two of whom like long replies, compared them:
{results["preferences"]["pairs"]:,} pairs. From these came {config.reward_members} reward models (agreement
with held-out choices of the raters: {accuracy}; their mean is the *proxy*), DPO, and PPO against the proxy,
with seeds {", ".join(map(str, config.seeds))} each. *Gold* is the judge by plain rules that no training sees:
3.5 is a perfect reply, -5 about the worst.

The figures are of {config.test_questions} test questions, phrased as no training question is; one sampled
reply each, temperature 1, the same random numbers for all policies. Brackets are 95 % intervals over
questions. *Violations* are unsafe requests that are not refused, *over-refusals* harmless questions that are;
KL is in nats a reply."""


def _table(title: str, rows: Sequence[tuple[str, list[str]]]) -> str:
    lines = [f"## {title}", "", "| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in rows]
    return "\n".join(lines)


def _reading(
    config: LoopConfig, files: dict[str, EvaluationFile], base: EvaluationFile, progress: Progress
) -> str:
    lines = ["## Reading it", ""]
    for method in _METHODS:
        file = pooled(method, [files[f"{method}-{seed}"] for seed in config.seeds])
        better, helps = gain(file, base, "gold"), figure(file, "violations")
        verdict = (
            "better than" if better.low > 0 else "worse than" if better.high < 0 else "not told apart from"
        )
        lines.append(
            f"- **{method.upper()}** is {verdict} the SFT model by gold: {_number(better)}. It does not "
            f"refuse {_percent(helps)} of the unsafe requests (SFT: {_percent(figure(base, 'violations'))}), "
            f"and refuses {_percent(figure(file, 'over_refusals'))} of the harmless questions "
            f"(SFT: {_percent(figure(base, 'over_refusals'))})."
        )
        seeds = [figure(files[f"{method}-{seed}"], "gold").value for seed in config.seeds]
        if len(seeds) > 1:
            lines.append(f"  Its seeds' gold scores lie {max(seeds) - min(seeds):.2f} apart.")
    chosen = progress.results["publish"]["chosen"]
    lines.append(
        f"- Chosen was `{chosen}`: the highest gold score on {config.test_questions} other questions."
    )
    return "\n".join(lines)


def _optimisation(paths: Sequence[PpoPath]) -> str:
    lines = ["## The proxy and what it is worth", "", "![](results/ppo-proxy-and-gold.svg)", ""]
    for path in paths:
        proxy, gold, words = smooth(path.proxy, 10), smooth(path.gold, 10), smooth(path.words, 10)
        peak = max(range(len(gold)), key=gold.__getitem__)
        lost = gold[peak] - gold[-1]
        told = (
            f"gold peaked at step {peak + 1} with {gold[peak]:.2f} and ended {lost:.2f} lower, while the "
            f"proxy went from {proxy[peak]:.2f} to {proxy[-1]:.2f}: over-optimisation"
            if lost > 0.1 and proxy[-1] >= proxy[peak]
            else f"gold ended within 0.1 of its highest, {gold[peak]:.2f}: no over-optimisation so far"
            if lost <= 0.1
            else f"gold ended {lost:.2f} below its highest, and the proxy fell as well"
        )
        lines.append(
            f"- PPO, seed {path.seed}: proxy {path.proxy[0]:.2f} → {mean(path.proxy[-5:]):.2f}, gold "
            f"{path.gold[0]:.2f} → {mean(path.gold[-5:]):.2f}, words {words[0]:.0f} → {words[-1]:.0f}: "
            f"{told}."
        )
    lines += [
        "",
        "Means over ten steps of rollouts on training questions.",
        "",
        "![](results/gold-against-kl.svg)",
    ]
    return "\n".join(lines)


def _served(progress: Progress) -> str:
    published = progress.results["publish"]
    if "refused" in published:
        return f"## Not published\n\nThe gates refused `{published['chosen']}`: {published['refused']}"
    lines = ["## Published and served", "", f"`{published['ref'][:33]}…` passed:", ""]
    lines += [f"- {check}" for check in published["gates"]]
    served = progress.results.get("serve")
    if served is not None:
        before, after = served["before"], served["after"]
        lines += [
            "",
            "A gateway served the alias `shop` with a vLLM of its own, and went over to the new checkpoint "
            "while it ran: the alias was repointed and the policies were reloaded. OpenAI's client asked it "
            f"before and after, greedily: “{served['question']}”",
            "",
            "| `x-keel-checkpoint` | reply |",
            "|---|---|",
            f"| `{before['checkpoint'][:24]}…` | {before['text']} |",
            f"| `{after['checkpoint'][:24]}…` | {after['text']} |",
        ]
    return "\n".join(lines)


def _examples(work: Path, chosen: str, count: int = 8) -> str:
    base, ours = replies_of(work, BASE, choosing=False), replies_of(work, chosen, choosing=False)
    lines = [
        f"## The first {count} test questions",
        "",
        "| question | SFT | " + chosen + " |",
        "|---|---|---|",
    ]
    for prompt in list(base)[:count]:
        row = (prompt[-1].content, base[prompt], ours[prompt])
        lines.append("| " + " | ".join(text.replace("|", "/").replace("\n", " ") for text in row) + " |")
    return "\n".join(lines)


def _appendix(config: LoopConfig) -> str:
    return f"## The settings\n\n```yaml\n{config.to_yaml()}```"


def _number(figure: Figure, digits: int = 2) -> str:
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.0f} % [{100 * figure.low:.0f}, {100 * figure.high:.0f}]"
