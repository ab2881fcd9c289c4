"""A reward model from comparisons: Bradley–Terry with margins, several objectives, ratings, ensembles.

For a prompt x with replies y_i, scores r_k(x, y) under objective k, and the pairs (c, r) that a comparison
says, with strength s and probability q that c is better, the loss of one comparison is

    mean over its pairs of  -q log σ(Δ - m) - (1 - q) log σ(-Δ - m),
    Δ = r_k(x, y_c) - r_k(x, y_r),   m = margin_scale · s

(Bradley and Terry 1952; the mean over a ranking's K(K-1)/2 pairs, as one element: Ouyang et al. 2022,
arXiv:2203.02155; the margin: Touvron et al. 2023, arXiv:2307.09288). Optional: ratings of single replies
by cross-entropy or squared error; `center` · ½ r², which keeps scores near zero (Eisenstein et al. 2023,
arXiv:2312.09244). Afterwards scores are normalised on reference samples (`training.reward_model`), an
ensemble is members of different seeds, each on its own bootstrap sample if asked (Coste et al. 2023,
arXiv:2310.02743).

The loop is TRL's RewardTrainer. Left out: a shared trunk with many heads as an ensemble, as members that
share features also share their errors; process rewards, which need step labels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.reward_config import RewardConfig as TrlRewardConfig

from training.command import run_command
from training.config import Config
from training.data.decoys import with_decoys
from training.data.epochs import arrange
from training.data.preference_data import (
    PreferenceDataConfig,
    RatingDataConfig,
    Split,
    is_held_out,
    load_comparisons,
    load_ratings,
)
from training.data.preferences import Comparison, Preference, Prompt, Rating
from training.errors import ConfigError, TrainingError
from training.evaluate.bias import RewardLimits
from training.losses.reward import Reduce
from training.methods.reward_beginnings import beginnings
from training.methods.reward_head import fit_head
from training.methods.reward_measure import RewardResult, evaluations, measure
from training.methods.reward_trainer import (
    Collator,
    Element,
    GroupRewardTrainer,
    LossWeights,
    as_dataset,
    comparison_element,
    rating_elements,
)
from training.models import ModelSource, write_record
from training.reward_model import RewardModel, Store, check_weights, pad_id, rounded, unnormalised
from training.reward_model_backbone import keep_layers, kind_of, load_backbone, located, plain
from training.reward_model_encoding import Kind, encode
from training.reward_model_ensemble import RewardEnsemble, save_ensemble
from training.run_directory import RunDirectory
from training.trl.runner import TrainingOptions, run_trainer, trainer_arguments


class RewardConfig(Config):
    """`weights` are those of the objectives in the mix, equal ones where none are given.

    `margin_scale` times a pair's strength is its margin. `members` > 1 trains an ensemble of as many seeds,
    with `bootstrap` each on its own resample of the data. `dropout` leaves the backbone's dropout on;
    `fit: head` fits the outputs alone (`training.methods.reward_head`), for which `ridge` is the penalty,
    chosen by the data where it is None. `freeze_embeddings` keeps words that the data lacks where they are
    among those that it has. `decoys` is the share of comparisons to which a pair is added whose rejected
    reply is made to please (`training.data.decoys`). `layers` of the backbone are kept, its first ones.
    `beginnings` is the share of pairs that are read cut as well (`training.methods.reward_beginnings`).
    `store` is how the weights are rounded and written; what is measured is the rounded model.
    """

    name: str = "reward"
    seed: int = 0
    model: ModelSource
    objectives: tuple[str, ...] = Field(default=("overall",), min_length=1)
    weights: dict[str, float] = Field(default_factory=dict)
    data: PreferenceDataConfig | None = None
    ratings: RatingDataConfig | None = None
    margin_scale: float = Field(default=1.0, ge=0)
    rating_weight: float = Field(default=1.0, ge=0)
    center: float = Field(default=0.0, ge=0)
    decoys: float = Field(default=0.0, ge=0)
    members: int = Field(default=1, ge=1)
    bootstrap: bool = False
    reduce: Reduce = "uncertainty"
    coefficient: float = Field(default=1.0, ge=0)
    dropout: bool = False
    freeze_embeddings: bool = False
    fit: Literal["all", "head"] = "all"
    ridge: float | None = Field(default=None, gt=0)
    layers: int | None = Field(default=None, ge=1)
    beginnings: float = Field(default=0.0, ge=0, le=4)
    store: Store = "fp32"
    held_out: float = Field(default=0.1, ge=0, lt=1)
    reference_samples: int = Field(default=512, ge=2)
    limits: RewardLimits = RewardLimits()
    training: TrainingOptions

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        if self.weights:
            check_weights(self.weights, self.objectives)
        if self.fit == "head" and self.model.lora is not None:
            raise ValueError("fit: head leaves the backbone as it is; leave model.lora out, or fit: all")
        return self


Backbone = tuple[PreTrainedModel, PreTrainedTokenizerFast]


def train_reward(
    config: RewardConfig,
    preferences: Sequence[Comparison],
    *,
    ratings: Sequence[Rating] = (),
    held_out: Sequence[Comparison] | None = None,
    backbone: Backbone | None = None,
    run: Path | None = None,
) -> RewardResult:
    """Fit one reward model and measure it; with `run` the fit can be interrupted and resumed.

    Without `held_out`, `config.held_out` of the prompts are kept back for measuring. `backbone` is a model
    with an output per objective (as `load_backbone` returns it), which is trained in place; without it,
    `config.model` is loaded. Raises TrainingError for rows under an objective that the config does not name.
    """
    if held_out is None:
        preferences, held_out = _split(preferences, config.held_out)
    reward, history = fit(config, preferences, ratings, held_out, backbone, run)
    return measure(reward, preferences, held_out, history, config.limits, config.seed)


def fit(
    config: RewardConfig,
    preferences: Sequence[Comparison],
    ratings: Sequence[Rating] = (),
    held_out: Sequence[Comparison] = (),
    backbone: Backbone | None = None,
    run: Path | None = None,
) -> tuple[RewardModel, list[dict[str, Any]]]:
    """Train without measuring: the model, normalised on what it was trained on, and the log.

    The loss on `held_out` is logged every `training.evaluate_every` steps, where that is set.
    """
    model, tokenizer = backbone or load_backbone(config.model, config.objectives, config.seed)
    if config.layers is not None:
        keep_layers(model, config.layers)
    if config.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    about = unnormalised(kind_of(model.config), config.objectives, config.weights, _max_length(config, model))
    reader = partial(encode, tokenizer, about.kind, max_length=about.max_length)
    learnt = with_decoys(preferences, config.decoys, config.seed)
    learnt = [*learnt, *beginnings(preferences, config.beginnings, config.seed)]
    elements = _elements(config, learnt, ratings, reader)
    if config.fit == "head":
        history = _fit_head(config, model, about.kind, elements, [*learnt, *ratings], pad_id(tokenizer))
        _log(run, history)
    else:
        kept = _elements(config, held_out, (), reader) if held_out else None
        trainer = _trainer(config, model, tokenizer, about.kind, elements, kept, run)
        history = run_trainer(trainer, run)
    reward = RewardModel(rounded(plain(model), config.store), tokenizer, about, config.store)
    return _normalise(config, reward, preferences, ratings), history


def _fit_head(
    config: RewardConfig,
    model: PreTrainedModel,
    kind: Kind,
    elements: Sequence[Element],
    rows: Sequence[Comparison | Rating],
    filler: int,
) -> list[dict[str, Any]]:
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    groups = [next(m.content for m in row.prompt if m.role == "user").casefold() for row in rows]
    weights = LossWeights(config.rating_weight, config.center)
    return fit_head(model, kind, elements, groups, filler, weights, config.ridge)


def _log(run: Path | None, history: Sequence[dict[str, Any]]) -> None:
    """Into `metrics.jsonl`, in place of what an interrupted fit left."""
    if run is not None:
        directory = RunDirectory(run)
        directory.rewind(0)
        for record in history:
            directory.log(record)


def _trainer(
    config: RewardConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    kind: Kind,
    elements: Sequence[Element],
    held_out: Sequence[Element] | None,
    run: Path | None,
) -> GroupRewardTrainer:
    ordered = arrange(
        elements, config.training.curriculum, config.seed, lambda e: sum(map(len, e.ids)), lambda e: None
    )
    return GroupRewardTrainer(
        model,
        loss_weights=LossWeights(config.rating_weight, config.center),
        args=trainer_arguments(
            config.training,
            run,
            TrlRewardConfig,
            seed=config.seed,
            disable_dropout=not config.dropout,
            max_length=None,
        ),
        data_collator=Collator(pad_id(tokenizer), segments=kind == "encoder"),
        train_dataset=as_dataset(ordered),
        eval_dataset=as_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
    )


def train_ensemble(
    config: RewardConfig,
    preferences: Sequence[Comparison],
    *,
    ratings: Sequence[Rating] = (),
    held_out: Sequence[Comparison] | None = None,
    run: Path | None = None,
) -> tuple[RewardEnsemble, list[RewardResult]]:
    """`config.members` models, of the seeds `seed`, `seed + 1`, …; with `run`, each in `run/members/I`."""
    if held_out is None:
        preferences, held_out = _split(preferences, config.held_out)
    results = []
    for number in range(config.members):
        member = config.model_copy(update={"seed": config.seed + number})
        place = run / "members" / str(number) if run is not None else None
        drawn = _resample(preferences, member.seed) if config.bootstrap else preferences
        results.append(train_reward(member, drawn, ratings=ratings, held_out=held_out, run=place))
    ensemble = RewardEnsemble(tuple(r.model for r in results), config.reduce, config.coefficient)
    return ensemble, results


def run_reward(config: RewardConfig, data_root: Path, run_path: Path) -> Path:
    """Train what the config says, resuming what `run_path` holds; returns the folder of the reward model."""
    directory = RunDirectory(run_path)
    directory.bind(config.model_dump(mode="json"))
    comparisons, ratings = _load(config, data_root)
    final = run_path / "final"
    given: dict[str, Any] = {"ratings": ratings.train, "held_out": comparisons.held_out}
    if config.members == 1:
        results = [train_reward(config, comparisons.train, **given, run=run_path)]
        results[0].model.save(final)
    else:
        ensemble, results = train_ensemble(config, comparisons.train, **given, run=run_path)
        save_ensemble(final, [r.model for r in results], ensemble.reduce, ensemble.coefficient)
    for number, result in enumerate(results):
        print(result.report() if len(results) == 1 else f"member {number}: {result.report()}")
    data = (*comparisons.data, *ratings.data)
    record = [evaluation for result in results[:1] for evaluation in evaluations(result)]
    write_record(run_path, "reward", config, located(config.model), config.seed, data, record)
    return final


def main(argv: Sequence[str]) -> int:
    return run_command(
        "reward",
        "Train a reward model from comparisons and ratings.",
        RewardConfig,
        run_reward,
        argv,
        check=lambda config, root: "\n".join(line for split in _load(config, root) for line in split.report),
    )


def _load(config: RewardConfig, root: Path) -> tuple[Split[Comparison], Split[Rating]]:
    if config.data is None:
        raise ConfigError("data: name the comparisons to train on (files, or demo: N)")
    comparisons = load_comparisons(config.data, root, config.seed)
    if config.ratings is None:
        return comparisons, Split((), (), (), ())
    return comparisons, load_ratings(config.ratings, root, config.seed)


def _elements(
    config: RewardConfig, comparisons: Sequence[Comparison], ratings: Sequence[Rating], reader: Any
) -> list[Element]:
    objectives = {name: index for index, name in enumerate(config.objectives)}
    elements = [comparison_element(c, objectives, reader, config.margin_scale) for c in comparisons]
    elements += rating_elements(ratings, objectives, reader)
    if not elements:
        raise TrainingError("there is nothing to train on: no comparison and no rating")
    return elements


def _split(comparisons: Sequence[Comparison], share: float) -> tuple[list[Comparison], list[Comparison]]:
    """What to train on, and what to keep back, by prompt."""
    kept = [is_held_out(c.prompt, share) for c in comparisons]
    return (
        [c for c, out in zip(comparisons, kept, strict=True) if not out],
        [c for c, out in zip(comparisons, kept, strict=True) if out],
    )


def _max_length(config: RewardConfig, model: PreTrainedModel) -> int:
    longest = int(getattr(model.config, "max_position_embeddings", config.training.max_length))
    if config.training.max_length > longest:
        raise ConfigError(
            f"training.max_length is {config.training.max_length}, the backbone has {longest} positions"
        )
    return config.training.max_length


def _normalise(
    config: RewardConfig, reward: RewardModel, comparisons: Sequence[Comparison], ratings: Sequence[Rating]
) -> RewardModel:
    """On replies of the training data, drawn by the seed: good and bad ones as the data has them."""
    replies: dict[tuple[Prompt, str], None] = {}
    for comparison in comparisons:
        texts = _replies(comparison)
        replies |= dict.fromkeys((comparison.prompt, text) for text in texts)
    replies |= dict.fromkeys((rating.prompt, rating.reply) for rating in ratings)
    count = min(config.reference_samples, len(replies))
    drawn = random.Random(f"{config.seed}/reference").sample(list(replies), count)
    return reward.normalised([prompt for prompt, _ in drawn], [reply for _, reply in drawn])


def _replies(comparison: Comparison) -> tuple[str, ...]:
    if isinstance(comparison, Preference):
        return comparison.chosen, comparison.rejected
    return comparison.replies


def _resample(comparisons: Sequence[Comparison], seed: int) -> list[Comparison]:
    """As many comparisons, drawn with replacement (Efron 1979)."""
    return random.Random(f"{seed}/bootstrap").choices(list(comparisons), k=len(comparisons))
