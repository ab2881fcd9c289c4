"""Which checkpoints a policy names: its model, its classifiers, its reward models."""

from __future__ import annotations

import os
from collections.abc import Iterable

from policies.alignment import JudgeModel
from policies.errors import Loc
from policies.judge import JudgeSpec
from policies.spec import ClassifierBase, PolicySpec, ToolCallsSpec


def references(spec: PolicySpec) -> Iterable[tuple[Loc, str]]:
    """The model's and the classifiers' checkpoints by name, alias or `name@digest`, with their places."""
    if spec.model.checkpoint is not None:
        yield ("model", "checkpoint"), spec.model.checkpoint
    for stage, guards in (("input", spec.input), ("output", spec.output)):
        for index, guard in enumerate(guards):
            nested = guard.arguments if isinstance(guard, ToolCallsSpec) else ()
            inside = [(("arguments", inner), argument) for inner, argument in enumerate(nested)]
            for extra, one in [((), guard), *inside]:
                if isinstance(one, ClassifierBase) and isinstance(one.model, str) and not _is_path(one.model):
                    yield (stage, index, *extra, "model"), one.model


def judges(spec: PolicySpec) -> Iterable[tuple[Loc, JudgeModel]]:
    """The models that judge replies, as guards or for a revision, with their places."""
    if spec.revise is not None and spec.revise.judge != "self":
        yield ("revise", "judge"), spec.revise.judge
    for stage, guards in (("input", spec.input), ("output", spec.output)):
        for index, guard in enumerate(guards):
            if isinstance(guard, JudgeSpec):
                yield (stage, index, "model"), guard.model


def all_names(spec: PolicySpec) -> frozenset[str]:
    """Every checkpoint that the policy names, reward models included."""
    rewards = spec.rerank.models if spec.rerank is not None else ()
    scored = (model for model in rewards if isinstance(model, str) and not _is_path(model))
    return frozenset([*(name for _, name in references(spec)), *scored])


def _is_path(model: str) -> bool:
    """A model's folder, which no registry knows; the guard's own check looks there."""
    return os.sep in model or model.startswith(".")
