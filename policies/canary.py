"""Canary prompt sets: what a checkpoint is asked before it answers anybody, and what its replies must be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from policies.base import Frozen
from policies.errors import Fault, PolicyError

DEFAULT = Path(__file__).parent / "canaries" / "default.yaml"

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class CanaryLimits(Frozen):
    """The largest share of prompts for which each thing may happen.

    `logprob_drop`: how much lower, in nats a token, the mean log-probability of the greedy replies may be
    than that of the former checkpoint's own; None doesn't ask the former.
    """

    empty: Share = 0.0
    repetitive: Share = 0.5
    unended: Share = 1.0
    blocked: Share = 0.2
    logprob_drop: Annotated[float, Field(gt=0)] | None = None


class CanarySet(Frozen):
    """A prompt set. Every prompt is one user turn, answered greedily with at most `max_tokens`."""

    prompts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1, le=1_024)] = 64
    seconds: Annotated[float, Field(gt=0)] = 120.0
    limits: CanaryLimits = CanaryLimits()


def load_canary(path: Path) -> CanarySet:
    """The set in file `path`. Raises `PolicyError`."""
    try:
        return CanarySet.model_validate(yaml.safe_load(path.read_bytes()))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyError([Fault(path, 1, 1, f"no canary set: can't be read as YAML: {error}")]) from error
    except ValidationError as error:
        faults = [
            Fault(path, 1, 1, f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}")
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise PolicyError(faults) from None
