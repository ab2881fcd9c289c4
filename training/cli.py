"""`keel-train METHOD --config FILE`: one subcommand per training method.

A method is a module with a `main(argv)` that parses its own arguments and returns an exit status. It is
imported only when it is called for, so that `keel-train --help` answers without loading torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: where its `main` is (`module:function`), and one line about it."""

    target: str
    summary: str

    def load(self) -> Callable[[Sequence[str]], int]:
        module, _, function = self.target.partition(":")
        main: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
        return main


COMMANDS: dict[str, Command] = {
    "sft": Command("training.methods.sft:main", "fine-tune a chat model on demonstrations (TRL)"),
    "pretrain": Command("training.methods.pretrain:main", "train a chat model from scratch"),
    "reward": Command("training.methods.reward:main", "a reward model from comparisons and ratings"),
    "ppo": Command("training.methods.ppo:main", "reinforcement learning from a reward, clipped (PPO)"),
    "trpo": Command("training.methods.trpo:main", "the same within a KL bound a step (TRPO)"),
    "dpo": Command("training.methods.dpo:main", "direct preference optimization and its variants (TRL)"),
    "kto": Command("training.methods.kto:main", "learn from replies marked wanted or unwanted (TRL)"),
    "orpo": Command("training.methods.orpo:main", "fine-tuning and preferences in one, no reference (TRL)"),
    "grpo": Command("training.methods.grpo:main", "policy gradient with groups of replies (TRL)"),
    "rloo": Command("training.methods.rloo:main", "policy gradient with a leave-one-out baseline (TRL)"),
    "spin": Command("training.methods.spin:main", "self-play against one's own earlier replies"),
    "classifier": Command("training.methods.classifier:main", "fine-tune an encoder as a text classifier"),
    "early-exit": Command(
        "training.methods.early_exit:main", "an early exit from the safety classifier's lower layers"
    ),
    "rlaif": Command("training.methods.rlaif:main", "preferences from an AI judge, and training on them"),
    "cai": Command("training.methods.cai:main", "constitutional training: critique, revise, fine-tune"),
    "feedback": Command("training.data.feedback:main", "turn exported feedback into datasets"),
    "data-quality": Command(
        "training.data.quality_command:main", "duplicates, contradictions, agreement, leakage of pairs"
    ),
    "evaluate": Command("training.evaluate.cli:main", "measure a checkpoint on held-out data"),
    "figures": Command("training.textfile:main", "the newest figures of runs, for Prometheus"),
    "score": Command("training.batch.score:main", "a reward model's scores of replies, on many workers"),
    "redteam-rounds": Command(
        "training.redteam.rounds:main", "attack, train on what worked, attack again; attackers compared"
    ),
    "sample": Command("training.sample:main", "print a chat checkpoint's replies, to be read"),
    "loop": Command("training.loop:main", "all of it once around on the demo shop: make loop"),
    "publish": Command("training.publish:main", "verify a finished run and place it into checkpoints/"),
}

_OURS = ("training", "policies")


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: keel-train COMMAND [options]; keel-train COMMAND --help says more", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status, 2 for a wrong call and 1 for a run that failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    command = COMMANDS.get(name)
    if command is None:
        print(f"keel-train: no command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    try:
        return command.load()(rest)
    except TrainingError as error:
        print(f"keel-train {name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        print(
            f"keel-train {name}: needs the package {error.name!r}, which is not part of what serving "
            "installs; 'make env-dev' installs the training tools",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
