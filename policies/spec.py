"""What a policy file may say: one YAML document is one model name.

Everything here is frozen and refuses unknown keys, so that a mistyped setting is an error when the file
is loaded and not a guard that silently never ran. Guard settings live here rather than beside the guards
because a policy must be checked where neither a guard nor its model can be imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from policies.adjustable import Adjustable
from policies.alignment import RerankSpec, ReviseSpec
from policies.base import Frozen, Name, Upstream
from policies.constraints import Constraint, contradictions
from policies.errors import Loc, Problem, located
from policies.guards import GuardBase, OnError, Probability, ScoredBase
from policies.judge import JudgeSpec
from policies.records import FeedbackSpec, ReviewSpec
from policies.severity import Level, Levels, idle_penalties

ActionName = Literal["allow", "log", "redact", "mask", "hash", "rewrite", "escalate", "block"]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class ModelRef(Frozen):
    """What answers: a checkpoint served by the managed vLLM, or one or more upstreams (least busy first).

    `mixed: allow` lets a reply that takes several calls of the model go over to another checkpoint on the
    way, when one takes the place of the first.
    """

    checkpoint: str | None = None
    upstream: Upstream | None = None
    upstreams: tuple[Upstream, ...] = ()
    mixed: Literal["refuse", "allow"] = "refuse"

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [self.checkpoint is not None, self.upstream is not None, bool(self.upstreams)]
        if sum(given) != 1:
            raise ValueError("give exactly one of 'checkpoint', 'upstream' or 'upstreams'")
        if self.mixed == "allow" and self.checkpoint is None:
            raise ValueError("'mixed' is about the versions of a checkpoint; upstreams are others' to keep")
        return self

    @property
    def targets(self) -> tuple[Upstream, ...]:
        return (self.upstream,) if self.upstream else self.upstreams


class Pattern(Frozen):
    """A named expression in the syntax of the `regex` package."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    regex: Annotated[str, Field(min_length=1, max_length=4_096)]
    score: Probability = 1.0


class PatternsSpec(GuardBase):
    """Own expressions, built-in ones by name, and word lists."""

    guard: Literal["patterns"] = "patterns"
    patterns: tuple[str | Pattern, ...] = ()
    builtin: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    normalize: bool = True
    action: Literal["allow", "log", "redact", "mask", "hash", "escalate", "block"] = "block"
    replacement: str | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.patterns or self.builtin or self.words):
            raise ValueError("a patterns guard needs 'patterns', 'builtin' or 'words'")
        return self


class SecretsSpec(GuardBase):
    """Keys, tokens and private keys. `kinds` empty means all that are known."""

    guard: Literal["secrets"] = "secrets"
    kinds: tuple[str, ...] = ()
    entropy: bool = True
    action: Literal["allow", "log", "redact", "mask", "hash", "escalate", "block"] = "redact"


class PiiSpec(GuardBase):
    """Presidio. `entities` empty means the default set; `ner` finds names and places.

    `ner`: "embedded" (the project's own small model), "none", a spaCy package's name, or the folder of a
    transformers token classifier. `cascade` as for classifiers.
    """

    guard: Literal["pii"] = "pii"
    entities: tuple[str, ...] = ()
    language: str = "en"
    ner: str = "embedded"
    cascade: bool = False
    threshold: Probability = 0.4
    allow_list: tuple[str, ...] = ()
    action: Literal["allow", "log", "redact", "mask", "hash", "escalate", "block"] = "redact"


class DetoxifyRef(Frozen):
    """A Detoxify model: by name, or a checkpoint file, whose digest is checked before it is opened."""

    detoxify: Literal["original", "unbiased", "multilingual"] | None = None
    path: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _checkable(self) -> Self:
        if (self.detoxify is None) == (self.path is None):
            raise ValueError("give exactly one of 'detoxify' (a model's name) or 'path' (a checkpoint file)")
        if self.path is not None and self.sha256 is None:
            raise ValueError("'path' needs 'sha256': a pickle is opened only when its digest is known")
        return self


class EvidenceSpec(Frozen):
    """Pieces that are each only suspicious add up: log-odds of their scores over those of `above`, piece by
    piece and never below 0, are flagged from `limit` on."""

    above: Annotated[float, Field(gt=0.0, lt=1.0)]
    limit: Annotated[float, Field(gt=0.0, le=100.0)]


