"""ORPO: fine-tuning and preferences in one step, without a reference (Hong et al. 2024, arXiv:2403.07691).

With the length-normalized probability P(y|x) = exp(mean log π of y's tokens) and odds(y) = P / (1 − P),

    L(θ) = NLL(prompt and chosen reply) − λ log σ( log odds(y_w) − log odds(y_l) ).

The first term teaches, the second tells the two replies apart. It starts from a base model, so it replaces
both the fine-tuning and the preference step, and needs half of DPO's passes.

The trainer is TRL's experimental one, whose likelihood term counts the prompt's tokens too; the rows are
rendered here, as TRL's own rendering would add an end-of-text to templates that end a turn otherwise, and
truncate.

Left out: packing; soft labels and margins, which the odds ratio has no agreed form for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.manifest import Evaluation
from training.chat_model import SamplingConfig
from training.command import run_command
from training.data.epochs import arrange
from training.data.preference_data import PreferenceData, PreferenceDataConfig, load_preferences
from training.data.preference_render import PairRow, render_pairs
from training.data.preferences import Preference
from training.errors import TrainingError
from training.evaluate.metrics import Figure, share
from training.methods.preference_score import score_pairs
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
from training.trl.runner import TrainingOptions, is_main_process, run_trainer, trainer_arguments

with warnings.catch_warnings():
    # That this part of TRL may change is why its version is pinned, and why tests compare its loss with ours.
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.orpo import ORPOConfig as TrlConfig
    from trl.experimental.orpo import ORPOTrainer
    from trl.experimental.utils import DPODataCollatorWithPadding


class OrpoConfig(TrainingOptions):
    """`weight` is λ, what the odds ratio weighs beside the likelihood."""

    name: str
    seed: int = 0
    model: ModelSource
    data: PreferenceDataConfig
    learning_rate: float = Field(default=8e-6, gt=0)
    weight: float = Field(default=0.1, gt=0)
    adapter: bool = False
    sampling: SamplingConfig | None = None


@dataclass(frozen=True, slots=True)
class OrpoResult:
    """`before` and `after`: the share of held-out pairs whose chosen reply is likelier per token."""

    model: PreTrainedModel
    history: list[dict[str, Any]]
    before: Figure | None
    after: Figure | None
    too_long: int


class OddsTrainer(ORPOTrainer):
    """ORPO on rows that are rendered already."""

    def tokenize_row(self, feature: dict[str, Any], model: object = None) -> dict[str, Any]:
        return feature


def train_orpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: OrpoConfig,
    data: PreferenceData | Sequence[Preference],
    *,
    held_out: Sequence[Preference] = (),
    run: Path | None = None,
) -> OrpoResult:
    """Train `model` in place on pairs; `held_out` and errors are as in `train_dpo`."""
    check_fits(model, tokenizer)
    train, aside = (data, held_out) if isinstance(data, Sequence) else (data.train, data.held_out)
    rendered = render_pairs(train, tokenizer, config.max_length)
    if not rendered.rows:
        raise TrainingError("no preferences to train on")
    tested = render_pairs(aside, tokenizer, config.max_length).rows
    before = likelier(model, tested, tokenizer)
    trainer = build_trainer(model, tokenizer, config, rendered.rows, tested, run)
    history = run_trainer(trainer, run, config.safety)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    return OrpoResult(trained, history, before, likelier(trained, tested, tokenizer), rendered.too_long)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: OrpoConfig,
    rows: Sequence[PairRow],
    tested: Sequence[PairRow],
    run: Path | None,
) -> OddsTrainer:
    """TRL's trainer over the rows."""
    arguments = trainer_arguments(
        config,
        run,
        TrlConfig,
        seed=config.seed,
        beta=config.weight,
        max_length=config.max_length,
        remove_unused_columns=False,
        **({} if tested else {"eval_strategy": "no"}),
    )
    ordered = arrange(
        rows, config.curriculum, config.seed, lambda row: row.longest, lambda row: -row.source.strength
    )
    return OddsTrainer(
        model,
        args=arguments,
        data_collator=DPODataCollatorWithPadding(pad_token_id=int(tokenizer.pad_token_id)),
        train_dataset=_dataset(ordered),
        eval_dataset=_dataset(tested) if tested else None,
        processing_class=tokenizer,
    )


def likelier(
    model: PreTrainedModel, rows: Sequence[PairRow], tokenizer: PreTrainedTokenizerFast
) -> Figure | None:
    """The share of pairs whose chosen reply has the higher mean log-probability; None without pairs."""
    if not rows:
        return None
    scores = score_pairs(model, rows, int(tokenizer.pad_token_id))
    chosen_N = scores.chosen_N / torch.tensor([len(row.chosen) for row in rows])
    rejected_N = scores.rejected_N / torch.tensor([len(row.rejected) for row in rows])
    return share((chosen_N > rejected_N).tolist())


def run_orpo(config: OrpoConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`; goes on where an interrupted run stopped."""
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    tell_origin(config.model)  # what cannot be published is told before it is trained
    data = load_preferences(config.data, data_root, config.seed)
    print("\n".join(data.report))
    model, tokenizer = load_policy(config.model, config.seed)
    result = train_orpo(model, tokenizer, config, data, run=run_path)
    final = run_path / "final"
    if is_main_process():
        print(f"held-out pairs whose chosen reply is likelier: {result.before}, trained {result.after}")
        save_policy(final, result.model, tokenizer, config.sampling, adapter=config.adapter)
        served, _ = load_policy(ModelSource(path=str(final)))
        rows = render_pairs(data.held_out, tokenizer, config.max_length).rows
        figure = likelier(served, rows, tokenizer)
        evaluations = () if figure is None else (_evaluation(figure),)
        write_record(run_path, "orpo", config, config.model, config.seed, data.data, evaluations)
    return final


def _evaluation(figure: Figure) -> Evaluation:
    return Evaluation(
        metric="chosen_likelier",
        value=figure.value,
        low=figure.low,
        high=figure.high,
        data="held-out pairs",
        n=figure.n,
    )


def _dataset(rows: Sequence[PairRow]) -> Dataset:
    columns: dict[str, list[list[int]]] = {}
    for side in ("chosen", "rejected"):
        replies = [row.chosen if side == "chosen" else row.rejected for row in rows]
        whole = [[*row.prompt, *reply] for row, reply in zip(rows, replies, strict=True)]
        columns[f"{side}_input_ids"] = whole
        columns[f"{side}_attention_mask"] = [[1] * len(ids) for ids in whole]
        columns[f"{side}_labels"] = [
            [-100] * len(row.prompt) + list(reply) for row, reply in zip(rows, replies, strict=True)
        ]
    return Dataset.from_dict(columns)


def main(argv: Sequence[str]) -> int:
    def check(config: OrpoConfig, data_root: Path) -> str:
        data = load_preferences(config.data, data_root, config.seed)
        rendered = render_pairs(data.train, load_tokenizer(config.model), config.max_length)
        return "\n".join([*data.report, f"{rendered.too_long} pairs exceed {config.max_length} tokens"])

    return run_command("orpo", "ORPO, preferences without a reference.", OrpoConfig, run_orpo, argv, check)
