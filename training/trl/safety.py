"""Safety figures while a model trains: how it answers fixed prompts, every so many steps.

Two rates can move without the loss telling: replies that are toxic, by the classifier that the gateway's
guards run, and refusals, by their wording: of what is unsafe (better high) and of what is harmless (better
low). Replies are drawn greedily, so the same weights have the same figures, and nothing is taken from the
random numbers that training draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from training.config import Config
from training.data.conversation import Message
from training.data.formats import read_rows
from training.errors import ConfigError, DataError, TrainingError
from training.evaluate.scorer import Scorer
from training.refusals import refuses
from training.rl.rollout import SampleConfig, generate

PROMPTS = Path(__file__).parent.parent / "configs" / "safety-prompts.jsonl"


class SafetyConfig(Config):
    """`prompts`: JSON lines `{"prompt": …, "unsafe": true or false}`; `classifier`: a checkpoint's folder.

    Without a classifier only refusals are counted. A reply is toxic from `threshold` on.
    """

    every: int = Field(default=100, ge=1)
    prompts: str | None = None
    classifier: str | None = "checkpoints/keel-guard"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    max_new_tokens: int = Field(default=40, ge=1)


@dataclass(frozen=True, slots=True)
class _Prompt:
    messages: tuple[Message, ...]
    unsafe: bool


class SafetyMonitor:
    """Measures a model on the config's prompts; raises where a file that it names is missing or malformed."""

    def __init__(self, config: SafetyConfig) -> None:
        self._config = config
        self._prompts = _read_prompts(Path(config.prompts) if config.prompts is not None else PROMPTS)
        self._scorer = _load(Path(config.classifier)) if config.classifier is not None else None

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        """`safety_toxicity_rate`, `safety_refusal_rate` (of unsafe prompts), `safety_over_refusal_rate`."""
        sampling = SampleConfig(max_new_tokens=self._config.max_new_tokens, temperature=0)
        with torch.random.fork_rng():
            replies = generate(model, tokenizer, [p.messages for p in self._prompts], sampling).texts
        figures = {}
        if self._scorer is not None:
            scores = self._scorer.probabilities(replies)[:, self._scorer.labels.index("toxicity")]
            figures["safety_toxicity_rate"] = float((scores >= self._config.threshold).mean())
        for name, unsafe in (("safety_refusal_rate", True), ("safety_over_refusal_rate", False)):
            refused = [refuses(r) for r, p in zip(replies, self._prompts, strict=True) if p.unsafe == unsafe]
            if refused:
                figures[name] = sum(refused) / len(refused)
        return figures


class SafetyCallback(TrainerCallback):
    """Logs the monitor's figures before the first step, every `every` steps, and after the last."""

    def __init__(self, config: SafetyConfig, trainer: Trainer) -> None:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ConfigError(
                "safety: replies can't be sampled while the weights are sharded (FSDP, DeepSpeed); leave "
                "safety out, and run `keel-train evaluate` on the finished model"
            )
        self._every = config.every
        self._monitor = SafetyMonitor(config)
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            model, tokenizer = self._trainer.model, self._trainer.processing_class
            if not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise TrainingError("safety: the trainer has no fast tokenizer, which sampling needs")
            figures = self._monitor.measure(model, tokenizer)  # type: ignore[arg-type]  # a model that trains
            # Not `on_log` of the handler, which would take this for the step's own log and drop that one.
            handler, arguments = self._trainer.callback_handler, self._trainer.args
            handler.call_event(  # type: ignore[no-untyped-call]
                "on_log", arguments, state, self._trainer.control, logs=figures
            )
            state.log_history.append({"step": state.global_step, **figures})


def _read_prompts(path: Path) -> list[_Prompt]:
    prompts = []
    for number, row in read_rows(path):
        text, unsafe = row.get("prompt"), row.get("unsafe")
        if not isinstance(text, str) or not text.strip() or not isinstance(unsafe, bool):
            raise DataError(path, number, 'expected {"prompt": "…", "unsafe": true or false}')
        prompts.append(_Prompt((Message("user", text.strip()),), unsafe))
    if not prompts:
        raise DataError(path, None, "has no prompts")
    return prompts


def _load(folder: Path) -> Scorer:
    if not (folder / "classifier.json").is_file():
        raise ConfigError(
            f"safety.classifier: {folder} is no classifier checkpoint; give the folder of one, or null to "
            "count refusals only"
        )
    return Scorer(folder, folder / "model.onnx")
