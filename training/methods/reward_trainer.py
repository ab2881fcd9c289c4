"""TRL's reward trainer, taught rankings, several objectives, soft labels, ratings and exact accumulation.

An element of a batch is one comparison or rating: N replies to one prompt, each of which is encoded once,
and the pairs among them (InstructGPT, arXiv:2203.02155, section 3.5: as separate rows the same reply would
be read K - 1 times an epoch, and overfit). Its loss is the mean over its pairs, the batch's the mean over
its elements, however the batch is cut into micro-batches or spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.reward_trainer import RewardTrainer

from training.data.preferences import Comparison, Preference, Prompt, Rating
from training.errors import TrainingError
from training.losses.reward import bradley_terry, centering, label_loss, per_element, score_loss
from training.reward_model import forward
from training.reward_model_encoding import Encoded, pad

NOTHING = float("nan")
Encoder = Callable[[Prompt, str], Encoded]


@dataclass(frozen=True, slots=True)
class Element:
    """N encoded replies to one prompt, and what is known about them under one objective.

    `better[p]` and `worse[p]` index the replies of pair p; `soft` is 1 where the label is certain. A
    rating has one reply, no pair, and a `label` (1 good, 0 bad) or a standardised `score`, NaN where not.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    objective: int
    better: tuple[int, ...] = ()
    worse: tuple[int, ...] = ()
    margin: tuple[float, ...] = ()
    soft: tuple[float, ...] = ()
    label: float = NOTHING
    score: float = NOTHING


def comparison_element(
    comparison: Comparison, objectives: Mapping[str, int], encode: Encoder, margin_scale: float
) -> Element:
    """A preference or a whole ranking; raises TrainingError for an objective that the model lacks."""
    pairs = [comparison] if isinstance(comparison, Preference) else comparison.pairs()
    replies = list(dict.fromkeys(reply for pair in pairs for reply in (pair.chosen, pair.rejected)))
    encoded = [encode(comparison.prompt, reply) for reply in replies]
    return Element(
        ids=tuple(e.ids for e in encoded),
        types=tuple(e.types for e in encoded),
        objective=objective_index(comparison.objective, objectives),
        better=tuple(replies.index(pair.chosen) for pair in pairs),
        worse=tuple(replies.index(pair.rejected) for pair in pairs),
        margin=tuple(margin_scale * pair.strength for pair in pairs),
        soft=tuple(1.0 if pair.soft is None else pair.soft for pair in pairs),
    )


def rating_elements(
    ratings: Sequence[Rating], objectives: Mapping[str, int], encode: Encoder
) -> list[Element]:
    """Ratings; their scores, whatever the scale, are standardised over each objective's ratings."""
    scales = {name: _scale([r.score for r in ratings if r.objective == name]) for name in objectives}
    elements = []
    for rating in ratings:
        index = objective_index(rating.objective, objectives)
        mean, deviation = scales[rating.objective]
        encoded = encode(rating.prompt, rating.reply)
        elements.append(
            Element(
                ids=(encoded.ids,),
                types=(encoded.types,),
                objective=index,
                label=NOTHING if rating.label is None else float(rating.label),
                score=NOTHING if rating.score is None else (rating.score - mean) / deviation,
            )
        )
    return elements


def objective_index(name: str, objectives: Mapping[str, int]) -> int:
    if name not in objectives:
        raise TrainingError(
            f"a row is about the objective {name!r}, the config names {', '.join(objectives)}; "
            "add it to `objectives`, or leave those rows out"
        )
    return objectives[name]


def _scale(scores: Sequence[float | None]) -> tuple[float, float]:
    known = torch.tensor([score for score in scores if score is not None], dtype=torch.float64)
    if len(known) < 2 or float(known.std()) == 0:
        return (float(known.mean()) if len(known) else 0.0), 1.0
    return float(known.mean()), float(known.std())


def as_dataset(elements: Sequence[Element]) -> Dataset:
    return Dataset.from_list([asdict(element) for element in elements])