class ClassifierBase(ScoredBase):
    """A guard that scores text with a classifier: a checkpoint's name by default.

    With `cascade`, a model's early exit, where it has one, answers for pieces in which it is sure that
    nothing is. With `evidence`, pieces count together, and low scores too. With `sentences`, a long text that
    is complete is read sentence by sentence too: harmless ones can't hide a harmful one then.
    """

    model: str | DetoxifyRef = "keel-guard"
    cascade: bool = False
    sentences: bool = False
    evidence: EvidenceSpec | None = None

    @property
    def leaves_early(self) -> bool:
        """Whether an exit may answer. It tells which pieces score low, but not how low: no evidence."""
        return self.cascade and self.evidence is None

    def _said_twice(self) -> Iterator[Problem]:
        yield from super()._said_twice()
        if self.evidence is not None and self.scope == "document":
            yield Problem(("evidence",), "a document is one piece: evidence is for scope 'segment'")


class ToxicitySpec(ClassifierBase):
    """Detoxify's labels; `thresholds` overrides `threshold` label by label."""

    guard: Literal["toxicity"] = "toxicity"
    thresholds: dict[str, Probability] = Field(default_factory=dict)

    def _said_twice(self) -> Iterator[Problem]:
        yield from super()._said_twice()
        for label in self.thresholds:
            if self.levels or label in self.categories:
                where = "categories" if label in self.categories else "levels"
                yield Problem(("thresholds", label), f"{where!r} says it already: give one of the two")

    @property
    def ladders(self) -> Mapping[str, Levels]:
        single = {label: (Level(at=at, action=self.action),) for label, at in self.thresholds.items()}
        return single | self.categories


class InjectionSpec(ClassifierBase):
    """Jailbreaks and prompt injections, also inside tool results and quoted documents."""

    guard: Literal["injection"] = "injection"
    threshold: Probability = 0.9


class HarmSpec(ClassifierBase):
    """Requests for something harmful, and replies that give it; a reply is judged together with its prompt.

    The labels `self_harm` and `violence` are flagged only where `categories` gives them a ladder. Replies,
    which score lower, get one from 0.8 on where neither a threshold nor levels are given. No more than their
    segments are read, whatever `sentences` says.
    """

    guard: Literal["harm"] = "harm"
    threshold: Probability = 0.85
    sentences: bool = True

    @model_validator(mode="after")
    def _replies_score_lower(self) -> Self:
        if not self.levels and "threshold" not in self.model_fields_set:
            replies = (Level(at=0.8, action=self.action),)
            # A default like any other, seen in dumps and digests: "set" are only the fields that were given.
            object.__setattr__(self, "categories", {"unsafe_reply": replies, **self.categories})
        return self


class Topic(Frozen):
    """A subject told by its words and phrases; `min_hits` different ones make it the subject."""

    phrases: Annotated[tuple[str, ...], Field(min_length=1)]
    min_hits: Annotated[int, Field(ge=1)] = 1


class TopicsSpec(GuardBase):
    """Subjects that this assistant stays away from."""

    guard: Literal["topics"] = "topics"
    deny: Annotated[dict[str, Topic], Field(min_length=1)]
    action: Literal["allow", "log", "escalate", "block"] = "block"


class ToolCallsSpec(GuardBase):
    """Which tools the model may call, and with what. Names may hold `*`; `schemas` are JSON Schemas."""

    guard: Literal["tool_calls"] = "tool_calls"
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    validate_arguments: bool = True
    schemas: dict[str, dict[str, Any]] = Field(default_factory=dict)
    arguments: tuple[ArgumentGuard, ...] = ()
    action: Literal["allow", "log", "escalate", "block"] = "block"


ArgumentGuard = Annotated[
    PatternsSpec | SecretsSpec | PiiSpec | ToxicitySpec | InjectionSpec | HarmSpec | TopicsSpec,
    Field(discriminator="guard"),
]
GuardSpec = Annotated[
    PatternsSpec
    | SecretsSpec
    | PiiSpec
    | ToxicitySpec
    | InjectionSpec
    | HarmSpec
    | TopicsSpec
    | ToolCallsSpec
    | JudgeSpec,
    Field(discriminator="guard"),
]
ToolCallsSpec.model_rebuild()


