"""`python -m training.bench.rerank`: measure every rerank method at every n, write docs/RESULTS-rerank.md.

What was trained and asked before is kept in the home folder and not done again; remove a file there to have
it made anew. From nothing it takes about an hour of two cores.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from training.bench.rerank import prepare, report
from training.bench.rerank.domains import DOMAINS
from training.bench.rerank.measure import METHODS, collect, first_text, points
from training.bench.rerank.overoptimization import overoptimization
from training.bench.workers import ROOT, BenchError
from training.errors import TrainingError
from training.loop.gateway import running_gateway
from training.reward_model import RewardModel

REWARD = "demo-reward"
say = partial(print, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.bench.rerank", description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / ".keel" / "bench-rerank")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "RESULTS-rerank.md")
    parser.add_argument(
        "--train-reward", metavar="NAME", help="train a reward model as the shipped one was, and stop"
    )
    arguments = parser.parse_args()
    home: Path = arguments.home.resolve()
    torch.set_num_threads(1)
    try:
        prepare.train_model(home, str(ROOT / "checkpoints" / "demo-chat"))
        prepare.collect(home, ROOT / "checkpoints" / "demo-chat")
        if arguments.train_reward is not None:
            prepare.train_reward(home, arguments.train_reward)
            return 0
        prepare.adopt(home, ROOT / "checkpoints" / REWARD)
        ask(home)
        proxy = RewardModel.load(home / "checkpoints" / REWARD)
        found = {domain: points(domain, home / "replies", proxy) for domain in DOMAINS}
        sections = [blocks(home), overoptimization(home, DOMAINS[0], say)]
    except (BenchError, TrainingError) as error:
        print(f"bench-rerank: {error}", file=sys.stderr)
        return 1
    report.write(arguments.out, prepare.MODEL, found, "\n".join(sections))
    say(f"{arguments.out}: written")
    return 0


def ask(home: Path) -> None:
    """All replies, through one gateway."""
    replies = home / "replies"
    wanted = [replies / f"{domain.name}-{method}.json" for domain in DOMAINS for method in ("base", *METHODS)]
    if all(file.is_file() for file in wanted):
        return
    policies: dict[str, str] = {}
    for domain in DOMAINS:
        policies |= domain.policies(REWARD)
    prepare.write_policies(home / "policies", policies)
    settings = {"KEEL_DEFAULT_POLICY": "base", "KEEL_LOG__ACCESS": "errors"}
    with running_gateway(home / "policies", home / "checkpoints", home / "state", settings) as url:
        for domain in DOMAINS:
            collect(url, domain, METHODS, replies, say)


def blocks(home: Path) -> str:
    """When blockwise's first text comes."""
    head = (
        "## Blockwise: the first text",
        "",
        "| replies | time, in blocks | words, in blocks |",
        "|---|---|---|",
    )
    lines = list(head)
    for domain in DOMAINS:
        seconds, words = first_text(domain, home / "replies")
        lines.append(f"| {domain.name} | {seconds:.2f} | {words:.2f} |")
    told = "Medians over 24 streams of one caller, n = 4; a block's time is the reply's over its blocks."
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    sys.exit(main())
