"""The two pictures of docs/RESULTS.md, as SVG: what the proxy promised and what the gold judge found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from training.data.preferences import as_prompt
from training.demo.gold import gold_score
from training.evaluate.report import EvaluationFile
from training.loop.measure import figure

PROXY, GOLD, GREY = "#c2571a", "#1f6f8b", "#8a8a8a"
_MARKS = {"dpo": "s", "ppo": "o"}
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class PpoPath:
    """A PPO run, a value a step: mean scores and words of its rollouts, and KL to the SFT model in nats."""

    seed: int
    proxy: tuple[float, ...]
    gold: tuple[float, ...]
    kl: tuple[float, ...]
    words: tuple[float, ...]

    @classmethod
    def read(cls, run: Path, seed: int) -> PpoPath:
        """From the rollouts that the run kept; the gold judge is asked here, when training is over."""
        lines = (run / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        records = [
            json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        gold = [
            mean(gold_score(as_prompt(q), r) for q, r in zip(step["questions"], step["replies"], strict=True))
            for step in steps
        ]
        return cls(
            seed=seed,
            proxy=tuple(mean(step["scores"]) for step in steps),
            gold=tuple(gold),
            kl=tuple(record["kl"] for record in records),
            words=tuple(mean(len(reply.split()) for reply in step["replies"]) for step in steps),
        )


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Each value's mean with those before it, `width` at most: steps are noisy."""
    return [mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def draw_over_steps(paths: Sequence[PpoPath], place: Path) -> None:
    """Proxy and gold score of PPO's rollouts, step by step, on an axis each."""
    _, left = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    right = left.twinx()
    for path, style in zip(paths, _STYLES, strict=False):
        steps = range(1, len(path.proxy) + 1)
        left.plot(steps, smooth(path.proxy), style, color=PROXY, label=f"proxy, seed {path.seed}")
        right.plot(steps, smooth(path.gold), style, color=GOLD, label=f"gold, seed {path.seed}")
    left.set_xlabel("PPO step (mean of the last five)")
    left.set_ylabel("proxy reward", color=PROXY)
    right.set_ylabel("gold reward", color=GOLD)
    left.set_title("What PPO maximizes, and what it is worth", fontsize=11)
    _legend(left, right)
    _save(place)


def draw_against_kl(
    paths: Sequence[PpoPath], policies: Mapping[str, EvaluationFile], base: EvaluationFile, place: Path
) -> None:
    """Gold score against the distance from the SFT model: PPO's way, and where every policy ended."""
    _, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for number, path in enumerate(paths):
        label = "PPO's way (training questions)" if number == 0 else None
        axes.plot(smooth(path.kl), smooth(path.gold), "-", color=GOLD, alpha=0.35, label=label)
    start = figure(base, "gold")
    axes.errorbar([0], [start.value], yerr=_ends(base), fmt="D", color=GREY, capsize=3, label="SFT")
    for name, file in policies.items():
        method = name.partition("-")[0]
        gold, kl = figure(file, "gold"), figure(file, "kl")
        color = GOLD if method == "ppo" else PROXY
        label = method.upper() if name.endswith("-0") else None
        axes.errorbar(
            [kl.value],
            [gold.value],
            yerr=_ends(file),
            fmt=_MARKS[method],
            color=color,
            capsize=3,
            label=label,
        )
    axes.set_xlabel("KL to the SFT model, nats a reply")
    axes.set_ylabel("gold reward")
    axes.set_title("Gold reward bought with distance (test questions, 95 % intervals)", fontsize=11)
    _legend(axes)
    _save(place)


def _ends(file: EvaluationFile) -> list[list[float]]:
    gold = figure(file, "gold")
    return [[gold.value - gold.low], [gold.high - gold.value]]


def _legend(*axes: Axes) -> None:
    found = [axis.get_legend_handles_labels() for axis in axes]
    handles = [handle for some, _ in found for handle in some]
    labels = [label for _, some in found for label in some]
    axes[0].legend(handles, labels, fontsize=8, frameon=False, loc="best")


def _save(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    for axis in pyplot.gcf().axes:
        axis.spines["top"].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "keel"}):
        pyplot.savefig(place, metadata={"Date": None} if place.suffix == ".svg" else None)
    pyplot.close()
