"""The settings of the guard `judge`: a generative safety model that is asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from policies.alignment import JudgeModel
from policies.base import Name, Text
from policies.errors import Problem, located
from policies.guards import Probability, ScoredBase

Format = Literal["llama_guard", "granite_guardian", "granite_guardian_3_3", "shieldgemma", "rubric"]

_OWN: dict[str, tuple[Format, ...]] = {
    "risks": ("granite_guardian", "granite_guardian_3_3"),
    "guidelines": ("shieldgemma",),
    "rules": ("rubric",),
    "constitution": ("rubric",),
}


class JudgeSpec(ScoredBase):
    """A model that judges what users write, and replies together with what they answer.

    `format` says how it is asked and how its answer is read; the model's own chat template does the rest.
    `risks` are Granite Guardian's, `guidelines` ShieldGemma's by names of your choice, `rules` or a
    `constitution` those of a `rubric`. With scope `segment` a growing reply is judged after about `every`
    characters, each time with what came before. `logprobs: false` is for servers that don't give them;
    scores are then 0 or 1. `template_arguments` go to the chat template.
    """

    guard: Literal["judge"] = "judge"
    model: JudgeModel
    format: Format
    risks: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)] = ("harm",)
    guidelines: Annotated[dict[Name, Text], Field(max_length=16)] = Field(default_factory=dict)
    rules: Annotated[dict[Name, Text], Field(max_length=32)] = Field(default_factory=dict)
    constitution: str | None = None
    every: Annotated[int, Field(ge=60, le=8_000)] = 400
    threshold: Probability = 0.5
    deadline_ms: Annotated[int, Field(gt=0, le=60_000)] = 10_000
    logprobs: bool = True
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _format_fits(self) -> Self:
        if problems := [*self._foreign_settings(), *self._missing_settings()]:
            raise located(problems)
        return self

    @property
    def changes_text(self) -> bool:
        """Whether any of its steps puts something in the text's place."""
        steps = (self.ladder, *self.ladders.values())
        return any(level.action in ("redact", "rewrite") for levels in steps for level in levels)

    def _foreign_settings(self) -> Iterator[Problem]:
        for key, formats in _OWN.items():
            if key in self.model_fields_set and self.format not in formats:
                known = " or ".join(map(repr, formats))
                yield Problem((key,), f"is for the format {known}, and this judge's is {self.format!r}")

    def _missing_settings(self) -> Iterator[Problem]:
        if self.format == "shieldgemma" and not self.guidelines:
            yield Problem((), "'shieldgemma' needs 'guidelines': what must not be, by names of your choice")
        if self.format == "rubric" and bool(self.rules) == (self.constitution is not None):
            yield Problem((), "'rubric' needs exactly one of 'rules' and 'constitution'")
