"""TRL's DPO trainer, fed with rows that Keel has rendered, and with soft labels, margins and label smoothing.

TRL computes every loss for plain labels. It has no soft labels and no margins, and its `sigmoid`, `hinge` and
`ipo` ignore label smoothing without a word: for batches with any of these the loss is computed here, from
`training.losses.preference`, with TRL's model and reference passes. On plain labels both are the same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig as TrlConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from training.data.preference_render import PairRow
from training.losses.preference import PairLogprobs, pair_loss
from training.rl.causal import bare

LABELS = ("soft", "margin")
"""Columns that TRL doesn't know."""


def pair_dataset(rows: Sequence[PairRow], *, soft: bool, margin_scale: float) -> Dataset:
    """The rows as TRL's trainer takes them, with the columns `soft` and `margin` where they are asked for."""
    columns: dict[str, list[Any]] = {
        "prompt_ids": [list(row.prompt) for row in rows],
        "chosen_ids": [list(row.chosen) for row in rows],
        "rejected_ids": [list(row.rejected) for row in rows],
    }
    if soft:
        columns["soft"] = [1.0 if row.source.soft is None else row.source.soft for row in rows]
    if margin_scale:
        columns["margin"] = [margin_scale * row.source.strength for row in rows]
    return Dataset.from_dict(columns)


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's, and the columns that TRL doesn't know as [B] tensors."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        for name in LABELS:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


class PairTrainer(DPOTrainer):
    """DPO on rows of `pair_dataset`.

    The reference is `reference`; without one it is the model with its adapter switched off, and for a model
    without adapter a copy of what it is now.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        arguments: TrlConfig,
        train: Dataset,
        evaluate: Dataset | None,
        reference: PreTrainedModel | None = None,
    ) -> None:
        collator = PairCollator(pad_token_id=int(tokenizer.pad_token_id), max_length=arguments.max_length)
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

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        self._signature_columns = [*(name for name in columns if name not in LABELS), *LABELS]  # type: ignore[assignment]

    def _compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False
    ) -> Tensor:
        labels = {name: inputs[name] for name in LABELS if name in inputs}
        batch = {name: value for name, value in inputs.items() if name not in LABELS}
        if not labels:
            loss: Tensor = super()._compute_loss(model, batch, return_outputs)  # type: ignore[no-untyped-call]
            return loss
        pairs = self._pair_logprobs(model, batch)
        self._note(pairs)
        total = pairs.chosen_B.new_zeros(())
        for kind, weight in zip(self.loss_types, self.loss_weights, strict=True):
            total = total + weight * self._loss_of(kind, pairs, labels)
        return total

    def _loss_of(self, kind: Any, pairs: PairLogprobs, labels: Mapping[str, Tensor]) -> Tensor:
        if kind == "sft":
            assert pairs.chosen_tokens_B is not None  # noqa: S101  # _pair_logprobs counts them
            return -pairs.chosen_B.sum() / pairs.chosen_tokens_B.sum()
        return pair_loss(
            kind,
            pairs,
            self.beta,
            label_smoothing=self.label_smoothing,
            margin_B=labels.get("margin"),
            soft_B=labels.get("soft"),
        ).mean()

    def _pair_logprobs(self, model: nn.Module, batch: Mapping[str, Any]) -> PairLogprobs:
        mask_BT = batch["completion_mask"]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        labels_BT = batch["input_ids"].masked_fill(mask_BT == 0, -100)
        logprobs_B = model(**inputs, use_cache=False, labels=labels_BT, fused_lm_head=True).log_probs.sum(1)
        if self.precompute_ref_logps:
            theirs = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
        else:
            theirs = self.compute_ref_log_probs(self.ref_model or self.model, batch)  # type: ignore[no-untyped-call]
        chosen_B, rejected_B = logprobs_B.chunk(2)
        chosen_tokens_B, rejected_tokens_B = mask_BT.sum(1).chunk(2)
        return PairLogprobs(chosen_B, rejected_B, *theirs, chosen_tokens_B, rejected_tokens_B)

    @property
    def _mode(self) -> str:
        model: Any = self.model
        return "train" if model.training else "eval"

    @torch.no_grad()
    def _note(self, pairs: PairLogprobs) -> None:
        """The figures that TRL logs of its own losses, under its names."""
        figures = {
            "rewards/chosen": self.beta * pairs.chosen_ratio_B,
            "rewards/rejected": self.beta * pairs.rejected_ratio_B,
            "rewards/accuracies": (pairs.difference_B > 0).float(),
            "rewards/margins": self.beta * pairs.difference_B,
            "logps/chosen": pairs.chosen_B,
            "logps/rejected": pairs.rejected_B,
        }
        metrics = self._metrics[self._mode]
        for name, value_B in figures.items():
            metrics[name].append(self.accelerator.gather(value_B.detach()).mean().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how far the chosen replies' log-probability has moved from the reference's, in nats.

        TRL's count of tokens is left out: it starts again when a run is resumed.
        """
        self._metrics[self._mode].pop("num_tokens", None)
        rewards = self._metrics[self._mode].get("rewards/chosen")
        if rewards:
            prefix = "" if self._mode == "train" else "eval_"
            logs[f"{prefix}logps/chosen_change"] = sum(rewards) / len(rewards) / self.beta
        super().log(logs, start_time)


@contextmanager
def own_reference(
    model: PreTrainedModel, given: PreTrainedModel | None, precomputed: bool
) -> Iterator[PreTrainedModel | None]:
    """What a trainer of TRL's that is made inside the block gets as reference: `given`; else nothing for a
    LoRA, whose base it is, or where the reference was computed before; else a copy of the model.

    TRL keeps a copy of the adapter as reference, which is deleted: ours starts at zero.
    """
    adapters = adapters_of(model)
    yield frozen_copy(model) if given is None and not adapters and not precomputed else given
    for name in adapters_of(model) - adapters:
        model.delete_adapter(name)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that never trains, dropout off."""
    copy = deepcopy(model)
    copy.requires_grad_(False)
    copy.train(False)
    return copy


def adapters_of(model: nn.Module) -> set[str]:
    """The names of a LoRA's adapters; none for a plain model."""
    return set(model.peft_config) if isinstance(model, PeftModel) else set()


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """A LoRA is as its base inside; a model without adapters is as it is."""
    if not isinstance(model, PeftModel):
        yield
        return
    with model.disable_adapter():
        yield


@contextmanager
def forward_restored(model: PreTrainedModel) -> Iterator[None]:
    """Undo what TRL's trainers do to the model's `forward` when the block ends.

    They replace it on the instance by a closure over the model, which a later copy of the model would go on
    calling: the copy would answer with the original's weights.
    """
    inner = bare(model)
    before = vars(inner).get("forward")
    try:
        yield
    finally:
        vars(inner).pop("forward", None)
        if before is not None:
            vars(inner)["forward"] = before
