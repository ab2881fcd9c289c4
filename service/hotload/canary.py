"""The canary: a checkpoint is asked a few prompts, greedily, before it answers anybody.

Whatever is about to change is tried in the place where it will stand: the prompts go through the policy's
input guards, the model answers, the replies go through the output guards and the reward model. So one way of
looking does for all kinds of checkpoints.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from guardrails.chain import check_texts
from guardrails.guard import Guard, JobRunner, Stage
from guardrails.parts import Part, PartResult
from policies.canary import CanarySet
from service.alignment.rewards import Reward, RewardError
from service.alignment.waiting import together
from service.catalog import Served
from service.engine.errors import UpstreamError
from service.engines import Target

PATH = "/v1/chat/completions"
_GRAM = 3
_LEAST_GRAMS = 12
_DISTINCT = 0.35
"""A reply whose share of distinct token triples is lower goes in circles. Prose has 0.9 and more."""


class CanaryFailed(Exception):
    """The checkpoint doesn't answer as it must; the message says what was seen, and what is the limit."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One greedy reply. `logprobs` are its tokens', in nats."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    ended: bool

    @property
    def repetitive(self) -> bool:
        """Whether it goes in circles; short replies don't."""
        grams = [self.tokens[i : i + _GRAM] for i in range(len(self.tokens) - _GRAM + 1)]
        return len(grams) >= _LEAST_GRAMS and len(set(grams)) < _DISTINCT * len(grams)


Asked = dict[Target, Sequence[Reply]]
"""The replies of those who have been asked a prompt set."""


@dataclass(slots=True)
class Seen:
    """What a canary saw, as shares of the prompts; `logprob` is the mean over all tokens."""

    prompts: int
    empty: float = 0.0
    repetitive: float = 0.0
    unended: float = 0.0
    blocked_prompts: float = 0.0
    blocked_replies: float = 0.0
    logprob: float = 0.0
    former_logprob: float | None = None
    rewards: list[float] = field(default_factory=list)

    def told(self) -> str:
        """For people."""
        former = "" if self.former_logprob is None else f" (the former: {self.former_logprob:.2f})"
        reward = f", mean reward {sum(self.rewards) / len(self.rewards):.2f}" if self.rewards else ""
        return (
            f"{self.prompts} prompts: {self.empty:.0%} empty, {self.repetitive:.0%} in circles, "
            f"{self.unended:.0%} cut off, {self.blocked_replies:.0%} blocked, "
            f"log-prob {self.logprob:.2f} a token{former}{reward}"
        )


class Canary:
    """Tries policies before they are served. Keeps nothing."""

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner

    async def run(
        self, fresh: Served, former: Served | None, prompts: CanarySet, asked: Asked | None = None
    ) -> Seen:
        """What the replies are like. Raises `CanaryFailed` where they are not what they must be.

        former: what is served under the policy's name now, for comparing.
        asked:  replies that are known, by who gave them; is added to.
        """
        asked = {} if asked is None else asked
        try:
            async with asyncio.timeout(prompts.seconds):
                seen = await self._look(fresh, former, prompts, asked)
        except TimeoutError:
            raise CanaryFailed(f"canary: not answered within {prompts.seconds:g} s") from None
        except UpstreamError as error:
            raise CanaryFailed(f"canary: the engine failed: {error}") from error
        except RewardError as error:
            raise CanaryFailed(f"canary: the replies could not be scored: {error}") from error
        _judge(seen, prompts)
        return seen

    async def _look(self, fresh: Served, former: Served | None, prompts: CanarySet, asked: Asked) -> Seen:
        blocked = await self._blocked(fresh, "input", prompts.prompts, prompts.prompts)
        replies = await ask_all(fresh.target, prompts, asked)
        count = len(replies)
        texts = [reply.text for reply in replies]
        seen = Seen(
            prompts=count,
            empty=sum(not text.strip() for text in texts) / count,
            repetitive=sum(reply.repetitive for reply in replies) / count,
            unended=sum(not reply.ended for reply in replies) / count,
            blocked_prompts=blocked,
            blocked_replies=await self._blocked(fresh, "output", texts, prompts.prompts),
            logprob=mean_logprob(replies),
        )
        if former is not None and former.target != fresh.target and prompts.limits.logprob_drop is not None:
            seen.former_logprob = mean_logprob(await ask_all(former.target, prompts, asked))
        reward = getattr(fresh.strategy, "reward", None)
        if isinstance(reward, Reward):
            for prompt, text in zip(prompts.prompts, texts, strict=True):
                seen.rewards += await reward.score((("user", prompt),), [text])
        return seen

    async def _blocked(
        self, served: Served, stage: Stage, texts: Sequence[str], prompts: Sequence[str]
    ) -> float:
        """The share of texts that the guards withhold. Raises `CanaryFailed` where a guard can't answer."""
        guards: Sequence[Guard] = served.guards.input if stage == "input" else served.guards.output
        if not guards:
            return 0.0
        role = "user" if stage == "input" else "assistant"
        parts = [
            Part(role, text, stage=stage, prompt="" if stage == "input" else prompt)
            for text, prompt in zip(texts, prompts, strict=True)
        ]
        result = await check_texts(guards, parts, self._runner, policy_digest=served.policy.digest)
        if failed := sorted(_failed(result.parts)):
            raise CanaryFailed(f"canary: the {stage} guards {', '.join(failed)} could not answer")
        return sum(part.verdict.action.withholds for part in result.parts) / len(parts)


