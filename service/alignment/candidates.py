"""Several replies to one request: asked for in one request where the engine gives them, counted, examined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails.guard import JobRunner
from policies.alignment import RerankMethod
from service.alignment.inspect import inspect_choices
from service.alignment.rewards import RewardError, reply_text
from service.alignment.strategy import Payload, ask
from service.alignment.waiting import together
from service.engine.errors import ProtocolError
from service.generation import Generation
from service.request import Examined
from service.transcript import Contrast

OWN_IDS = "return_token_ids"
"""vLLM's extension that tells each choice's tokens: asked of our own vLLM, to know what each costs."""


MAX_SEED = 2**63


@dataclass(slots=True, eq=False)
class Candidate:
    """One reply that could be given. `tokens` is exact where the engine tells, else its share by length.

    `done` is False for one that was only begun. `penalty` is taken off its score for what guards found.
    `released` is what guards would let out of its content, where they have looked.
    """

    choice: dict[str, Any]
    tokens: int
    blocked: bool = False
    done: bool = True
    score: float | None = None
    penalty: float = 0.0
    released: str | None = None

    @property
    def text(self) -> str:
        return reply_text(self.choice)

    @property
    def words(self) -> str:
        """Its content as the caller would get it; empty where it is not words alone."""
        if self.choice.get("message", {}).get("tool_calls"):
            return ""
        return (self.text if self.released is None else self.released).strip()


@dataclass(slots=True)
class Batch:
    """What one call of `sample` gave. `head` is the completion object without its choices."""

    head: Payload
    candidates: list[Candidate]
    generated: int
    prompt: int


def count_of(value: Any) -> int:
    """A token count as engines tell it; 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


async def sample(generation: Generation, body: Payload, count: int, done: int = 0) -> Batch:
    """`count` replies to `body`, of which `done` were already asked for. Raises `UpstreamError`.

    An engine that gives fewer than `n` is asked for the others one by one. Seeds go on where those before
    ended, as vLLM counts the seeds of one request's choices.
    """
    wants_ids = generation.served.target.engine.child is not None
    asked = {**body, "n": count, **({OWN_IDS: True} if wants_ids else {})}
    payloads = [await ask(generation, _seeded(asked, done))]
    given = len(payloads[0]["choices"])
    if given < count:
        single = {**asked, "n": 1}
        payloads += await together(
            *(ask(generation, _seeded(single, done + number)) for number in range(given, count))
        )
    candidates = [candidate for payload in payloads for candidate in candidates_of(payload)][:count]
    if len(candidates) < count:
        raise ProtocolError("sent a completion without choices", upstream=generation.served.target.model)
    if not body.get(OWN_IDS):
        for candidate in candidates:
            candidate.choice.pop("token_ids", None)
            candidate.choice.pop("prompt_token_ids", None)
    usages = [_usage(payload) for payload in payloads]
    head = {name: value for name, value in payloads[0].items() if name != "choices"}
    if not body.get(OWN_IDS):
        head.pop("prompt_token_ids", None)
    return Batch(
        head,
        candidates,
        generated=sum(count_of(usage.get("completion_tokens")) for usage in usages),
        prompt=count_of(usages[0].get("prompt_tokens")),
    )


def _seeded(body: Payload, done: int) -> Payload:
    seed = body.get("seed")
    return {**body, "seed": (seed + done) % MAX_SEED} if done and isinstance(seed, int) else body


def _usage(payload: Payload) -> dict[str, Any]:
    usage = payload.get("usage")
    return usage if isinstance(usage, dict) else {}


def candidates_of(payload: Payload) -> list[Candidate]:
    """The choices of a completion object, in order."""
    choices = sorted(payload["choices"], key=lambda choice: count_of(choice.get("index")))
    total = count_of(_usage(payload).get("completion_tokens"))
    lengths = [len(reply_text(choice)) for choice in choices]
    whole = sum(lengths) or 1
    return [
        Candidate(choice, _told(choice) or round(total * length / whole) or min(total, 1))
        for choice, length in zip(choices, lengths, strict=True)
    ]


def _told(choice: dict[str, Any]) -> int:
    """How many tokens a choice has, where it says so; 0 where it doesn't."""
    if isinstance(choice.get("token_ids"), list):
        return len(choice["token_ids"])
    logprobs = choice.get("logprobs") or {}
    entries = logprobs.get("content") or logprobs.get("tokens") or ()
    return len(entries)


async def examine(
    candidates: Sequence[Candidate], generation: Generation, examined: Examined, runner: JobRunner
) -> None:
    """Mark those that the policy's output guards would withhold, in whole or from some place on."""
    if not generation.served.guards.output or not candidates:
        return
    choices = [{**one.choice, "index": index} for index, one in enumerate(candidates)]
    seen = await inspect_choices({"choices": choices}, generation, examined, runner)
    for index, one in enumerate(candidates):
        one.blocked, one.penalty = seen[index].withheld, seen[index].penalty
        one.released = seen[index].released


@dataclass(slots=True)
class Group:
    """The candidates for one choice of the caller's."""

    candidates: list[Candidate] = field(default_factory=list)

    @property
    def fit(self) -> list[Candidate]:
        """Those that are complete, and that no guard withholds."""
        return [one for one in self.candidates if one.done and not one.blocked]

    @property
    def best(self) -> float | None:
        """The highest score among them."""
        return max((one.score for one in self.fit if one.score is not None), default=None)


@dataclass(slots=True)
class Work:
    """What one prompt's candidates came to; `method` is the one that they were made by."""

    groups: list[Group]
    method: RerankMethod
    head: Payload = field(default_factory=dict)
    generated: int = 0
    prompt: int = 0
    rounds: int = 0
    generating_s: float = 0.0
    scoring_s: float = 0.0
    error: RewardError | None = None

    def add(self, batch: Batch) -> None:
        self.head = self.head or batch.head
        self.prompt = self.prompt or batch.prompt
        self.generated += batch.generated
        self.rounds += 1

    @property
    def candidates(self) -> list[Candidate]:
        return [one for group in self.groups for one in group.candidates]

    def contrast(self) -> Contrast | None:
        """The best and the worst of the replies that could have been given; None where none differ."""
        fit = [one for group in self.groups for one in group.fit if one.score is not None and one.words]
        best = max(fit, key=lambda one: one.score or 0.0, default=None)
        worst = min(fit, key=lambda one: one.score or 0.0, default=None)
        if best is None or worst is None or best.score is None or worst.score is None:
            return None
        if best.score <= worst.score or best.words == worst.words:
            return None
        return Contrast(best.words, worst.words, best.score, worst.score)
