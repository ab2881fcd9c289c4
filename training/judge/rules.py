"""A judge made of plain rules: fast, exact, and the same tomorrow.

A rule names the principle that it watches over, the words that break it (`broken_by`) or must stand in the
reply (`needs`), and the prompts that it concerns (`when`). Good for what can be said in rules, as in Mu et
al. 2024 (arXiv:2411.01111), and for trying RLAIF and constitutional training without any server. With
s(y) = -Σ weight of the broken rules,

    P(a better) = σ(s(a) - s(b))
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from policies.constitution import Constitution
from policies.critique import Critique, Violation
from training.config import Config
from training.data.preferences import Prompt
from training.judge.client import JudgeError

_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class Rule(Config):
    """One rule; expressions are searched for, whatever the case. `rewrite` replaces a reply that breaks it.

    Of several rewrites the prompt decides which, so that a model fine-tuned on them does not learn a single
    sentence. Without one, the sentences that hold the offending words are dropped.
    """

    principle: str
    when: str | None = None
    broken_by: str | None = None
    needs: str | None = None
    weight: float = Field(default=1.0, gt=0)
    rewrite: str | tuple[str, ...] | None = None

    @field_validator("when", "broken_by", "needs")
    @classmethod
    def _compiles(cls, expression: str | None) -> str | None:
        try:
            re.compile(expression or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return expression

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.broken_by is None) == (self.needs is None):
            raise ValueError("give exactly one of broken_by and needs")
        if self.needs is not None and not self.rewrite:
            raise ValueError("a rule with needs wants a rewrite: nothing can be dropped from what is missing")
        return self

    def rewritten(self, prompt: Prompt) -> str | None:
        """What a reply to the prompt becomes, the same at every call."""
        if self.rewrite is None or isinstance(self.rewrite, str):
            return self.rewrite
        digest = hashlib.sha256(prompt[-1].content.encode()).digest()
        return self.rewrite[int.from_bytes(digest[:8], "big") % len(self.rewrite)]

    def breach(self, prompt: Prompt, reply: str) -> str | None:
        """The offending words, "" for missing ones; None where the rule is kept, or not about the prompt."""
        if self.when is not None and not re.search(self.when, prompt[-1].content, re.I):
            return None
        if self.broken_by is not None:
            found = re.search(self.broken_by, reply, re.I)
            return found.group() if found else None
        return None if re.search(str(self.needs), reply, re.I) else ""


class Rules(Config):
    """A file of rules."""

    rules: tuple[Rule, ...] = Field(min_length=1)


class RulesJudge:
    """Judges by `rules`, whichever constitution or criterion it is given; safe from many threads."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules.rules

    @classmethod
    def load(cls, path: Path) -> RulesJudge:
        """The rules in a YAML file. Raises ConfigError."""
        return cls(Rules.load(path))

    def compare(self, prompt: Prompt, a: str, b: str, criterion: str | None = None) -> float:
        """See `Judge.compare`; without position bias."""
        return 1 / (1 + math.exp(self._cost(prompt, a) - self._cost(prompt, b)))

    def critique(self, prompt: Prompt, reply: str, constitution: Constitution) -> Critique:
        """See `Judge.critique`. Raises JudgeError where no rule is about the constitution."""
        concerned = [rule for rule in self.rules if rule.principle in constitution.ids]
        if not concerned:
            raise JudgeError(f"no rule is about a principle of constitution {constitution.name!r}")
        found: dict[str, Violation] = {}
        for rule in concerned:
            words = rule.breach(prompt, reply)
            if words is not None:
                severity = constitution.principle(rule.principle).severity
                found.setdefault(rule.principle, Violation(rule.principle, words, severity))
        return Critique(tuple(found.values()))

    def revise(self, prompt: Prompt, reply: str, constitution: Constitution, critique: Critique) -> str:
        """See `Judge.revise`: the first broken rule with a rewrite decides, else sentences are dropped."""
        violated = {violation.principle for violation in critique.violations} or set(constitution.ids)
        broken = [r for r in self.rules if r.principle in violated and r.breach(prompt, reply) is not None]
        for rule in broken:
            if (rewritten := rule.rewritten(prompt)) is not None:
                return rewritten
        kept = [s for s in _SENTENCES.split(reply) if all(r.breach(prompt, s) is None for r in broken)]
        if not kept:
            raise JudgeError("nothing of the reply is left when the sentences that break rules are dropped")
        return " ".join(kept)

    def _cost(self, prompt: Prompt, reply: str) -> float:
        return sum(rule.weight for rule in self.rules if rule.breach(prompt, reply) is not None)
