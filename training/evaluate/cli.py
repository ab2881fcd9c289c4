"""`keel-train evaluate WHAT`: one subcommand per kind of checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.cli import Command

COMMANDS: dict[str, Command] = {
    "safety": Command(
        "training.evaluate.safety:main", "the safety classifier, on sources it was not trained on"
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
