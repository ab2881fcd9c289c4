"""What a judge is: something that compares two replies, criticises one, and revises it.

Everything that uses a judge takes this protocol: a model over HTTP (`training.judge.remote`), the policy
model itself (`training.judge.local`), or rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from policies.constitution import WEIGHTS, Constitution, Severity
from training.data.preferences import Prompt


@dataclass(frozen=True, slots=True)
class Violation:
    """A principle's id that a reply violates, the words that do so (may be empty), and how bad it is."""

    principle: str
    evidence: str
    severity: Severity

    @property
    def weight(self) -> float:
        """Between 0 and 1."""
        return WEIGHTS[self.severity]


@dataclass(frozen=True, slots=True)
class Critique:
    """What a judge finds wrong with a reply; no violations means that it keeps to the constitution."""

    violations: tuple[Violation, ...] = ()

    @property
    def flagged(self) -> bool:
        return bool(self.violations)

    def row(self) -> dict[str, Any]:
        """As JSON: {"violations": [{"principle", "evidence", "severity"}, …]}."""
        return {"violations": [asdict(violation) for violation in self.violations]}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Critique:
        """What `row` was made of."""
        return cls(tuple(Violation(**violation) for violation in row["violations"]))

    @property
    def severity(self) -> float:
        """The gravest violation's weight, 0 where there is none."""
        return max((violation.weight for violation in self.violations), default=0.0)


@runtime_checkable
class Judge(Protocol):
    """Every method raises `training.judge.client.JudgeError` where no usable judgement was given."""

    def compare(self, prompt: Prompt, a: str, b: str, criterion: str | None = None) -> float:
        """P(reply `a` is better than `b`) with `a` shown first; `criterion` says what "better" means."""
        ...

    def critique(self, prompt: Prompt, reply: str, constitution: Constitution) -> Critique:
        """Which principles `reply` violates."""
        ...

    def revise(self, prompt: Prompt, reply: str, constitution: Constitution, critique: Critique) -> str:
        """`reply` rewritten to keep to the principles that `critique` names, or to all of them."""
        ...
