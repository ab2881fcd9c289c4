"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) and the losses that came after it.

The policy that maximizes E[r(x, y)] − β KL(π ‖ π_ref) is π*(y|x) ∝ π_ref(y|x) exp(r(x, y)/β). Solved for r,
a policy *is* a reward model: r(x, y) = β log(π(y|x)/π_ref(y|x)) + β log Z(x), and Z cancels in the
difference of two replies to one prompt. So the Bradley–Terry likelihood of people's choices becomes a loss
on the policy,

    L(θ) = − E log σ( β [ log π_θ(y_w|x)/π_ref(y_w|x) − log π_θ(y_l|x)/π_ref(y_l|x) ] ),

with neither reward model nor sampling. `losses` names other functions of the same two log-ratios, and may
mix them (`{sigmoid: 1, sft: 0.2}`); `training.losses.preference` has them all with their papers.

`label_smoothing` is the share of labels believed wrong. A pair's `soft` label, which AI feedback gives, makes
the loss the expectation over which reply is better. With `margin_scale` m a pair of strength s should differ
by a reward of at least m s.

Watched: the chosen reply's own log-probability, which DPO may lower while it wins every comparison.

Left out: f-divergences, length desensitizing and WPO weights, which TRL has but nobody here has measured; a
reference that follows the policy (TR-DPO). Nothing is truncated; pairs that are too long are left out and
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig as TrlConfig

from policies.manifest import Evaluation
from training.chat_model import SamplingConfig
from training.command import run_command
from training.data.epochs import arrange
from training.data.preference_data import PreferenceData, PreferenceDataConfig, load_preferences
from training.data.preference_render import PairRow, render_pairs
from training.data.preferences import Preference
from training.errors import TrainingError
from training.losses.preference import SMOOTHED_LOSSES, SORTED_LOSSES, PairLoss, check_pair_loss
from training.methods.dpo_trainer import PairTrainer, adapter_off, forward_restored, pair_dataset
from training.methods.preference_score import PairScores, PreferenceReport, report_pairs, score_pairs
from training.models import (
    ModelSource,
    check_fits,
    load_policy,
    load_reference,
    load_tokenizer,
    save_policy,
    tell_origin,
    write_record,
)
from training.run_directory import RunDirectory
from training.trl.runner import TrainingOptions, is_main_process, run_trainer, trainer_arguments

Term = PairLoss | Literal["sft"]
_SIGMOID: Term = "sigmoid"


class DpoConfig(TrainingOptions):
    """`losses` are weights by name, `beta` is what they divide the reward by (IPO's τ).

    `precompute_reference` takes the reference's log-probabilities once, before training, and then needs no
    reference in memory. `adapter` publishes the LoRA beside its base instead of one merged model.
    """

    name: str
    seed: int = 0
    model: ModelSource
    data: PreferenceDataConfig
    learning_rate: float = Field(default=5e-6, gt=0)
    losses: dict[Term, float] = Field(default_factory=lambda: {_SIGMOID: 1.0})
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    margin_scale: float = Field(default=0.0, ge=0)
    soft_labels: bool = True
    precompute_reference: bool = False
    adapter: bool = False
    sampling: SamplingConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> DpoConfig:
        if not self.losses:
            raise ValueError("losses: name at least one")
        if "exo_pair" in self.losses and self.label_smoothing == 0:
            raise ValueError("exo_pair needs a label_smoothing above 0; its paper recommends 0.001")
        for kind in self.pair_losses:
            check_pair_loss(kind, margins=self.margin_scale > 0, soft=False)
        return self

    @property
    def pair_losses(self) -> tuple[PairLoss, ...]:
        return tuple(kind for kind in self.losses if kind != "sft")

    @property
    def softened(self) -> bool:
        """Whether label smoothing softens labels: it does for losses without a treatment of their own."""
        return self.label_smoothing > 0 and any(kind not in SMOOTHED_LOSSES for kind in self.pair_losses)


