"""Two measurements that a red team owes, written into docs/RESULTS-redteam.md:

1. an attacker that learns finds more than one that draws, at the same budget, on a running gateway;
2. a round of training on what was found lowers what the next round finds, on behaviours that it hasn't seen,
   and what that costs people who ask something harmless.

    keel serve --port 8000 &
    keel-train redteam-rounds --target http://127.0.0.1:8000 --policy standard
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pydantic import TypeAdapter
from rich.console import Console

from training.files import write_text
from training.methods.dpo import DpoConfig, Term, train_dpo
from training.models import LoraConfig, ModelSource, load_policy
from training.redteam import api
from training.redteam.attack import STRATEGIES, Message
from training.redteam.attacker import Attacker, Learner, Uniform, default_arms
from training.redteam.behavior import Behavior, load_behaviors
from training.redteam.lessons import lessons
from training.redteam.local import LocalTarget
from training.redteam.price import harmless
from training.redteam.report import Report
from training.redteam.rounds_page import (
    DOCUMENT,
    Hunts,
    Round,
    changes_of,
    hunts_section,
    rounds_section,
    write_sections,
)
from training.redteam.target import HttpTarget, Reply

TESTED = 12
"""Strategies, drawn by the seed, with which the unseen behaviours are attacked before and after."""

LONGEST = 120
"""Tokens of a pair that is learnt from; the few longer ones (many shots) cost most of the time."""
STEPS, LEARNING_RATE = 50, 1e-3
LOSSES: dict[Term, float] = {"sigmoid": 1.0}
"""Of DPO; chosen, as the pairs were (`training.redteam.lessons`), on seeds from 100 on."""

AT_ONCE = 64
"""Conversations that share a batch in this process."""

_TOOLS = ("tool_result", "html_comment")  # the demo model's template holds no tool calls


@dataclass(slots=True)
class _Counting(HttpTarget):
    requests: int = 0

    async def reply(self, messages: Sequence[Message]) -> Reply:
        self.requests += 1
        return await HttpTarget.reply(self, messages)


def hunts(url: str, policy: str, budget: int, seeds: Sequence[int], console: Console) -> Hunts:
    """Both attackers on the gateway's policy, for each seed."""
    behaviors, arms = load_behaviors(), default_arms()
    makers: tuple[Callable[[Sequence[Behavior], Sequence[str], int], Attacker], ...] = (Uniform, Learner)
    found: tuple[list[int], list[int]] = ([], [])
    broke: tuple[list[int], list[int]] = ([], [])
    requests = [0, 0]
    for seed in seeds:
        for which, make in enumerate(makers):
            target = _Counting(url, policy, max_tokens=48, concurrency=16)
            attempts = api.hunted(target, behaviors, make(behaviors, arms, seed), budget=budget, seed=seed)
            successes = [attempt for attempt in attempts if attempt.succeeded]
            found[which].append(len(successes))
            broke[which].append(len({attempt.behavior for attempt in successes}))
            requests[which] += target.requests
        console.print(f"seed {seed}: uniform {found[0][-1]}, learner {found[1][-1]} of {budget}")
    return Hunts(
        budget, tuple(found[0]), tuple(found[1]), tuple(broke[0]), tuple(broke[1]), (requests[0], requests[1])
    )


def play_round(checkpoint: Path, budget: int, seed: int, steps: int) -> Round:
    """Attack, train on what worked, attack again: other behaviours, the same strategies."""
    behaviors = list(load_behaviors())
    Random(seed).shuffle(behaviors)
    seen, unseen = behaviors[: len(behaviors) // 2], behaviors[len(behaviors) // 2 :]
    arms = [arm for arm in default_arms() if arm not in _TOOLS]
    source = ModelSource(path=str(checkpoint), lora=LoraConfig(rank=16, alpha=32))
    model, tokenizer = load_policy(source, seed)
    target = LocalTarget(model, tokenizer, "before")
    tries = api.hunted(target, seen, Learner(seen, arms, seed), budget=budget, seed=seed)
    tested = Random(seed).sample(arms, min(TESTED, len(arms)))
    asked = harmless(unseen, tested, seed)
    before = api.red_team(target, unseen, strategies=tested, seed=seed, concurrency=AT_ONCE)
    price = asked.price(model, tokenizer)
    pairs = lessons(model, tokenizer, tries, seen, seed)
    train_dpo(model, tokenizer, _config(source, seed, steps), pairs.balanced(seed))
    after = api.red_team(
        LocalTarget(model, tokenizer, "after"), unseen, strategies=tested, seed=seed, concurrency=AT_ONCE
    )
    merged = Report.merged([before, after])
    return Round(
        seed,
        (len(pairs.refusing), len(pairs.answering)),
        merged,
        price,
        asked.price(model, tokenizer),
    )


def _config(source: ModelSource, seed: int, steps: int) -> DpoConfig:
    return DpoConfig(
        name="redteam-round",
        seed=seed,
        model=source,
        data={"demo": 1},  # type: ignore[arg-type]  # the pairs come from here, not from a file
        losses=LOSSES,
        steps=steps,
        batch_size=16,
        micro_batch=16,
        learning_rate=LEARNING_RATE,
        max_length=LONGEST,
        log_every=steps,
        checkpoint_every=steps,
    )


def _played(arguments: argparse.Namespace, seed: int) -> Round:
    """The round of this seed, from where it was kept, or played and kept."""
    rounds: TypeAdapter[Round] = TypeAdapter(Round)
    if arguments.keep is None:
        return play_round(arguments.checkpoint, arguments.budget, seed, arguments.steps)
    path = arguments.keep / f"round-{seed}-{arguments.budget}-{arguments.steps}.json"
    if path.is_file():
        return rounds.validate_json(path.read_bytes())
    played = play_round(arguments.checkpoint, arguments.budget, seed, arguments.steps)
    write_text(path, rounds.dump_json(played).decode())
    return played


def main(argv: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        prog="keel-train redteam-rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target", metavar="URL", help="a running gateway; without it only rounds are played"
    )
    parser.add_argument("--policy", default="standard")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo-chat"))
    parser.add_argument("--budget", type=int, default=200, help="tries of each attacker (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="seeds of training rounds (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of the rounds (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of DPO (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep rounds here; play none that is kept")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    arguments = parser.parse_args(argv)
    console = Console()
    about = f"{len(load_behaviors())} behaviours, {len(STRATEGIES)} strategies; {arguments.checkpoint}"
    command = f"keel-train redteam-rounds --budget {arguments.budget}"
    written = {}
    if arguments.target is not None:
        found = hunts(arguments.target, arguments.policy, arguments.budget, range(arguments.seeds), console)
        told = f"{command} --target URL --seeds {arguments.seeds}"
        written["hunts"] = hunts_section(found, told, f"{about}, policy `{arguments.policy}`.")
    rounds = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.rounds):
        rounds.append(_played(arguments, seed))
        console.print(rounds[-1].report.table("family"))
        console.print("\n".join("  ".join(cells) for cells in changes_of(rounds[-1:])))
    if rounds:
        command += (
            f" --rounds {arguments.rounds} --first-seed {arguments.first_seed} --steps {arguments.steps}"
        )
        written["rounds"] = rounds_section(rounds, command, f"{about}.", TESTED)
    write_sections(arguments.out, written)
    console.print(f"written: {arguments.out}")
    return 0