class PolicySpec(Frozen):
    """One policy: which model answers, and what is examined on the way in and on the way out."""

    name: Name
    description: str = ""
    model: ModelRef
    input: tuple[GuardSpec, ...] = ()
    output: tuple[GuardSpec, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    rerank: RerankSpec | None = None
    revise: ReviseSpec | None = None
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("user", "tool")
    streaming: Literal["allow", "buffer", "refuse"] = "allow"
    on_error: OnError = "block"
    on_input_block: Literal["error", "refuse"] = "error"
    refusal: str = "I can't help with that."
    expose: Literal["none", "summary", "findings"] = "findings"
    max_n: Annotated[int, Field(ge=1, le=128)] = 16
    feedback: FeedbackSpec | None = None
    review: ReviewSpec = ReviewSpec(items="escalated")
    adjustable: tuple[Adjustable, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = [
            *self._misplaced(),
            *self._used_twice(),
            *self._masked_output(),
            *self._unstreamable(),
            *self._judges_that_change(),
            *self._never_flagged(),
            *self._cut_constraints(),
            *self._unmixable(),
            *self._idle_penalties(),
            *contradictions(self.constraints),
        ]
        if problems:
            raise located(problems)
        return self

    @property
    def keeps_text(self) -> bool:
        """Whether anything of what is said may be kept."""
        feedback = self.feedback is not None and self.feedback.store == "text"
        return feedback or self.keeps_pairs or self.review.store == "text"

    @property
    def keeps_pairs(self) -> bool:
        """Whether candidates of reranking may be kept."""
        return self.rerank is not None and self.rerank.store_pairs

    def with_model(self, model: ModelRef) -> PolicySpec:
        """The same policy in front of another model."""
        return self.model_copy(update={"model": model})

    def _misplaced(self) -> Iterator[Problem]:
        for index, guard in enumerate(self.input):
            if guard.guard == "tool_calls":
                yield Problem(
                    ("input", index),
                    "'tool_calls' examines what the model calls: it belongs under 'output'",
                )

    def _used_twice(self) -> Iterator[Problem]:
        for stage, guards in (("input", self.input), ("output", self.output)):
            seen: set[str] = set()
            for index, guard in enumerate(guards):
                if guard.title in seen:
                    yield Problem(
                        (stage, index),
                        f"guard {guard.title!r} is used twice in one stage: give each use a 'label'",
                    )
                seen.add(guard.title)

    def _masked_output(self) -> Iterator[Problem]:
        for loc, guard in self._output_guards():
            if getattr(guard, "action", None) == "mask":
                yield Problem(
                    (*loc, "action"),
                    f"guard {guard.title!r}: 'mask' puts placeholders in that are taken out of the reply "
                    "again, so it belongs under 'input'; under 'output' use 'redact' or 'hash'",
                )

    def _unstreamable(self) -> Iterator[Problem]:
        if self.streaming != "allow":
            return
        for loc, guard in self._output_guards():
            if getattr(guard, "scope", "segment") == "document":
                yield Problem(
                    (*loc, "scope"),
                    f"guard {guard.title!r} has scope 'document', which needs the whole reply: set "
                    "'streaming: buffer' (or 'refuse'), or give the guard 'scope: segment'",
                )

    def _judges_that_change(self) -> Iterator[Problem]:
        for index, guard in enumerate(self.input):
            if isinstance(guard, JudgeSpec) and guard.changes_text:
                yield Problem(
                    ("input", index),
                    f"guard {guard.title!r}: a judge of inputs works beside the model, which has the text "
                    "already: it can 'allow', 'log', 'escalate' or 'block', not redact or rewrite",
                )

    def _cut_constraints(self) -> Iterator[Problem]:
        if self.rerank is not None and self.rerank.in_pieces:
            for index, rule in enumerate(self.constraints):
                if rule.require or rule.half_life is not None:
                    yield Problem(
                        ("constraints", index),
                        f"'require' and 'half_life' are about a reply as a whole, and {self.rerank.method!r} "
                        "has it written in pieces: use 'best_of_n'",
                    )

    def _unmixable(self) -> Iterator[Problem]:
        if self.model.mixed == "allow" and self.rerank is None and self.revise is None:
            yield Problem(
                ("model", "mixed"),
                "a reply that is one call of the model is of one version anyhow: 'mixed: allow' is for "
                "'rerank' and 'revise'",
            )

    def _never_flagged(self) -> Iterator[Problem]:
        if self.revise is not None and self.revise.when == "flagged" and not self.output:
            yield Problem(
                ("revise", "when"),
                "'flagged' revises what a guard under 'output' has found something in, and there is none: "
                "add one, or set 'when: always'",
            )

    def _idle_penalties(self) -> Iterator[Problem]:
        inputs = ((("input", index), guard) for index, guard in enumerate(self.input))
        for loc, guard in (*inputs, *(() if self.rerank is not None else self._output_guards())):
            if isinstance(guard, ScoredBase):
                yield from idle_penalties((*loc, "levels"), guard.levels)
                for label, levels in guard.categories.items():
                    yield from idle_penalties((*loc, "categories", label), levels)

    def _output_guards(self) -> Iterator[tuple[Loc, GuardBase]]:
        """The output's guards and those over tool-call arguments, with their places."""
        for index, guard in enumerate(self.output):
            yield ("output", index), guard
            if isinstance(guard, ToolCallsSpec):
                for inner, nested in enumerate(guard.arguments):
                    yield ("output", index, "arguments", inner), nested
