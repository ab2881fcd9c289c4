"""The red team in a few lines of Python; `training.redteam` shows them all under one name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from training.redteam.attack import STRATEGIES, Attack, make_attack, suits
from training.redteam.attacker import Attacker, hunt
from training.redteam.behavior import Behavior, load_behaviors
from training.redteam.campaign import Attempt, Progress, run_attacks
from training.redteam.report import Report
from training.redteam.target import HttpTarget, Target
from training.redteam.twins import twins_of
from training.redteam.verdicts import ReplyJudge, RulesRubric

T = TypeVar("T")


def _silent(attempt: Attempt) -> None:
    """No progress is told."""


def attacks_for(behavior: Behavior, strategies: Sequence[str] = (), seed: int = 0) -> tuple[Attack, ...]:
    """The attacks on one behaviour: by these strategies (`base64+role_play` composes), or by all."""
    names = strategies or sorted(STRATEGIES)
    return tuple(make_attack(behavior, name, seed) for name in names if suits(name, behavior))


def red_team(
    target: Target,
    behaviors: Sequence[Behavior] | None = None,
    *,
    strategies: Sequence[str] = (),
    judges: Sequence[ReplyJudge] = (),
    twins: bool = True,
    seed: int = 0,
    concurrency: int = 8,
    progress: Progress = _silent,
) -> Report:
    """Attack `target` with every strategy on every behaviour, and ask it their harmless twins.

    judges: the first one's word counts, the others' agreement is reported; rules by default.
    """
    return compare(
        [target],
        behaviors,
        strategies=strategies,
        judges=judges,
        twins=twins,
        seed=seed,
        concurrency=concurrency,
        progress=progress,
    )


def compare(
    targets: Sequence[Target],
    behaviors: Sequence[Behavior] | None = None,
    *,
    strategies: Sequence[str] = (),
    judges: Sequence[ReplyJudge] = (),
    twins: bool = True,
    seed: int = 0,
    concurrency: int = 8,
    progress: Progress = _silent,
) -> Report:
    """The same attacks on several targets: two policies, two checkpoints, before and after."""
    chosen = load_behaviors() if behaviors is None else tuple(behaviors)
    attacks = [attack for behavior in chosen for attack in attacks_for(behavior, strategies, seed)]
    harmless = twins_of(chosen, seed) if twins else ()
    return asked(targets, attacks, harmless, judges, seed=seed, concurrency=concurrency, progress=progress)


def asked(
    targets: Sequence[Target],
    attacks: Sequence[Attack],
    twins: Sequence[Attack],
    judges: Sequence[ReplyJudge],
    *,
    seed: int = 0,
    concurrency: int = 8,
    progress: Progress = _silent,
) -> Report:
    """These very attacks and twins, sent to each target."""
    judges = judges or (RulesRubric(),)

    async def one(target: Target) -> Report:
        tries = await run_attacks(target, attacks, judges, concurrency=concurrency, progress=progress)
        asks = await run_attacks(target, twins, judges, concurrency=concurrency, progress=progress)
        return Report(targets=(target.name,), seed=seed, attempts=tuple(tries), twins=tuple(asks))

    return Report.merged([run(_in_session(target, one)) for target in targets])


def greeted(targets: Sequence[Target]) -> None:
    """Say hello to each target: one that doesn't answer is told of before thousands of requests fail.

    Raises TargetError.
    """

    async def one(target: Target) -> None:
        await target.reply([{"role": "user", "content": "Hello!"}])

    for target in targets:
        run(_in_session(target, one))


def hunted(
    target: Target,
    behaviors: Sequence[Behavior],
    attacker: Attacker,
    judges: Sequence[ReplyJudge] = (),
    *,
    budget: int,
    batch: int = 16,
    seed: int = 0,
    progress: Progress = _silent,
) -> list[Attempt]:
    """`budget` tries that `attacker` chooses (`training.redteam.attacker`)."""

    async def one(target: Target) -> list[Attempt]:
        return await hunt(
            target,
            behaviors,
            judges or (RulesRubric(),),
            attacker,
            budget=budget,
            batch=batch,
            seed=seed,
            progress=progress,
        )

    return run(_in_session(target, one))


def run(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, also where an event loop runs already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _in_session(target: Target, work: Callable[[Target], Coroutine[Any, Any, T]]) -> T:
    if isinstance(target, HttpTarget):
        async with target:
            return await work(target)
    return await work(target)