def _failed(parts: Sequence[PartResult]) -> set[str]:
    return {report.guard for part in parts for report in part.reports if report.state == "failed"}


async def ask_all(target: Target, prompts: CanarySet, asked: Asked) -> Sequence[Reply]:
    """Every prompt's greedy reply. Raises `UpstreamError`, and `CanaryFailed` for what is no reply."""
    if target not in asked:
        asking = (_ask(target, prompt, prompts.max_tokens) for prompt in prompts.prompts)
        asked[target] = await together(*asking)
    return asked[target]


async def _ask(target: Target, prompt: str, max_tokens: int) -> Reply:
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "logprobs": True,
    }
    reply = await target.engine.complete(PATH, orjson.dumps(body))
    try:
        choice: Mapping[str, Any] = orjson.loads(reply.body)["choices"][0]
        content = (choice.get("logprobs") or {}).get("content") or []
        logprobs = tuple(float(token["logprob"]) for token in content)
        tokens = tuple(str(token["token"]) for token in content)
        text = choice["message"].get("content") or ""
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CanaryFailed(
            f"canary: the engine's answer is no completion with log-probs: {error!r}"
        ) from error
    if not all(map(math.isfinite, logprobs)):
        raise CanaryFailed(
            "canary: a log-probability is not finite: NaN or infinity in the weights or the cache"
        )
    return Reply(text, tokens, logprobs, choice.get("finish_reason") == "stop")


def mean_logprob(replies: Sequence[Reply]) -> float:
    """Over all tokens of all replies; 0 where there is none."""
    every = [logprob for reply in replies for logprob in reply.logprobs]
    return sum(every) / len(every) if every else 0.0


def _judge(seen: Seen, prompts: CanarySet) -> None:
    limits = prompts.limits
    shares = (
        ("replies are empty", seen.empty, limits.empty),
        ("replies go in circles", seen.repetitive, limits.repetitive),
        ("replies don't end", seen.unended, limits.unended),
        ("prompts are withheld by the input guards", seen.blocked_prompts, limits.blocked),
        ("replies are withheld by the output guards", seen.blocked_replies, limits.blocked),
    )
    wrong = [
        f"{share:.0%} of the {what} (at most {limit:.0%})" for what, share, limit in shares if share > limit
    ]
    if seen.former_logprob is not None and limits.logprob_drop is not None:
        drop = seen.former_logprob - seen.logprob
        if drop > limits.logprob_drop:
            wrong.append(
                f"its replies are {drop:.2f} nats a token less sure than the former's (at most "
                f"{limits.logprob_drop:g})"
            )
    if len(seen.rewards) > 1 and len(set(seen.rewards)) == 1:
        wrong.append("all replies get the same reward")
    if wrong:
        raise CanaryFailed("canary: " + "; ".join(wrong))
