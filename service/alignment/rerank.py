"""Several candidates, of which a reward model chooses the reply: best of n, soft best of n, and adaptive.

    best_of_n       the candidate with the highest score
    soft_best_of_n  one drawn with probability ∝ exp(score / softness): closer to the model's own distribution
                    than the best, the more so the larger `softness`
    adaptive        `first` candidates, and as many again until one reaches `accept` or there are `n`
    speculative_rejection, blockwise    see the modules `speculative` and `blockwise`

A caller who asks for several choices gets the best of a group of candidates for each, the groups independent
of one another: what asking as many times would have given.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from guardrails.servable import ServableSpec
from policies.alignment import RerankSpec
from service.alignment.candidates import Candidate, Group, Work, examine, sample
from service.alignment.partial import divisible
from service.alignment.rewards import Reward, RewardError, conversation_of, reply_text
from service.alignment.speculative import speculate
from service.alignment.strategy import Aligned, Means, Payload
from service.alignment.waiting import together
from service.engine.engine import Engine
from service.generation import Generation
from service.openai.errors import BadRequest, Unavailable
from service.release import SHAPES
from service.request import Examined
from service.telemetry.metrics import child
from service.telemetry.tracing import tell_summary, traced


class Rerank:
    """The strategy of a policy with `rerank`."""

    def __init__(self, spec: RerankSpec, reward: Reward, means: Means) -> None:
        self._spec = spec
        self.reward = reward
        self._runner = means.runner
        self._metrics = means.metrics

    @property
    def engines(self) -> Sequence[Engine]:
        return self.reward.engines

    @property
    def servables(self) -> Mapping[str, ServableSpec]:
        return self.reward.servables

    @traced("rerank", tell_summary("rerank"))
    async def answer(self, generation: Generation, examined: Examined) -> Aligned:
        """The chosen replies. Raises `UpstreamError`, `BadRequest`, and `Unavailable` as `on_error` says."""
        works = await together(*(self._work(generation, examined, body) for body in bodies_of(generation)))
        chosen: list[Candidate | None] = []
        for work in works:
            chosen += [
                self._choose(group, generation, len(chosen) + i) for i, group in enumerate(work.groups)
            ]
        self._count(generation.served.name, works, chosen)
        if self._spec.store_pairs and generation.transcript is not None and len(works) == 1:
            generation.transcript.contrast = works[0].contrast()
        return Aligned(self._payload(generation, works, chosen), {"rerank": self._told(works, chosen)})

    async def rewards(
        self, generation: Generation, examined: Examined, choices: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """The scores of any replies to this request, one prompt's. Raises `RewardError`."""
        conversation = conversation_of(generation.whole_request())
        return await self.reward.score(conversation, [reply_text(choice) for choice in choices])

    # One prompt

    async def _work(self, generation: Generation, examined: Examined, body: Payload) -> Work:
        spec = self._spec
        work = Work([Group() for _ in range(generation.request.n or 1)], spec.method)
        greedy = body.get("temperature") == 0
        if spec.temperature is not None and not greedy:
            body = {**body, "temperature": spec.temperature}
        if spec.method == "speculative_rejection":
            if not greedy and divisible(body) and await self._speculate(generation, examined, body, work):
                return work
            work.groups = [Group() for _ in work.groups]
        if spec.in_pieces:
            work.method = "best_of_n"  # not this reply: it can only be made whole
        await self._sample(generation, examined, body, work, greedy=greedy)
        return work

    async def _speculate(self, generation: Generation, examined: Examined, body: Payload, work: Work) -> bool:
        async def weigh(candidates: Sequence[Candidate]) -> None:
            await self._weigh(generation, examined, body, work, candidates)

        began = time.perf_counter()
        filled = await together(
            *(speculate(self._spec, generation, body, work, group, weigh) for group in work.groups)
        )
        work.generating_s += max(0.0, time.perf_counter() - began - work.scoring_s)
        return all(filled)

    async def _sample(
        self, generation: Generation, examined: Examined, body: Payload, work: Work, *, greedy: bool
    ) -> None:
        """Whole candidates, all at once or until they are good enough."""
        spec = self._spec
        size = spec.first if spec.method == "adaptive" else spec.n
        if greedy:
            size = 1  # all would be the same
        open_groups = work.groups
        while open_groups:
            await self._add(generation, examined, body, work, open_groups, size)
            if spec.method != "adaptive" or greedy or work.error is not None:
                break
            open_groups = [group for group in open_groups if not self._done(group)]
            # Open groups have had the same rounds, and so are alike in size.
            size = min(size, spec.n - len(open_groups[0].candidates)) if open_groups else 0

    def _done(self, group: Group) -> bool:
        accept = self._spec.accept
        enough = accept is not None and group.best is not None and group.best >= accept
        return enough or len(group.candidates) >= self._spec.n

    async def _add(
        self,
        generation: Generation,
        examined: Examined,
        body: Payload,
        work: Work,
        groups: Sequence[Group],
        size: int,
    ) -> None:
        """`size` more candidates for each of `groups`, examined and scored."""
        began = time.perf_counter()
        batch = await sample(generation, body, size * len(groups), done=len(work.candidates))
        work.add(batch)
        work.generating_s += time.perf_counter() - began
        for number, group in enumerate(groups):
            group.candidates += batch.candidates[number * size : (number + 1) * size]
        choice = len(batch.candidates) > len(groups) or self._spec.accept is not None
        await self._weigh(generation, examined, body, work, batch.candidates, score=choice)

    async def _weigh(
        self,
        generation: Generation,
        examined: Examined,
        body: Payload,
        work: Work,
        candidates: Sequence[Candidate],
        *,
        score: bool = True,
    ) -> None:
        """Examine `candidates`, and score those that no guard withholds."""
        began = time.perf_counter()
        await examine(candidates, generation, examined, self._runner)
        if score:
            fit = [one for one in candidates if not one.blocked]
            await self._score(generation, body, work, fit)
        work.scoring_s += time.perf_counter() - began

    async def _score(
        self, generation: Generation, body: Payload, work: Work, candidates: Sequence[Candidate]
    ) -> None:
        try:
            scores = await self.reward.score(conversation_of(body), [one.text for one in candidates])
        except RewardError as error:
            child(self._metrics.rerank_errors, generation.served.name, error.reason).inc()
            if self._spec.on_error == "fail":
                raise Unavailable(
                    f"the replies could not be scored ({error.reason})", code="reward_unavailable"
                ) from error
            work.error = error
            return
        penalty = self._spec.length_penalty / 100
        for one, score in zip(candidates, scores, strict=True):
            one.score = score - penalty * one.tokens - one.penalty

    # The choice

    def _choose(self, group: Group, generation: Generation, index: int) -> Candidate | None:
        """The candidate that the caller gets; None where none is good enough and the policy refuses.

        Where all are blocked it is the first, which the guards then withhold as they would any reply.
        """
        spec, fit = self._spec, group.fit
        if not fit:
            return next((one for one in group.candidates if one.done), group.candidates[0])
        scored = [one for one in fit if one.score is not None]
        if not scored:
            return fit[0]
        if spec.below == "refuse" and spec.accept is not None and (group.best or 0.0) < spec.accept:
            return None
        if spec.method == "soft_best_of_n":
            seed = generation.request.seed
            source = random.Random(None if seed is None else f"{seed}:{index}")  # noqa: S311 - no secret
            return draw(scored, spec.softness, source)
        return max(scored, key=lambda one: one.score or 0.0)

    def _payload(
        self, generation: Generation, works: Sequence[Work], chosen: Sequence[Candidate | None]
    ) -> Payload:
        shape, refusal = SHAPES[generation.kind], generation.served.spec.refusal
        refused = {**shape.whole(refusal), "finish_reason": "content_filter"}
        choices = [
            {**(one.choice if one is not None else refused), "index": index}
            for index, one in enumerate(chosen)
        ]
        prompt = sum(work.prompt for work in works)
        tokens = sum(one.tokens for one in chosen if one is not None)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        return {**works[0].head, "choices": choices, "usage": usage}

    def _told(self, works: Sequence[Work], chosen: Sequence[Candidate | None]) -> dict[str, Any]:
        candidates = [one for work in works for one in work.candidates]
        error = next((work.error for work in works if work.error is not None), None)
        return {
            "method": works[0].method,
            "models": list(self.reward.models),
            "candidates": len(candidates),
            "blocked": sum(one.blocked for one in candidates),
            "rounds": max(work.rounds for work in works),
            "tokens": sum(work.generated for work in works),
            "ms": {
                "generate": round(max(work.generating_s for work in works) * 1e3, 1),
                "score": round(max(work.scoring_s for work in works) * 1e3, 1),
            },
            "scores": [None if one is None or one.score is None else round(one.score, 4) for one in chosen],
            "refused": sum(one is None for one in chosen),
            **({"error": error.reason} if error else {}),
        }

    def _count(self, name: str, works: Sequence[Work], chosen: Sequence[Candidate | None]) -> None:
        metrics = self._metrics
        for work in works:
            child(metrics.rerank_duration, name, "generate").observe(work.generating_s)
            child(metrics.rerank_duration, name, "score").observe(work.scoring_s)
            child(metrics.rerank_tokens, name, "generated").inc(work.generated)
        candidates = [one for work in works for one in work.candidates]
        given = [one for one in chosen if one is not None]
        blocked = sum(one.blocked for one in candidates if one not in given)
        child(metrics.rerank_candidates, name, "chosen").inc(len(given))
        child(metrics.rerank_candidates, name, "blocked").inc(blocked)
        child(metrics.rerank_candidates, name, "passed_over").inc(len(candidates) - len(given) - blocked)
        child(metrics.rerank_tokens, name, "given").inc(sum(one.tokens for one in given))
        child(metrics.rerank_refused, name).inc(len(chosen) - len(given))
        for which, ones in (("all", candidates), ("given", given)):
            for one in ones:
                if one.score is not None:
                    child(metrics.reward_score, name, which).observe(one.score)
                    child(metrics.reward_sum, name, which, "positive").inc(max(0.0, one.score))
                    child(metrics.reward_sum, name, which, "negative").inc(max(0.0, -one.score))


def draw(candidates: Sequence[Candidate], softness: float, source: random.Random) -> Candidate:
    """One of the scored `candidates`, with probability ∝ exp(score / softness)."""
    highest = max(one.score or 0.0 for one in candidates)
    weights = [math.exp(((one.score or 0.0) - highest) / softness) for one in candidates]
    return source.choices(candidates, weights)[0]


def bodies_of(generation: Generation) -> list[Payload]:
    """The request, once for each of its prompts. Raises `BadRequest` for what can't be reranked."""
    body = generation.whole_request()
    if body.get("best_of") is not None:
        raise BadRequest("this policy chooses replies itself: ask without 'best_of'", param="best_of")
    prompt = body.get("prompt")
    if prompt is None or isinstance(prompt, str):
        return [body]
    if not prompt or not isinstance(prompt[0], str):
        raise BadRequest("this policy reads prompts before it chooses: give them as text", param="prompt")
    return [{**body, "prompt": text} for text in prompt]
