"""KTO: learning from single replies marked wanted or unwanted (Ethayarajh et al. 2024, arXiv:2402.01306).

With ρ(y) = log π(y|x)/π_ref(y|x) and the reference point z = max(0, KL(π ‖ π_ref)), the loss of a reply is,
after Kahneman and Tversky's value of gains and losses,

    λ_D (1 − σ(β (ρ − z)))  where it is wanted,      λ_U (1 − σ(β (z − ρ)))  where it is not.

Saturation on both sides is what makes it bear mislabelled rows. The two kinds of labels rarely come in equal
numbers; λ_D and λ_U make up for it. Left to themselves they are such that both kinds weigh the same in total
(`kto_weights`); what happens without is shown in tests/training/proofs/test_kto.py.

z is estimated from replies put to other prompts of the same batch, so a micro-batch holds at least two rows.

Left out: the paper's variant without reference point. Ratings with a score and no label need `threshold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.kto_config import KTOConfig as TrlConfig

from policies.manifest import Evaluation
from training.chat_model import SamplingConfig
from training.command import run_command
from training.data.preference_data import RatingData, RatingDataConfig, load_ratings
from training.data.preference_render import ReplyRow, render_ratings
from training.data.preferences import Rating
from training.errors import TrainingError
from training.evaluate.metrics import Figure, auc, bootstrap
from training.losses.preference import kto_weights
from training.methods.dpo_trainer import adapter_off, forward_restored
from training.methods.kto_trainer import RatingTrainer, rating_dataset
from training.methods.preference_score import reply_logprobs
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


class KtoConfig(TrainingOptions):
    """`wanted_weight` and `unwanted_weight` are λ_D and λ_U; give both or neither.

    A rating without label is wanted where its score is at least `threshold`; without a threshold it is
    left out.
    """

    name: str
    seed: int = 0
    model: ModelSource
    data: RatingDataConfig
    learning_rate: float = Field(default=5e-6, gt=0)
    beta: float = Field(default=0.1, gt=0)
    wanted_weight: float | None = Field(default=None, gt=0)
    unwanted_weight: float | None = Field(default=None, gt=0)
    threshold: float | None = None
    precompute_reference: bool = False
    adapter: bool = False
    sampling: SamplingConfig | None = None

    @model_validator(mode="after")
    def _kto(self) -> KtoConfig:
        if (self.wanted_weight is None) != (self.unwanted_weight is None):
            raise ValueError("give both wanted_weight and unwanted_weight, or neither")
        if self.micro_batch < 2:
            raise ValueError("micro_batch: KTO's reference point needs at least 2 rows in a micro-batch")
        return self


@dataclass(frozen=True, slots=True)
class KtoResult:
    """`weights` are (λ_D, λ_U) as used; `auc` how well the implicit reward tells wanted from unwanted
    held-out replies (None where one kind is missing)."""

    model: PreTrainedModel
    history: list[dict[str, Any]]
    weights: tuple[float, float]
    auc: Figure | None
    too_long: int


def train_kto(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: KtoConfig,
    data: RatingData | Sequence[Rating],
    *,
    held_out: Sequence[Rating] = (),
    reference: PreTrainedModel | None = None,
    run: Path | None = None,
) -> KtoResult:
    """Train `model` in place; reference, `held_out` and errors are as in `train_dpo`."""
    check_fits(model, tokenizer)
    train, aside = (data, held_out) if isinstance(data, Sequence) else (data.train, data.held_out)
    rendered = render_ratings(labelled(train, config.threshold), tokenizer, config.max_length)
    tested = render_ratings(labelled(aside, config.threshold), tokenizer, config.max_length).rows
    weights = weights_for(config, rendered.rows)
    start = _scores(reference if reference is not None else model, tested, tokenizer)
    with forward_restored(model):
        trainer = build_trainer(model, tokenizer, config, rendered.rows, tested, reference, run)
        history = run_trainer(trainer, run, config.safety)
    end = reply_logprobs(model, [(r.prompt, r.reply) for r in tested], int(tokenizer.pad_token_id))
    figure = _auc(tested, (end.numpy() - start))
    return KtoResult(
        trainer.accelerator.unwrap_model(trainer.model), history, weights, figure, rendered.too_long
    )


def labelled(ratings: Sequence[Rating], threshold: float | None) -> list[Rating]:
    """The ratings that have a label, by the threshold where they only have a score."""
    kept = [
        replace(r, label=r.score >= threshold)
        if r.label is None and r.score is not None and threshold is not None
        else r
        for r in ratings
    ]
    return [rating for rating in kept if rating.label is not None]


def weights_for(config: KtoConfig, rows: Sequence[ReplyRow]) -> tuple[float, float]:
    """The config's weights, or those that balance the rows; raises TrainingError without both labels."""
    wanted = sum(bool(row.source.label) for row in rows)
    try:
        balanced = kto_weights(wanted, len(rows) - wanted)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if config.wanted_weight is None or config.unwanted_weight is None:
        return balanced
    return config.wanted_weight, config.unwanted_weight


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: KtoConfig,
    rows: Sequence[ReplyRow],
    tested: Sequence[ReplyRow],
    reference: PreTrainedModel | None,
    run: Path | None,
) -> RatingTrainer:
    """TRL's trainer over the rows; it replaces the model's forward, see `forward_restored`."""
    wanted_weight, unwanted_weight = weights_for(config, rows)
    arguments = trainer_arguments(
        config,
        run,
        TrlConfig,
        seed=config.seed,
        beta=config.beta,
        desirable_weight=wanted_weight,
        undesirable_weight=unwanted_weight,
        max_length=config.max_length,
        precompute_ref_log_probs=config.precompute_reference,
        # The order is drawn here, once: a row's mismatched reply is its batch's.
        **{"train_sampling_strategy": "sequential", **({} if len(tested) > 1 else {"eval_strategy": "no"})},
    )
    learnt = rating_dataset(
        rows, config.micro_batch, config.seed if config.curriculum == "shuffled" else None
    )
    measured = rating_dataset(tested, config.micro_batch, None) if len(tested) > 1 else None
    return RatingTrainer(model, tokenizer, arguments, learnt, measured, reference)