@dataclass(frozen=True, slots=True)
class DpoResult:
    """The trained model, its log, and what it makes of held-out pairs before (`None` without any) and after.

    `warnings` are for people to read; `too_long` counts the training pairs that were left out.
    """

    model: PreTrainedModel
    history: list[dict[str, Any]]
    report: PreferenceReport | None
    warnings: tuple[str, ...]
    too_long: int


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: DpoConfig,
    data: PreferenceData | Sequence[Preference],
    *,
    held_out: Sequence[Preference] = (),
    reference: PreTrainedModel | None = None,
    run: Path | None = None,
) -> DpoResult:
    """Train `model` in place on pairs; `data` may bring its own held-out ones.

    The reference is `reference`, or what the model is before (for a LoRA: with its adapter switched off).
    Raises TrainingError for data that can't be trained on, or a loss that is not finite.
    """
    check_fits(model, tokenizer)
    train, aside = (data.train, data.held_out) if not isinstance(data, Sequence) else (data, tuple(held_out))
    rendered = render_pairs(train, tokenizer, config.max_length)
    if not rendered.rows:
        raise TrainingError("no preferences to train on")
    tested = render_pairs(aside, tokenizer, config.max_length).rows
    before = _reference_scores(model, reference, tested, int(tokenizer.pad_token_id))
    with forward_restored(model):
        trainer = build_trainer(model, tokenizer, config, rendered.rows, tested, reference, run)
        history = run_trainer(trainer, run, config.safety)
    report = None
    if before is not None:
        after = score_pairs(model, tested, int(tokenizer.pad_token_id))
        report = report_pairs(after, before, config.beta)
    warnings = report.warnings() if report is not None else ()
    return DpoResult(model, history, report, warnings, rendered.too_long)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: DpoConfig,
    rows: Sequence[PairRow],
    tested: Sequence[PairRow],
    reference: PreTrainedModel | None,
    run: Path | None,
) -> PairTrainer:
    """TRL's trainer over the rows; it replaces the model's forward, see `forward_restored`."""
    soft = config.softened or (config.soft_labels and any(row.source.soft is not None for row in rows))
    odd = [kind for kind in config.pair_losses if soft and kind in SORTED_LOSSES]
    if odd:
        raise TrainingError(
            f"losses: {odd[0]} compares distributions, not pairs, and takes no soft labels: choose another "
            "loss, or set soft_labels: false and label_smoothing: 0"
        )
    arguments = trainer_arguments(
        config,
        run,
        TrlConfig,
        seed=config.seed,
        loss_type=list(config.losses),
        loss_weights=list(config.losses.values()),
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        max_length=config.max_length,
        precompute_ref_log_probs=config.precompute_reference,
        **({} if tested else {"eval_strategy": "no"}),
    )
    ordered = arrange(
        rows,
        config.curriculum,
        config.seed,
        lambda row: row.longest,
        lambda row: -row.source.strength,
    )
    learnt, measured = (
        pair_dataset(each, soft=soft, margin_scale=config.margin_scale) for each in (ordered, tested)
    )
    return PairTrainer(model, tokenizer, arguments, learnt, measured if tested else None, reference)


def run_dpo(config: DpoConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`; goes on where an interrupted run stopped."""
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    tell_origin(config.model)  # what cannot be published is told before it is trained
    data = load_preferences(config.data, data_root, config.seed)
    print("\n".join(data.report))
    model, tokenizer = load_policy(config.model, config.seed)
    result = train_dpo(model, tokenizer, config, data, run=run_path)
    final = run_path / "final"
    if is_main_process():
        print("\n".join(describe(result)))
        save_policy(final, result.model, tokenizer, config.sampling, adapter=config.adapter)
        evaluations = evaluations_of(config, final, data.held_out)
        write_record(run_path, "dpo", config, config.model, config.seed, data.data, evaluations)
    return final


def describe(result: DpoResult) -> list[str]:
    """The result in lines for the terminal."""
    lines = [f"{result.too_long} training pairs were too long"] if result.too_long else []
    if result.report is not None:
        lines.append(f"held-out accuracy of the implicit reward: {result.report.accuracy.percent()}")
        lines.append(f"held-out margin of the implicit reward: {result.report.margin}")
        lines.append(f"log-probability of chosen replies: {result.report.chosen_change} nats more")
    return [*lines, *(f"warning: {warning}" for warning in result.warnings)]


def evaluations_of(config: DpoConfig, final: Path, held_out: Sequence[Preference]) -> tuple[Evaluation, ...]:
    """Held-out figures of the folder that will be served, against the model that the run started from."""
    served, tokenizer = load_policy(ModelSource(path=str(final)))
    rows = render_pairs(held_out, tokenizer, config.max_length).rows
    pad_id = int(tokenizer.pad_token_id)
    with load_reference(config.model).weights() as start:
        report = report_pairs(
            score_pairs(served, rows, pad_id), score_pairs(start, rows, pad_id), config.beta
        )
    return report.evaluations() if report is not None else ()


def _reference_scores(
    model: PreTrainedModel, reference: PreTrainedModel | None, rows: Sequence[PairRow], pad_id: int
) -> PairScores | None:
    """What the reference makes of the held-out pairs, taken before training, when the model still is it."""
    if not rows:
        return None
    if reference is not None:
        return score_pairs(reference, rows, pad_id)
    with adapter_off(model):
        return score_pairs(model, rows, pad_id)


def main(argv: Sequence[str]) -> int:
    def check(config: DpoConfig, data_root: Path) -> str:
        data = load_preferences(config.data, data_root, config.seed)
        rendered = render_pairs(data.train, load_tokenizer(config.model), config.max_length)
        return "\n".join([*data.report, f"{rendered.too_long} pairs exceed {config.max_length} tokens"])

    return run_command("dpo", "Direct preference optimization.", DpoConfig, run_dpo, argv, check)
