"""TRL's KTO trainer, fed with rated replies that Keel has rendered.

KTO compares a reply's log-ratio with a reference point, the mean log-ratio of *mismatched* replies: those of
other prompts in the same batch. TRL takes each row's neighbour in file order for that, which for ratings that
come from pairs is the other reply to the *same* prompt. Here rows are shuffled first, and each batch
is turned around by a step that leaves as few replies as can be with their own prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.kto_config import KTOConfig as TrlConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from training.data.preference_render import Ids, ReplyRow
from training.methods.dpo_trainer import own_reference


def rating_dataset(rows: Sequence[ReplyRow], batch: int, seed: int | None) -> Dataset:
    """The rows, shuffled by `seed`, as TRL's trainer takes them, in batches of `batch` of which each row also
    has a mismatched reply. A last row that would be a batch of its own is left out."""
    ordered = list(rows) if seed is None else random.Random(f"kto/{seed}").sample(rows, len(rows))
    if len(ordered) % batch == 1:
        ordered.pop()
    mismatched = [
        reply for start in range(0, len(ordered), batch) for reply in _turned(ordered[start : start + batch])
    ]
    return Dataset.from_dict(
        {
            "prompt_ids": [list(row.prompt) for row in ordered],
            "completion_ids": [list(row.reply) for row in ordered],
            "KL_completion_ids": [list(reply) for reply in mismatched],
            "label": [bool(row.source.label) for row in ordered],
        }
    )


def _turned(batch: Sequence[ReplyRow]) -> list[Ids]:
    """The batch's replies, each moved to another row by the step that meets the fewest equal prompts."""

    def own(step: int) -> int:
        return sum(row.prompt == batch[i - step].prompt for i, row in enumerate(batch))

    step = min(range(1, len(batch)), key=own)
    return [batch[i - step].reply for i in range(len(batch))]


class RatingTrainer(KTOTrainer):
    """KTO on rows of `rating_dataset`; the reference is as in `PairTrainer`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        arguments: TrlConfig,
        train: Dataset,
        evaluate: Dataset | None,
        reference: PreTrainedModel | None = None,
    ) -> None:
        collator = DataCollatorForUnpairedPreference(
            pad_token_id=int(tokenizer.pad_token_id), max_length=arguments.max_length
        )
        with own_reference(model, reference, arguments.precompute_ref_log_probs) as frozen:
            super().__init__(
                model,
                ref_model=frozen,
                args=arguments,
                data_collator=collator,
                train_dataset=train,
                eval_dataset=evaluate,
                processing_class=tokenizer,
            )

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows are rendered and checked already."""
        return dataset

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Leave out TRL's count of tokens, which starts again when a run is resumed."""
        model: Any = self.model
        self._metrics["train" if model.training else "eval"].pop("num_tokens", None)
        super().log(logs, start_time)
