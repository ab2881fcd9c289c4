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

import numpy as np
from rich.console import Console

from training.data.preferences import Preference, as_prompt
from training.evaluate.figures import Figure, mean
from training.files import write_text
from training.methods.dpo import DpoConfig, train_dpo
from training.models import LoraConfig, ModelSource, load_policy
from training.redteam import api
from training.redteam.attack import STRATEGIES, Message
from training.redteam.attacker import Attacker, Learner, Uniform, default_arms
from training.redteam.behavior import Behavior, load_behaviors
from training.redteam.campaign import Attempt
from training.redteam.harvest import REFUSAL, preferences_of
from training.redteam.local import LocalTarget
from training.redteam.report import Report
from training.redteam.target import HttpTarget, Reply

DOCUMENT = Path("docs/RESULTS-redteam.md")
TESTED = 12
"""Strategies, drawn by the seed, with which the unseen behaviours are attacked before and after."""

_TOOLS = ("tool_result", "html_comment")  # the demo model's template holds no tool calls


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
    """One seed's round: what the same attacks on unseen behaviours came to before and after."""

    seed: int
    pairs: int
    report: Report  # targets: before, after


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
    learner = Learner(seen, arms, seed)
    tries = api.hunted(target, seen, learner, budget=budget, seed=seed)
    tested = Random(seed).sample(arms, min(TESTED, len(arms)))
    before = api.red_team(target, unseen, strategies=tested, seed=seed)
    answered = api.red_team(target, seen, strategies=["direct"], seed=seed).twins
    pairs = [*preferences_of(tries, answered=True), *_keep_answering(answered)]
    config = DpoConfig(
        name="redteam-round",
        seed=seed,
        model=source,
        data={"demo": 1},  # type: ignore[arg-type]  # the pairs come from here, not from a file
        steps=steps,
        batch_size=16,
        micro_batch=16,
        learning_rate=3e-4,
        log_every=steps,
        checkpoint_every=steps,
    )
    train_dpo(model, tokenizer, config, pairs)
    after = api.red_team(LocalTarget(model, tokenizer, "after"), unseen, strategies=tested, seed=seed)
    return Round(seed, len(pairs), Report.merged([before, after]))


def _keep_answering(twins: Sequence[Attempt]) -> list[Preference]:
    """What was said to the harmless twins is better than a refusal: else refusing everything is learnt."""
    return [
        Preference(as_prompt(twin.prompt), twin.reply, REFUSAL, rater="red team", id=f"{twin.behavior}-twin")
        for twin in twins
        if twin.answered and twin.reply.strip()
    ]


_HEAD = """# Results: the red team

Written by `{command}`.
{about} Judged by rules and canaries ([REDTEAM.md](REDTEAM.md#who-decides)). Brackets are 95 % intervals.
The embedded model has 6 million weights and can do no harm with its answers: a success means that an attack
came through and got a reply about its subject, not that the reply is of use to anybody.
"""
_HUNTS = """## Attackers at the same budget

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
_ROUNDS = """## A round of training on what was found

On half of the behaviours the learner attacks the chat model (in this process, without guards). Each attack
that got an answer becomes a pair in which a refusal is better, each harmless twin that got one a pair in
which the answer is. DPO on these pairs, then {tested} strategies on the **other** half, before and after.

| seed | pairs | attacks that succeed, before | after | twins without an answer, before | after |
|---|---|---|---|---|---|
{rows}

Change of the success rate: {change} points; of twins without an answer: {cost} (bootstrap over {n} seeds).
"""


def document(found: Hunts | None, rounds: Sequence[Round], command: str, about: str) -> str:
    """The page."""
    parts = [_HEAD.format(command=command, about=about)]
    if found is not None:
        columns = (found.uniform, found.uniform_broke, found.learner, found.learner_broke)
        rows = "\n".join(
            f"| {seed} | {drawn} ({few}) | {learnt} ({many}) |"
            for seed, (drawn, few, learnt, many) in enumerate(zip(*columns, strict=True))
        )
        ratio, breadth = (f"{f.value:.2f} [{f.low:.2f}, {f.high:.2f}]" for f in (found.ratio, found.breadth))
        parts.append(
            _HUNTS.format(
                budget=found.budget,
                rows=rows,
                ratio=ratio,
                breadth=breadth,
                n=len(found.uniform),
                uniform_requests=found.requests[0],
                learner_requests=found.requests[1],
                per_request=found.ratio.value * found.requests[0] / found.requests[1],
            )
        )
    if rounds:
        parts.append(_rounds_section(rounds))
    return "\n".join(parts)


def _rounds_section(rounds: Sequence[Round]) -> str:
    rows, changes, costs = [], [], []
    for one in rounds:
        figures = [
            rate(target)
            for rate in (one.report.success_rate, one.report.over_refusal)
            for target in ("before", "after")
        ]
        rows.append(
            f"| {one.seed} | {one.pairs} | {' | '.join(f.percent() if f else '–' for f in figures)} |"
        )
        values = [figure.value if figure else 0.0 for figure in figures]
        changes.append(values[1] - values[0])
        costs.append(values[3] - values[2])
    change, cost = _points(mean(changes)), _points(mean(costs))
    return _ROUNDS.format(tested=TESTED, rows="\n".join(rows), change=change, cost=cost, n=len(rounds))


def _points(figure: Figure) -> str:
    return f"{100 * figure.value:+.1f} [{100 * figure.low:+.1f}, {100 * figure.high:+.1f}]"


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
    parser.add_argument("--steps", type=int, default=30, help="of DPO (%(default)s)")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    arguments = parser.parse_args(argv)
    console = Console()
    found = None
    if arguments.target is not None:
        found = hunts(arguments.target, arguments.policy, arguments.budget, range(arguments.seeds), console)
    rounds = []
    for seed in range(arguments.rounds):
        rounds.append(play_round(arguments.checkpoint, arguments.budget, seed, arguments.steps))
        console.print(rounds[-1].report.table("family"))
    about = (
        f"{len(load_behaviors())} behaviours, {len(STRATEGIES)} strategies; policy `{arguments.policy}`, "
        f"{arguments.checkpoint}."
    )
    command = (
        f"keel-train redteam-rounds --target URL --budget {arguments.budget} --seeds {arguments.seeds} "
        f"--rounds {arguments.rounds} --steps {arguments.steps}"
    )
    write_text(arguments.out, document(found, rounds, command, about))
    console.print(f"written: {arguments.out}")
    return 0
