"""Supervised fine-tuning of any chat model, through TRL's SFTTrainer.

For demonstrations rendered to tokens x with a mask m (m_t = 1 where x_t is to be learnt), it minimizes

    L(θ) = - Σ_t m_t log p_θ(x_t | x_<t) / Σ_t m_t

the mean over the *supervised tokens* of a whole optimizer step, however the step is cut into micro-batches
and processes (Ouyang et al. 2022, arXiv:2203.02155, section 3.4). m marks the assistant's words with the
end of each, found by length (`training.data.render`): never by a token's id, which would lose the end of
text wherever padding shares it.

The data is rendered here, to the very ids that vLLM renders; TRL gets token ids and labels, and brings the
trainer: its loss without the full logits, LoRA, and whatever accelerate was told. Packed rows are ours, as
TRL's packing without flash attention flattens a batch into one row, whose attention grows with its square.

Left out: TRL's own templating, truncation (a conversation that is too long loses its last exchanges, never
half a reply) and its packing. Training from scratch is `training.methods.pretrain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig as TrlConfig
from trl.trainer.sft_trainer import SFTTrainer

from policies.manifest import Evaluation
from training.chat_model import SamplingConfig
from training.command import run_command
from training.data.conversation import Conversation
from training.data.mixture import Mixture, MixtureConfig, load_mixture
from training.data.render import Example, render_within
from training.errors import TrainingError
from training.held_out import score_held_out
from training.models import (
    ModelSource,
    check_fits,
    load_policy,
    load_tokenizer,
    save_policy,
    tell_origin,
    write_record,
)
from training.run_directory import RunDirectory
from training.trl.rows import PackedCollator, check_packing, to_dataset, to_rows
from training.trl.runner import (
    TrainingOptions,
    is_main_process,
    run_trainer,
    trained_model,
    trainer_arguments,
)


class SftConfig(TrainingOptions):
    """With `packing`, a row of the batch holds several conversations, up to `max_length` tokens in all.

    `adapter` publishes the LoRA beside its base instead of one model with it merged in.
    """

    name: str
    seed: int = 0
    model: ModelSource
    data: MixtureConfig
    packing: bool = False
    adapter: bool = False
    sampling: SamplingConfig | None = None
    learning_rate: float = Field(default=2e-5, gt=0)


@dataclass(frozen=True, slots=True)
class SftResult:
    """The trained model, and the log: a record per `log_every` steps with `step` and `loss`."""

    model: PreTrainedModel
    history: list[dict[str, Any]]


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: SftConfig,
    data: Sequence[Conversation],
    *,
    held_out: Sequence[Conversation] = (),
    run: Path | None = None,
) -> SftResult:
    """Fine-tune `model` in place on `data`; with `run`, resumable and logged there.

    `config.model` and `config.data` say where a command's model and data come from, and aren't read here.
    Raises TrainingError where nothing is left to learn, or the tokenizer would silently ruin training.
    """
    check_fits(model, tokenizer)
    examples = render_all(data, tokenizer, config.max_length)
    check_learnable(examples, config.max_length)
    trainer = build_trainer(model, tokenizer, config, examples, held_out, run)
    history = run_trainer(trainer, run, config.safety)
    return SftResult(trained_model(trainer, run), history)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: SftConfig,
    examples: Sequence[Example],
    held_out: Sequence[Conversation] = (),
    run: Path | None = None,
) -> SFTTrainer:
    """TRL's trainer over our rows; `held_out` is measured every `evaluate_every` steps."""
    pad_id = int(tokenizer.pad_token_id)
    if config.packing:
        check_packing(model, examples, pad_id)
    rows = to_rows(examples, config.packing, config.max_length, config.curriculum, config.seed)
    tests = [(example,) for example in render_all(held_out, tokenizer, config.max_length)]
    settings = {} if tests else {"eval_strategy": "no"}
    arguments = trainer_arguments(
        config,
        run,
        TrlConfig,
        seed=config.seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings,
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=to_dataset(rows),
        eval_dataset=to_dataset(tests) if tests else None,
        processing_class=tokenizer,
        data_collator=PackedCollator(pad_id) if config.packing else None,
    )


def render_all(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> list[Example]:
    """The examples that fit, with at least one exchange, and have a supervised token."""
    rendered = (render_within(conversation, tokenizer, max_length) for conversation in conversations)
    return [example for example in rendered if example is not None and any(example.supervised[1:])]


def check_learnable(examples: Sequence[Example], max_length: int) -> None:
    """Raise TrainingError where there is nothing to learn, which would train nothing, silently."""
    if not examples:
        raise TrainingError(
            f"no conversation has a supervised token within max_length ({max_length} tokens); nothing would "
            "be learnt: raise max_length, or look at the data with --check"
        )


def run_sft(config: SftConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`; goes on where an interrupted run stopped."""
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    tell_origin(config.model)  # what cannot be published is told before it is trained
    mixture = load_mixture(config.data, data_root, config.seed)
    model, tokenizer = load_policy(config.model, config.seed)
    if is_main_process():
        print(report(config, mixture, tokenizer))
    result = train_sft(model, tokenizer, config, mixture.train, held_out=mixture.held_out, run=run_path)
    final = run_path / "final"
    if is_main_process():
        save_policy(final, result.model, tokenizer, config.sampling, adapter=config.adapter)
        evaluations: tuple[Evaluation, ...] = ()
        if tests := render_all(mixture.held_out, tokenizer, config.max_length):
            served, _ = load_policy(ModelSource(path=str(final)))
            evaluations = (score_held_out(served, tests).evaluation(config.seed),)
        write_record(run_path, "sft", config, config.model, config.seed, mixture.data, evaluations)
    return final


def report(config: SftConfig, mixture: Mixture, tokenizer: PreTrainedTokenizerFast) -> str:
    """Sources and sizes, for whoever starts the run."""
    examples = render_all(mixture.train, tokenizer, config.max_length)
    check_learnable(examples, config.max_length)
    tokens, supervised = sum(map(len, examples)), sum(sum(example.supervised) for example in examples)
    return "\n".join(
        [
            *mixture.report,
            f"{len(examples)} conversations of {len(mixture.train)} fit {config.max_length} tokens: "
            f"{tokens:,} tokens, {supervised:,} supervised; {len(mixture.held_out)} held out",
        ]
    )


def main(argv: Sequence[str]) -> int:
    def check(config: SftConfig, data_root: Path) -> str:
        mixture = load_mixture(config.data, data_root, config.seed)
        return report(config, mixture, load_tokenizer(config.model))

    return run_command("sft", "Fine-tune a chat model on demonstrations.", SftConfig, run_sft, argv, check)
