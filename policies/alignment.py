"""What a policy may ask for beyond one reply of its model: reranking by a reward, critique and revision."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies.base import Frozen, Name, Upstream

Weight = Annotated[float, Field(ge=-100, le=100)]
RerankMethod = Literal["best_of_n", "soft_best_of_n", "adaptive", "speculative_rejection", "blockwise"]


class RewardServer(Frozen):
    """A vLLM that serves a reward model (`--runner pooling --convert classify`), asked over `/classify`."""

    upstream: Upstream


class RerankSpec(Frozen):
    """Several candidates are generated, a reward model scores them, the best one is the reply.

    `model` is a reward checkpoint's name or a server; several are an ensemble, whose score is the mean less
    `uncertainty` standard deviations. `reward` weights the model's objectives (all alike where left out).
    `length_penalty` is taken off for each 100 tokens. `n` is how many candidates there are at most for one
    choice; with `blockwise`, how many continuations a block of `block_tokens` has.
    """

    method: RerankMethod = "best_of_n"
    n: Annotated[int, Field(ge=2, le=64)] = 4
    model: str | RewardServer | tuple[str | RewardServer, ...]
    reward: dict[str, Weight] = Field(default_factory=dict)
    uncertainty: Annotated[float, Field(ge=0, le=10)] = 1.0
    length_penalty: Annotated[float, Field(ge=0, le=100)] = 0.0
    temperature: Annotated[float, Field(gt=0, le=2)] | None = None
    softness: Annotated[float, Field(gt=0)] = 0.5
    first: Annotated[int, Field(ge=1, le=64)] = 2
    accept: float | None = None
    below: Literal["best", "refuse"] = "best"
    block_tokens: Annotated[int, Field(ge=4, le=512)] = 32
    deadline_ms: Annotated[int, Field(gt=0, le=60_000)] = 5_000
    on_error: Literal["first", "fail"] = "first"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "adaptive" and self.accept is None:
            raise ValueError("'adaptive' needs 'accept': the reward at which a candidate is good enough")
        if self.below == "refuse" and self.accept is None:
            raise ValueError("'below: refuse' needs 'accept': the reward below which no candidate will do")
        if self.method == "adaptive" and self.first > self.n:
            raise ValueError("'first' is how many of the 'n' candidates come first; it can't be more")
        if isinstance(self.model, tuple) and not self.model:
            raise ValueError("'model' is empty; name a reward model, or several for an ensemble")
        return self

    @property
    def models(self) -> tuple[str | RewardServer, ...]:
        return self.model if isinstance(self.model, tuple) else (self.model,)


class JudgePolicy(Frozen):
    """Another policy's model is the judge."""

    policy: Name


class JudgeServer(Frozen):
    """Any OpenAI-compatible server is the judge."""

    upstream: Upstream


class ReviseSpec(Frozen):
    """A judge criticises the reply by a constitution, and the model revises it until nothing is left to say.

    `when: flagged` criticises only replies in which a guard found something (with any action, `allow`
    included); `sampled` a random `share`. `unresolved` says what becomes of a reply that still violates a
    principle after the last round.
    """

    constitution: str
    judge: Literal["self"] | JudgePolicy | JudgeServer = "self"
    when: Literal["always", "flagged", "sampled"] = "flagged"
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    rounds: Annotated[int, Field(ge=1, le=8)] = 2
    unresolved: Literal["refuse", "block", "best"] = "refuse"
    on_error: Literal["keep", "block"] = "block"
    deadline_ms: Annotated[int, Field(gt=0, le=600_000)] = 60_000
    store: bool = False
