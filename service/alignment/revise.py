"""Critique and revision while answering: a judge holds the reply against a constitution, the model mends it.

    reply ─► critique ─► nothing violated: it goes out
              │  ▲
              ▼  │  at most `rounds` times
            revision ─► still violated: `unresolved` says what becomes of it

What comes out is moderated like any reply: nothing here stands in for a guard. A judge that fails or talks
nonsense has not passed anything; `on_error` says what becomes of a reply that nobody has criticised, and one
that is known to violate a principle is unresolved, whatever fails afterwards. Source of the method: Bai et
al. 2022, arXiv:2212.08073, whose training data is made in the same way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guardrails.servable import ServableSpec
from guardrails.verdict import Action, Failure
from policies.alignment import ReviseSpec
from policies.constitution import load_constitution
from policies.critique import Case, Critique, revision_messages
from service.alignment.cases import case_of, turns_of_chat, turns_of_prompt
from service.alignment.inspect import inspect_choices
from service.alignment.judge import Judge, Reason, RevisionError, Spent, ask_for_text
from service.alignment.pairs import Pair, PairStore
from service.alignment.revise_report import record, summary_of
from service.alignment.strategy import Aligned, Means, Payload, Strategy
from service.alignment.versions import answering
from service.engine.engine import Engine
from service.generation import Generation
from service.openai.errors import BadRequest
from service.request import Examined
from service.telemetry.tracing import tell_summary, traced

Choice = dict[str, Any]
Outcome = Literal["compliant", "revised", "refused", "blocked", "best", "kept", "failed"]
"""What became of a choice: nothing was violated; a revision took its place; it was violated to the last, and
refused, blocked or let go as the best of them; nobody could tell, and it was kept or withheld."""

Rewards = Callable[[Generation, Examined, Sequence[Choice]], Awaitable[list[float]]]
"""One score for each choice; the higher the better."""

DROPPED = frozenset(
    "messages prompt suffix echo n best_of logprobs top_logprobs prompt_logprobs tools tool_choice functions "
    "function_call parallel_tool_calls continue_final_message add_generation_prompt".split()
)
"""What a request for a reply may ask that a request for its revision, one plain text, can't."""


@dataclass(slots=True)
class Version:
    """A choice as it was first, or revised; `critique` is None as long as no judge has spoken."""

    choice: Choice
    critique: Critique | None = None
    tokens: int | None = None


@dataclass(slots=True)
class Work:
    """One choice on its way: all of its versions, and what has come of it."""

    index: int
    conversation: Sequence[Mapping[str, Any]]
    versions: list[Version]
    outcome: Outcome = "compliant"
    chosen: Version | None = None
    error: Reason | None = None
    rewards: list[float] = field(default_factory=list)

    @property
    def last(self) -> Version:
        return self.versions[-1]

    @property
    def case(self) -> Case:
        return case_of(self.conversation, self.last.choice)


@dataclass(slots=True)
class Cost:
    """What revision cost beside the reply itself."""

    judge: Spent = field(default_factory=Spent)
    reviser: Spent = field(default_factory=Spent)
    seconds: float = 0.0