@dataclass(frozen=True, slots=True)
class Collator:
    """Elements to one batch: N replies padded to T tokens, P pairs that index them, B elements."""

    pad_id: int
    segments: bool

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        encoded: list[Encoded] = []
        columns: dict[str, list[Any]] = {
            name: [] for name in "better worse margin soft pair_element objective label score element".split()
        }
        for number, row in enumerate(rows):
            first, pairs, replies = len(encoded), len(row["better"]), len(row["ids"])
            encoded += [Encoded(tuple(i), tuple(t)) for i, t in zip(row["ids"], row["types"], strict=True)]
            columns["better"] += [first + index for index in row["better"]]
            columns["worse"] += [first + index for index in row["worse"]]
            columns["margin"] += row["margin"]
            columns["soft"] += row["soft"]
            columns["pair_element"] += [number] * pairs
            columns["objective"] += [row["objective"]] * replies
            columns["label"] += [row["label"]] * replies
            columns["score"] += [row["score"]] * replies
            columns["element"] += [number] * replies
        ids_NT, mask_NT, types_NT = pad(encoded, self.pad_id)
        batch = {name: _column(name, values) for name, values in columns.items()}
        batch |= {"input_ids": ids_NT, "attention_mask": mask_NT, "elements": torch.tensor(len(rows))}
        return batch | ({"token_type_ids": types_NT} if self.segments else {})


def _column(name: str, values: list[Any]) -> Tensor:
    decimal = name in ("margin", "soft", "label", "score")
    return torch.tensor(values, dtype=torch.float32 if decimal else torch.long)


@dataclass(frozen=True, slots=True)
class LossWeights:
    """`rating`: a rating's weight beside a comparison's 1. `center`: that of ½ r², on every reply."""

    rating: float = 1.0
    center: float = 0.0


def batch_loss(model: Any, batch: Mapping[str, Tensor], weights: LossWeights) -> tuple[Tensor, Tensor]:
    """Each element's loss `[B]`, and every reply's raw reward under its element's objective `[N]`."""
    raw_NK = forward(model, batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
    reward_N = raw_NK.gather(1, batch["objective"].unsqueeze(1)).squeeze(1)
    return element_losses(reward_N, batch, int(batch["elements"]), weights), reward_N


def element_losses(
    reward_N: Tensor, known: Mapping[str, Tensor], elements: int, weights: LossWeights
) -> Tensor:
    """The loss `[B]` of each element from its replies' rewards; `known` are the columns of `Collator`."""
    difference_P = reward_N[known["better"]] - reward_N[known["worse"]]
    loss_P = bradley_terry(difference_P, known["margin"], known["soft"])
    loss_B = per_element(loss_P, known["pair_element"], elements)
    for column, point_loss in (("label", label_loss), ("score", score_loss)):
        rated_R = (~known[column].isnan()).nonzero().squeeze(1)
        loss_R = weights.rating * point_loss(reward_N[rated_R], known[column][rated_R])
        loss_B = loss_B + per_element(loss_R, known["element"][rated_R], elements)
    if weights.center:
        center_N = weights.center * centering(reward_N)
        loss_B = loss_B + per_element(center_N, known["element"], elements)
    return loss_B


class GroupRewardTrainer(RewardTrainer):
    """`RewardTrainer` over `Element` rows. Its config, metrics, logging and evaluation are TRL's."""

    # `compute_loss` divides by the elements of the whole step, so the trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(self, model: PreTrainedModel, *, loss_weights: LossWeights, **options: Any) -> None:
        self._loss_weights = loss_weights
        with _as_one_output(model):
            super().__init__(model=model, **options)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows are encoded already."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(Element.__dataclass_fields__)  # type: ignore[assignment]  # not inferred there

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Elements of the whole step, over its micro-batches and all processes."""
        count = torch.stack([batch["elements"] for batch in batch_samples]).sum().to(device)
        total: Tensor = self.accelerator.gather(count).sum()
        return total

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The step's mean over elements: this call's sum by the step's count; DDP averages over processes."""
        loss_B, reward_N = batch_loss(model, inputs, self._loss_weights)
        self._note(inputs, reward_N.detach())
        if num_items_in_batch is None:
            loss = loss_B.mean()
        else:
            loss = loss_B.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"logits": reward_N}) if return_outputs else loss

    def _note(self, inputs: Mapping[str, Tensor], reward_N: Tensor) -> None:
        """The metrics that TRL's trainer logs, under its names."""
        assert self.model is not None  # noqa: S101  given to the constructor
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["mean_reward"].append(reward_N.mean().item())
        difference_P = reward_N[inputs["better"]] - reward_N[inputs["worse"]]
        if len(difference_P):
            metrics["accuracy"].append((difference_P > 0).float().mean().item())
            metrics["margin"].append(difference_P.mean().item())


@contextmanager
def _as_one_output(model: PreTrainedModel) -> Iterator[None]:
    """TRL refuses models with more than one output; a batch here reads one of them per element."""
    names = {int(index): name for index, name in (model.config.id2label or {}).items()}
    model.config.num_labels = 1
    try:
        yield
    finally:
        model.config.num_labels = len(names)
        model.config.id2label = names
        model.config.label2id = {name: index for index, name in names.items()}
