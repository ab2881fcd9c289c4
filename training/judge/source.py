"""Where a judge comes from: a line in a method's config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.config import Config
from training.errors import ConfigError
from training.judge.local import PolicyJudge
from training.judge.protocol import Judge
from training.judge.remote import JudgeConfig, RemoteJudge
from training.judge.rules import RulesJudge


class RulesSource(Config):
    """A file of rules, see `training.judge.rules`."""

    rules: Path


JudgeSource = JudgeConfig | RulesSource | Literal["self"]
"""A served model (`base_url`, `model`, …), a file of `rules`, or `self`: the policy model judges itself."""


@dataclass(frozen=True, slots=True)
class OpenJudge:
    """A judge, what it is called in data that it makes, and how many questions it takes at a time."""

    judge: Judge
    name: str
    workers: int


@contextmanager
def open_judge(
    source: JudgeSource,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
) -> Iterator[OpenJudge]:
    """The judge until the block ends; `model` and `tokenizer` are what judges where the source is `self`."""
    if isinstance(source, RulesSource):
        yield OpenJudge(RulesJudge.load(source.rules), f"rules {source.rules.name}", 1)
    elif isinstance(source, JudgeConfig):
        with RemoteJudge(source) as judge:
            yield OpenJudge(judge, source.model, source.concurrency)
    elif model is None or tokenizer is None:
        raise ConfigError("judge: self needs a policy model; name another judge")
    else:
        yield OpenJudge(PolicyJudge(model, tokenizer, seed=seed), "self", 1)
