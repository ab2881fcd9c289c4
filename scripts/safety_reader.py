"""Texts as the gateway's guards read them: windows, views, and the model with or without its early exit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from guardrails import models
from guardrails.build import GuardEnvironment, build_guards
from guardrails.classifier import Output, serve_onnx
from guardrails.guard import Context, Stage
from guardrails.in_context import Excerpt
from guardrails.scoring import readings
from guardrails.windows import Windows
from policies.guards import GuardBase
from policies.registry import Registry
from policies.spec import PolicySpec, ToolCallsSpec


@dataclass(slots=True)
class Reading:
    """What was found in a text, and what it took. `pieces`: by the stage that answered."""

    scores: dict[str, float] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    pieces: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Reader:
    """The servable of a checkpoint, in this process."""

    def __init__(self, registry: Path, model: str = models.EMBEDDED) -> None:
        self.environment = GuardEnvironment(Registry(registry), b"")
        spec = models.classifier(model, self.environment)
        folder = self.environment.registry.resolve(model).path
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model = serve_onnx(str(folder))
        self._servable = models.serve_checkpoint(**spec.config)

    def pieces(
        self, text: str, stage: Stage, heads: tuple[str, ...] = (), sentences: bool = False
    ) -> Iterator[list[Excerpt]]:
        """What a guard asks about each piece of a text, `heads` of the exit, and otherwise of the
        whole encoder."""
        role = "user" if stage == "input" else "assistant"
        windows, _ = Windows(Context(stage, role), whole=False).advance(text, final=True)
        yield from (readings(window, heads, sentences) for window in windows)

    def excerpts(
        self, text: str, heads: tuple[str, ...], stage: Stage, sentences: bool = False
    ) -> list[Excerpt]:
        """The same of all pieces."""
        return [excerpt for piece in self.pieces(text, stage, heads, sentences) for excerpt in piece]

    def alone(self, text: str) -> dict[str, float]:
        """What the model says of a text as it stands, and no more."""
        (output,) = self._model.predict([text])
        return dict(output.scores)

    def tokens(self, text: str) -> int:
        """How many tokens the model reads `text` as."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ask(self, excerpts: Sequence[Excerpt], names_from: float = 0.4) -> Reading:
        """The highest scores over all of a text's excerpts, and the kinds of names in them."""
        reading = Reading()
        began = time.thread_time()
        outputs: list[Output] = [self._servable.predict([excerpt])[0] for excerpt in excerpts]
        reading.seconds = time.thread_time() - began
        for output in outputs:
            stage = output.stage or "encoder"
            reading.pieces[stage] = reading.pieces.get(stage, 0) + 1
            reading.kinds |= {e.entity_type for e in output.entities if e.score >= names_from}
            for label, score in output.scores.items():
                reading.scores[label] = max(score, reading.scores.get(label, 0.0))
        return reading

    def read(
        self, text: str, heads: tuple[str, ...] = (), stage: Stage = "input", sentences: bool = False
    ) -> Reading:
        """Without `heads`, the encoder reads all of it."""
        return self.ask(self.excerpts(text, heads, stage, sentences))

    def policy_heads(self, policy: PolicySpec) -> dict[Stage, tuple[str, ...]]:
        """What the guards of a policy that read the model ask together, had all of them the cascade."""
        found: dict[Stage, tuple[str, ...]] = {}
        stages: tuple[Stage, Stage] = ("input", "output")
        for stage in stages:
            specs = tuple(map(_leaving_early, getattr(policy, stage)))
            guards = build_guards(policy.model_copy(update={stage: specs}), self.environment)
            heads = [getattr(guard, "heads", ()) for guard in getattr(guards, stage)]
            found[stage] = max(heads, key=len, default=())
        return found


def _leaving_early(spec: GuardBase) -> GuardBase:
    """A guard's settings with the cascade, also for the guards within it."""
    changes: dict[str, Any] = {"cascade": True} if "cascade" in type(spec).model_fields else {}
    if isinstance(spec, ToolCallsSpec):
        changes["arguments"] = tuple(map(_leaving_early, spec.arguments))
    return spec.model_copy(update=changes)
