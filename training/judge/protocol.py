"""What a judge is: something that compares two replies, criticises one, and revises it.

Everything that uses a judge takes this protocol: a model over HTTP (`training.judge.remote`), the policy
model itself (`training.judge.local`), or rules.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from policies.constitution import Constitution
from policies.critique import Critique
from training.data.preferences import Prompt


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