def run_kto(config: KtoConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`; goes on where an interrupted run stopped."""
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    tell_origin(config.model)  # what cannot be published is told before it is trained
    data = load_ratings(config.data, data_root, config.seed)
    print("\n".join(data.report))
    model, tokenizer = load_policy(config.model, config.seed)
    result = train_kto(model, tokenizer, config, data, run=run_path)
    final = run_path / "final"
    if is_main_process():
        print("weights of wanted and unwanted replies: {:.3f}, {:.3f}".format(*result.weights))
        print(f"held-out AUC of the implicit reward: {result.auc}")
        save_policy(final, result.model, tokenizer, config.sampling, adapter=config.adapter)
        evaluations = evaluations_of(config, final, data.held_out)
        write_record(run_path, "kto", config, config.model, config.seed, data.data, evaluations)
    return final


def evaluations_of(config: KtoConfig, final: Path, held_out: Sequence[Rating]) -> tuple[Evaluation, ...]:
    """The held-out AUC of the folder that will be served, against the model that the run started from."""
    served, tokenizer = load_policy(ModelSource(path=str(final)))
    rows = render_ratings(labelled(held_out, config.threshold), tokenizer, config.max_length).rows
    with load_reference(config.model).weights() as start:
        gained = _scores(served, rows, tokenizer) - _scores(start, rows, tokenizer)
    figure = _auc(rows, gained)
    if figure is None:
        return ()
    on = "implicit reward of held-out rated replies"
    return (
        Evaluation(metric="auc", value=figure.value, low=figure.low, high=figure.high, data=on, n=figure.n),
    )


def _scores(
    model: PreTrainedModel, rows: Sequence[ReplyRow], tokenizer: PreTrainedTokenizerFast
) -> np.ndarray[Any, np.dtype[np.float32]]:
    replies = [(row.prompt, row.reply) for row in rows]
    with adapter_off(model):
        scores: np.ndarray[Any, np.dtype[np.float32]] = reply_logprobs(
            model, replies, int(tokenizer.pad_token_id)
        ).numpy()
    return scores


def _auc(rows: Sequence[ReplyRow], gained: np.ndarray[Any, np.dtype[np.float32]]) -> Figure | None:
    truth = np.array([float(bool(row.source.label)) for row in rows])
    return bootstrap(auc, truth, gained) if len(set(truth.tolist())) == 2 else None


def main(argv: Sequence[str]) -> int:
    def check(config: KtoConfig, data_root: Path) -> str:
        data = load_ratings(config.data, data_root, config.seed)
        rendered = render_ratings(
            labelled(data.train, config.threshold), load_tokenizer(config.model), config.max_length
        )
        wanted, unwanted = weights_for(config, rendered.rows)
        return "\n".join(
            [
                *data.report,
                f"{rendered.too_long} replies exceed {config.max_length} tokens",
                f"weights {wanted:.3f} (wanted), {unwanted:.3f} (unwanted)",
            ]
        )

    return run_command("kto", "KTO, from wanted and unwanted replies.", KtoConfig, run_kto, argv, check)
