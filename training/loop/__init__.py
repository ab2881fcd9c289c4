"""`keel-train loop`: the whole way once around, from demonstrations to a gateway that serves what was learnt.

    SFT → preferences of noisy raters → reward models → DPO and PPO → evaluation → publish → serve

on the demo shop (`training.demo`), whose gold judge no training sees. `make loop` runs the full profile on
two cores and writes docs/RESULTS.md; the quick one goes the same way in a minute, with figures that mean
nothing. An interrupted loop goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.loop.config import PROFILES, LoopConfig
from training.loop.progress import Progress, Result, Stage
from training.loop.publish import evaluate_all, publish_best, serve_new
from training.loop.report import show_table, write_results
from training.loop.stages import collect_preferences, train_base, train_policies, train_rewards


def run_loop(config: LoopConfig, work: Path, console: Console | None = None) -> Progress:
    """All stages that are not done yet; raises TrainingError where one fails."""
    progress = Progress(work, console or Console(stderr=True))
    progress.bind(config)
    progress.run(stages_of(config, work))
    return progress


def stages_of(config: LoopConfig, work: Path) -> list[Stage]:
    """The stages in order, with their seconds in the full profile on two idle cores."""
    stages = [
        Stage("sft", "SFT on demonstrations of mixed quality", 150, lambda: train_base(config, work)),
        Stage(
            "preferences",
            "replies, and raters who compare them",
            60,
            lambda: collect_preferences(config, work),
        ),
        Stage("reward", "reward models", 150, lambda: train_rewards(config, work)),
        Stage("policies", "DPO and PPO", 700, lambda: train_policies(config, work)),
        Stage("evaluate", "evaluation on unseen questions", 60, lambda: evaluate_all(config, work)),
        Stage("publish", "gates, manifest, alias", 5, lambda: publish_best(config, work)),
    ]
    if config.serve:
        stages.append(
            Stage("serve", "the gateway takes the new checkpoint", 40, lambda: serve_new(config, work))
        )
    return stages


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train loop", description="The loop, once around.")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="full")
    parser.add_argument("--work", type=Path, help="the work directory (default: runs/loop-PROFILE)")
    parser.add_argument(
        "--results", type=Path, help="the report (default: docs/RESULTS.md; quick: in the work directory)"
    )
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = PROFILES[arguments.profile]
    work = arguments.work or Path("runs") / f"loop-{config.profile}"
    default = Path("docs/RESULTS.md") if config.profile == "full" else work / "RESULTS.md"
    results = arguments.results or default
    console = Console(stderr=True)
    progress = run_loop(config, work, console)
    write_results(config, work, progress, results)
    show_table(config, work, console)
    console.print(f"written: {results}", highlight=False)
    if "refused" in progress.results["publish"]:
        console.print(
            f"not published: {progress.results['publish']['refused']}", highlight=False, markup=False
        )
        return 1
    return 0


__all__ = ["Result", "main", "run_loop", "stages_of"]
