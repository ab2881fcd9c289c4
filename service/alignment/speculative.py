"""Speculative rejection: many replies are begun, few are finished.

All n candidates are written for `block_tokens`; the worse half is dropped, the rest goes on until it is
twice as long, and so on, until one is left, which is written to its end. That the reward of a beginning tells
much of the reward of the whole is the method's assumption (Sun et al. 2024, arXiv:2410.20290). Lengths double
while numbers halve, so each round after the first costs n / 2 · block_tokens tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence

from policies.alignment import RerankSpec
from service.alignment.candidates import Candidate, Group, Work
from service.alignment.partial import begin, go_on, plain
from service.alignment.strategy import Payload
from service.alignment.waiting import together
from service.generation import Generation

Weigh = Callable[[Sequence[Candidate]], Awaitable[None]]


async def speculate(
    spec: RerankSpec, generation: Generation, body: Payload, work: Work, group: Group, weigh: Weigh
) -> bool:
    """Fill `group`; False, and the group as it was, where these replies can't be continued."""
    length = spec.block_tokens
    batch = await begin(generation, body, length, spec.n, done=len(work.candidates))
    work.add(batch)
    if not all(plain(one.choice) for one in batch.candidates if not one.done):
        return False
    group.candidates += batch.candidates
    alive: Sequence[Candidate] = batch.candidates
    for rounds in itertools.count(1):
        work.rounds = max(work.rounds, rounds)
        await weigh(alive)
        alive = _better_half(alive, scored=work.error is None)
        running = [one for one in alive if not one.done]
        if not running:
            break
        last = len(alive) == 1
        await together(*(_extend(generation, body, one, None if last else length, work) for one in running))
        length *= 2
    return True


def _better_half(candidates: Sequence[Candidate], *, scored: bool) -> Sequence[Candidate]:
    fit = [one for one in candidates if not one.blocked]
    if not scored:
        return fit[:1]
    ranked = sorted(fit, key=lambda one: one.score or 0.0, reverse=True)
    return ranked[: (len(candidates) + 1) // 2] if len(candidates) > 1 else ranked


async def _extend(
    generation: Generation, body: Payload, one: Candidate, tokens: int | None, work: Work
) -> None:
    batch = await go_on(generation, body, one, tokens, 1, done=0)
    work.generated += batch.generated
    (more,) = batch.candidates
    one.choice, one.tokens, one.done = more.choice, more.tokens, more.done
