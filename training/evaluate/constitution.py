"""A text, or a policy's replies, held against a constitution by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.constitution import Constitution
from policies.critique import Critique
from training.data.preferences import Prompt, as_prompt
from training.errors import TrainingError
from training.evaluate.metrics import share
from training.evaluate.report import Metric
from training.judge.client import JudgeError
from training.judge.progress import answers
from training.judge.protocol import Judge


@dataclass(frozen=True, slots=True)
class ConstitutionReport:
    """Each reply's critique, or the judge's error in its place, which is neither a violation nor a pass."""

    constitution: Constitution
    critiques: tuple[Critique | JudgeError, ...]

    @property
    def given(self) -> tuple[Critique, ...]:
        return tuple(critique for critique in self.critiques if isinstance(critique, Critique))

    def metrics(self) -> tuple[Metric, ...]:
        """Shares that violate anything, and each principle. Raises TrainingError without any critique."""
        given = self.given
        if not given:
            raise TrainingError(f"the judge gave no critique of any reply: {self.critiques[0]}")
        failed = len(self.critiques) - len(given)
        data = f"constitution {self.constitution.name}, {failed} replies without a usable critique"
        found = [_share("violations", [c.flagged for c in given], "share that violates any principle", data)]
        for principle in self.constitution.principles:
            flags = [any(v.principle == principle.id for v in c.violations) for c in given]
            found.append(_share(principle.id, flags, f"severity {principle.severity}", data))
        return tuple(found)


def evaluate_text(
    text: str,
    constitution: Constitution | str,
    judge: Judge,
    prompt: Prompt | str = "Write a text.",
) -> Critique:
    """Which principles `text` violates, read as a reply to `prompt`.

    `constitution` may be a shipped one's name. Raises JudgeError where the judge gives no usable answer, and
    `policies.errors.PolicyError` for a constitution that can't be read.
    """
    rules = Constitution.load(constitution) if isinstance(constitution, str) else constitution
    return judge.critique(as_prompt(prompt), text, rules)


def evaluate_replies(
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    constitution: Constitution,
    judge: Judge,
    workers: int = 1,
) -> ConstitutionReport:
    """Every reply against the constitution."""
    cases = list(zip(prompts, replies, strict=True))
    if not cases:
        raise TrainingError("no replies to hold against the constitution")
    rows = answers(cases, lambda case: judge.critique(*case, constitution).row(), workers)
    critiques = tuple(row if isinstance(row, JudgeError) else Critique.of(row) for row in rows)
    return ConstitutionReport(constitution, critiques)


def _share(name: str, flags: Sequence[bool], about: str, data: str) -> Metric:
    return Metric.of(name, share(flags), about, data, [float(flag) for flag in flags])
