"""What a policy may ask for beyond one reply of its model: reranking by a reward, critique and revision."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies.base import Frozen, Name, Upstream

Weight = Annotated[float, Field(ge=-100, le=100)]
RerankMethod = Literal["best_of_n", "soft_best_of_n", "adaptive", "speculative_rejection", "blockwise"]


class RewardServer(Frozen):
    """A vLLM that serves a reward model (`--runner pooling --convert classify`), asked over `/classify`.

    `objectives` names the model's outputs in their order. Before it is weighted each is standardised,
    (r - mean) / deviation, with what the model's `reward.json` tells of its samples (left out: 0 and 1).
    """

    upstream: Upstream
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("reward",)
    mean: dict[str, float] = Field(default_factory=dict)
    deviation: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_known(self) -> Self:
        for key, given in (("mean", self.mean), ("deviation", self.deviation)):
            if unknown := sorted(set(given) - set(self.objectives)):
                raise ValueError(f"'{key}' names {unknown[0]!r}, which is not among the 'objectives'")
        return self


class RewardModels(Frozen):
    """What scores a reply to a conversation.

    `model` is a reward checkpoint's name, a folder's path or a server; several are an ensemble, whose score
    is the mean less `uncertainty` standard deviations. `reward` weights the model's objectives (left out:
    the checkpoint's own weights, a server's outputs all alike). `deadline_ms` bounds each scoring.
    """

    model: str | RewardServer | tuple[str | RewardServer, ...]
    reward: dict[str, Weight] = Field(default_factory=dict)
    uncertainty: Annotated[float, Field(ge=0, le=10)] = 1.0
    deadline_ms: Annotated[int, Field(gt=0, le=60_000)] = 5_000

    @model_validator(mode="after")
    def _some_model(self) -> Self:
        if isinstance(self.model, tuple) and not self.model:
            raise ValueError("'model' is empty; name a reward model, or several for an ensemble")
        if self.reward and not any(self.reward.values()):
            raise ValueError("'reward' gives every objective the weight 0; one must have another")
        return self

    @property
    def models(self) -> tuple[str | RewardServer, ...]:
        return self.model if isinstance(self.model, tuple) else (self.model,)


class RerankSpec(RewardModels):
    """Several candidates are generated, reward models score them, the best one is the reply.

    `length_penalty` is taken off for each 100
    tokens. `n` is how many candidates there are at most for one choice. `temperature` replaces the caller's,
    unless that is 0, which asks for the one most likely reply and so leaves nothing to choose. `softness` is
    that of 'soft_best_of_n'; `first` is how many candidates 'adaptive' begins with, until one's score reaches
    `accept`; `below` says what follows where none does. After `block_tokens` tokens 'speculative_rejection'
    drops the worse half, and again whenever the rest is twice as long; with 'blockwise' the best of `n`
    continuations of so many tokens is sent, then the next. When a scoring fails, `on_error` gives the first
    candidate or an error. `store_pairs` keeps the best and the worst candidate as preference data.
    """

    method: RerankMethod = "best_of_n"
    n: Annotated[int, Field(ge=2, le=64)] = 4
    length_penalty: Annotated[float, Field(ge=0, le=100)] = 0.0
    temperature: Annotated[float, Field(gt=0, le=2)] | None = None
    softness: Annotated[float, Field(gt=0)] = 0.5
    first: Annotated[int, Field(ge=1, le=64)] = 2
    accept: float | None = None
    below: Literal["best", "refuse"] = "best"
    block_tokens: Annotated[int, Field(ge=4, le=512)] = 32
    on_error: Literal["first", "fail"] = "first"
    store_pairs: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "blockwise" and self.store_pairs:
            raise ValueError("'blockwise' has no whole candidates to keep as pairs: leave 'store_pairs' out")
        if self.method == "adaptive" and self.accept is None:
            raise ValueError("'adaptive' needs 'accept': the reward at which a candidate is good enough")
        if self.below == "refuse" and self.accept is None:
            raise ValueError("'below: refuse' needs 'accept': the reward below which no candidate will do")
        if self.method == "blockwise" and self.below == "refuse":
            raise ValueError("'blockwise' sends as it chooses and can't refuse afterwards: leave 'below' out")
        if self.accept is not None and self.method != "adaptive" and self.below != "refuse":
            raise ValueError("'accept' is for 'adaptive' or 'below: refuse'; as it is, it decides nothing")
        if self.method == "adaptive" and self.first > self.n:
            raise ValueError("'first' is how many of the 'n' candidates come first; it can't be more")
        return self

    @property
    def in_pieces(self) -> bool:
        """Whether replies are stopped and continued on the way."""
        return self.method in ("speculative_rejection", "blockwise")


class JudgeModel(Frozen):
    """Who judges: another policy's model, or any OpenAI-compatible server."""

    policy: Name | None = None
    upstream: Upstream | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.policy is None) == (self.upstream is None):
            raise ValueError("give exactly one of 'policy', another policy's model, and 'upstream', a server")
        return self


class ReviseSpec(Frozen):
    """A judge criticises the reply by a constitution, and the model revises it until nothing is left to say.

    `when: flagged` criticises only replies in which a guard found something (with any action, `allow`
    included); `sampled` a random `share`. `unresolved` says what becomes of a reply that still violates a
    principle after the last round, `on_error` what becomes of one that nobody could criticise.
    """

    constitution: str
    judge: Literal["self"] | JudgeModel = "self"
    when: Literal["always", "flagged", "sampled"] = "flagged"
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    rounds: Annotated[int, Field(ge=1, le=8)] = 2
    unresolved: Literal["refuse", "block", "best"] = "refuse"
    on_error: Literal["keep", "block"] = "block"
    deadline_ms: Annotated[int, Field(gt=0, le=600_000)] = 60_000
    store: bool = False

    @model_validator(mode="after")
    def _share_fits(self) -> Self:
        if (self.share is None) == (self.when == "sampled"):
            raise ValueError("'when: sampled' and 'share' go together: give both, or neither")
        return self
