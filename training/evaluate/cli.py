"""`keel-train evaluate WHAT`: one subcommand per kind of checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.cli import Command

COMMANDS: dict[str, Command] = {
    "safety": Command(
        "training.evaluate.safety:main", "the safety classifier, on sources it was not trained on"
    ),
    "policy": Command(
        "training.evaluate.cli_policy:policy", "a policy's reward, length, diversity, KL and safety"
    ),
    "perplexity": Command(
        "training.evaluate.cli_policy:perplexity_of", "perplexity on held-out conversations"
    ),
    "reward": Command("training.evaluate.cli_reward:reward", "a reward model's accuracy and calibration"),
    "reward-human": Command(
        "training.evaluate.reward_human:main", "a reward model cross-validated on human pairs"
    ),
    "pairwise": Command(
        "training.evaluate.cli_pairwise:pairwise", "the win rate between two files of replies"
    ),
    "human": Command("training.evaluate.cli_pairwise:human", "sheets for people, and their answers"),
    "constitution": Command(
        "training.evaluate.cli_pairwise:constitution", "a text or replies against a constitution"
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run one evaluation; returns the exit status, 2 for a wrong call."""
    lines = [f"  {name:<10}  {command.summary}" for name, command in COMMANDS.items()]
    usage = "\n".join(["usage: keel-train evaluate WHAT [options]; --help after WHAT says more", *lines])
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    command = COMMANDS.get(argv[0])
    if command is None:
        print(f"keel-train evaluate: nothing called {argv[0]!r}\n{usage}", file=sys.stderr)
        return 2
    return command.load()(argv[1:])