class Revise:
    """The strategy of a policy with `revise`, over the strategy that makes the first reply."""

    def __init__(
        self, spec: ReviseSpec, base: Strategy, means: Means, rewards: Rewards | None = None
    ) -> None:
        """Reads the constitution: raises `policies.errors.PolicyError`."""
        self.spec = spec
        self.constitution = load_constitution(spec.constitution)
        self.judge = Judge(spec, self.constitution, means)
        self._base = base
        self._means = means
        self._rewards = rewards
        self._pairs = PairStore(means.state_dir / "preferences", means.runner) if spec.store else None

    @property
    def reward(self) -> object:
        """What scores the replies that it begins with, where anything does."""
        return getattr(self._base, "reward", None)

    @property
    def engines(self) -> Sequence[Engine]:
        """The base's, and the judge's own."""
        return (*self._base.engines, *self.judge.engines)

    @property
    def servables(self) -> Mapping[str, ServableSpec]:
        return self._base.servables

    @traced("revise", tell_summary("revise"))
    async def answer(self, generation: Generation, examined: Examined) -> Aligned:
        """See `Strategy.answer`."""
        if generation.kind == "text_completion":
            _check_prompt(generation.payload.get("prompt"))
        base = await self._base.answer(generation, examined)
        began = time.perf_counter()
        picked = await self._pick(base.payload, generation, examined)
        works, cost = self._works(base.payload, picked, generation), Cost()
        deadline = asyncio.get_running_loop().time() + self.spec.deadline_ms / 1000
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(self._settle(work, generation, examined, cost, deadline))
        cost.seconds = time.perf_counter() - began
        self._tell(works, generation, examined)
        record(self._means.metrics, generation.served.name, works, cost, len(base.payload["choices"]))
        if self._pairs is not None:
            for work in works:
                await self._store(self._pairs, work, generation)
        payload = _put(base.payload, works)
        summary = summary_of(self, works, cost, generation.served.spec.expose == "findings")
        return Aligned(payload, {**base.summary, "revise": summary})

    async def _pick(self, payload: Payload, generation: Generation, examined: Examined) -> set[int]:
        """The choices that are to be criticised."""
        indices = {choice.get("index", 0) for choice in payload["choices"]}
        if self.spec.when == "sampled":
            return {index for index in indices if random.random() < (self.spec.share or 0)}  # noqa: S311  a sample
        if self.spec.when == "flagged":
            seen = await inspect_choices(payload, generation, examined, self._means.runner)
            return {index for index in indices if seen[index].flagged}
        return indices

    def _works(self, payload: Payload, picked: set[int], generation: Generation) -> list[Work]:
        prompts = generation.choices // (generation.request.n or 1)
        works = []
        for choice in payload["choices"]:
            index = choice.get("index", 0)
            if index in picked:
                prompt = min(index // (generation.request.n or 1), prompts - 1)
                asked = generation.payload
                chat = generation.kind == "chat"
                conversation = turns_of_chat(asked) if chat else turns_of_prompt(asked["prompt"], prompt)
                works.append(Work(index, conversation, [Version(choice)]))
        return works

    async def _settle(
        self, work: Work, generation: Generation, examined: Examined, cost: Cost, deadline: float
    ) -> None:
        """Criticise and revise one choice until nothing is left to say, and decide what goes out."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._go_round(work, generation, cost)
        except TimeoutError:
            work.error = "timeout"
        except RevisionError as error:
            work.error = error.reason
        critique = work.last.critique
        if critique is None:
            work.outcome = "kept" if self.spec.on_error == "keep" else "failed"
            work.chosen = work.last if self.spec.on_error == "keep" else None
        elif critique.violations:
            await self._unresolved(work, generation, examined)
        else:
            work.outcome = "revised" if len(work.versions) > 1 else "compliant"
            work.chosen = work.last

    async def _go_round(self, work: Work, generation: Generation, cost: Cost) -> None:
        while True:
            work.last.critique = await self.judge.critique(work.case, generation, cost.judge)
            if not work.last.critique.violations or len(work.versions) > self.spec.rounds:
                return
            work.versions.append(await self._revised(work, work.last.critique, generation, cost.reviser))

    async def _revised(self, work: Work, critique: Critique, generation: Generation, spent: Spent) -> Version:
        """The policy's model writes the reply anew, under the caller's limits and the policy's constraints.

        A revision is a plain text: tool calls, reasoning and log probabilities are those of what was there
        before, and go with it.
        """
        body = {key: value for key, value in generation.whole_request().items() if key not in DROPPED}
        body["messages"] = revision_messages(self.constitution, critique, work.case)
        own = Spent()
        async with answering(generation) as target:
            said = await ask_for_text(target.engine, {**body, "model": target.model}, generation, own)
        spent.add(own.render())
        if not said.text.strip():
            raise RevisionError("nonsense")
        choice = {"index": work.index, **_said(generation, said.text.strip()), "finish_reason": said.finish}
        return Version(choice, tokens=own.completion)

    async def _unresolved(self, work: Work, generation: Generation, examined: Examined) -> None:
        """What becomes of a choice that violates the constitution in all of its versions."""
        unresolved = self.spec.unresolved
        if unresolved == "best":
            work.outcome, work.chosen = "best", await self._best(work, generation, examined)
        elif unresolved == "refuse":
            said = _said(generation, generation.served.spec.refusal)
            choice = {"index": work.index, **said, "finish_reason": "content_filter"}
            work.outcome, work.chosen = "refused", Version(choice, tokens=0)
        else:
            work.outcome = "blocked"

    async def _best(self, work: Work, generation: Generation, examined: Examined) -> Version:
        """By the reward where the policy has one, else by what is violated; of equals the last."""
        judged = [version for version in work.versions if version.critique is not None]
        if self._rewards is not None:
            try:
                async with asyncio.timeout(self.spec.deadline_ms / 1000):
                    choices = [version.choice for version in judged]
                    work.rewards = await self._rewards(generation, examined, choices)
            except Exception:  # whatever ails the reward, the critiques still tell
                work.rewards = []
        weights = [version.critique.weight for version in judged if version.critique]
        ranks = work.rewards or [-weight for weight in weights]
        return judged[max(range(len(judged)), key=lambda at: (ranks[at], at))]

    def _tell(self, works: Sequence[Work], generation: Generation, examined: Examined) -> None:
        """Put into the report what the outcome means for the reply, and fill in what is withheld."""
        report = examined.report
        for work in works:
            if work.error is not None:
                withheld = work.outcome in ("failed", "refused", "blocked")
                action = Action.BLOCK if withheld else Action.ALLOW
                report.failures.append(("output", Failure("revise", work.error, action)))
            if work.chosen is None:
                said = _said(generation, "")
                work.chosen = Version(
                    {"index": work.index, **said, "finish_reason": "content_filter"}, tokens=0
                )
            if work.outcome in ("failed", "refused", "blocked"):
                report.action = max(report.action, Action.BLOCK)
            elif work.chosen is not work.versions[0]:
                report.action = max(report.action, Action.REWRITE)

    async def _store(self, pairs: PairStore, work: Work, generation: Generation) -> None:
        if work.outcome != "revised" or "message" not in work.last.choice:
            return
        before, after = (
            version.choice["message"].get("content") for version in (work.versions[0], work.last)
        )
        pair = Pair(
            work.conversation,
            before or "",
            after,
            self.constitution.name,
            self.judge.label,
            generation.checkpoint,
        )
        outcome = await pairs.store(pair, generation.served)
        self._means.metrics.revise_pairs.labels(generation.served.name, outcome).inc()


def _said(generation: Generation, text: str) -> Choice:
    if generation.kind == "chat":
        return {"message": {"role": "assistant", "content": text}, "logprobs": None}
    return {"text": text, "logprobs": None}


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, list) and any(not isinstance(item, str) for item in prompt):
        raise BadRequest(
            "this policy revises replies, which takes their prompts' text: token ids can't be read",
            param="prompt",
        )


def _put(payload: Payload, works: Sequence[Work]) -> Payload:
    """The payload with what was chosen, and the usage of that: a choice's share of the first reply's tokens
    is told by its length, for engines count the choices of a reply together."""
    chosen = {
        work.index: work.chosen for work in works if work.chosen and work.chosen is not work.versions[0]
    }
    if not chosen:
        return payload
    choices = payload["choices"]
    usage = payload.get("usage")
    if isinstance(usage, dict):
        sizes = {choice.get("index", 0): len(str(_text(choice))) + 1 for choice in choices}
        total = usage.get("completion_tokens") or 0
        kept = sum(size for index, size in sizes.items() if index not in chosen)
        said = round(total * kept / sum(sizes.values()))
        said += sum(version.tokens or 0 for version in chosen.values())
        prompt = usage.get("prompt_tokens") or 0
        usage = {**usage, "completion_tokens": said, "total_tokens": prompt + said}
    fresh = [
        chosen[index].choice if (index := choice.get("index", 0)) in chosen else choice for choice in choices
    ]
    return {**payload, "choices": fresh, **({"usage": usage} if usage is not None else {})}


def _text(choice: Choice) -> Any:
    return choice.get("message") or choice.get("text")
