"""Constraints at generation: what a policy forbids, demands or discourages while the model chooses words.

They reach vLLM with each request of the policy, as text under `XARG` in `vllm_xargs`, and are applied there
by `service.alignment.vllm_constraints`. A caller can't set them: the gateway removes the key from what it is
sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.errors import Problem

XARG = "keel_constraints"

Phrase = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Phrases = Annotated[tuple[Phrase, ...], Field(max_length=500)]


class Constraint(BaseModel):
    """One rule. Exactly one of `ban`, `require` and `phrases` is given.

    `ban`: no token may complete one of these phrases (hard). With `whole_words` a longer word that begins
    with a banned one is still said, unless the tokenizer cuts it right behind the banned part. `phrases` with
    `bias`: that many nats are added to the logit of every token that completes one; negative discourages,
    positive favours. `require`: the reply doesn't end before each of these has been said, and says them at
    the end of its tokens if it must; with `bias` it is only made reluctant to end. `half_life`: after so many
    tokens half of the bias is left, after twice as many a quarter. `category` names the harm that a rule is
    about, for people and metrics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ban: Phrases = ()
    require: Phrases = ()
    phrases: Phrases = ()
    bias: Annotated[float, Field(ge=-100, le=100)] | None = None
    half_life: Annotated[int, Field(gt=0)] | None = None
    category: str | None = None
    case_sensitive: bool = False
    whole_words: bool = True

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sum(map(bool, (self.ban, self.require, self.phrases))) != 1:
            raise ValueError("give exactly one of 'ban', 'require' or 'phrases', with at least one phrase")
        if self.phrases and self.bias is None:
            raise ValueError("'phrases' needs 'bias': the nats to add; use 'ban' to forbid them")
        if self.ban and self.bias is not None:
            raise ValueError("'ban' is absolute; to discourage, give 'phrases' with a negative 'bias'")
        if self.half_life is not None and self.bias is None:
            raise ValueError("'half_life' is that of the 'bias', which is missing")
        if self.require and self.bias is not None and self.bias >= 0:
            raise ValueError("the 'bias' of 'require' is against ending, so it is negative")
        return self

    def finds(self, phrase: str, text: str) -> bool:
        """Whether one of this rule's phrases stands in `text`, as the rule compares."""
        if not self.case_sensitive:
            phrase, text = phrase.casefold(), text.casefold()
        left, right = (r"(?<!\w)" if phrase[0].isalnum() else "", r"(?!\w)" if phrase[-1].isalnum() else "")
        edges = (left, right) if self.whole_words else ("", "")
        return re.search(f"{edges[0]}{re.escape(phrase)}{edges[1]}", text) is not None

    @property
    def all_phrases(self) -> tuple[str, ...]:
        return self.ban or self.require or self.phrases


def contradictions(rules: Sequence[Constraint]) -> Iterator[Problem]:
    """Phrases that must be said and can't, as a banned one stands in them."""
    banned = [(rule, phrase) for rule in rules for phrase in rule.ban]
    for index, rule in enumerate(rules):
        for place, phrase in enumerate(rule.require):
            inside = next((ban for by, ban in banned if by.finds(ban, phrase)), None)
            if inside is not None:
                message = f"{phrase!r} must be said and can't be: {inside!r}, which stands in it, is banned"
                yield Problem(("constraints", index, "require", place), message)


def to_wire(constraints: Iterable[Constraint]) -> str:
    """The rules as one line of canonical JSON: equal rules give equal text, which is what vLLM caches by."""
    rules = [rule.model_dump(mode="json", exclude_defaults=True) for rule in constraints]
    return json.dumps(rules, sort_keys=True, separators=(",", ":"))


def from_wire(text: str) -> tuple[Constraint, ...]:
    """The rules of `to_wire`; raises ValueError for anything else."""
    rules = json.loads(text)
    if not isinstance(rules, list):
        raise ValueError("expected a list of rules")
    return tuple(Constraint.model_validate(rule) for rule in rules)
