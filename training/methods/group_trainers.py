"""TRL's GRPO and RLOO trainers, imported without vLLM, and with an order of prompts that a resumed run keeps.

TRL imports vLLM, where it is installed, for a sampler that is not used here, which takes twenty seconds and
warns about its version. It is told that there is none while its modules are imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from datasets import Dataset
from trl import import_utils
from trl.trainer.utils import RepeatSampler


def _no_vllm(min_version: str | None = None) -> bool:
    return False


with patch.object(import_utils, "is_vllm_available", _no_vllm):
    from trl.trainer.grpo_trainer import GRPOTrainer as TrlGrpoTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer as TrlRlooTrainer


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that follows from the seed and the epoch.

    TRL's own draws every epoch's order from one generator, so a run that is resumed in its second epoch would
    go through the first one's order again.
    """

    def __init__(self, like: Any, seed: int) -> None:
        super().__init__(
            like.data_source, like.mini_repeat_count, like.batch_size, like.repeat_count, like.shuffle, seed
        )
        self._start, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self._start * 1_000_003 + self._epoch)
        return iter(super().__iter__())  # type: ignore[no-untyped-call]


class GRPOTrainer(TrlGrpoTrainer):
    def _get_train_sampler(self, dataset: Dataset | None = None) -> _EpochSampler:
        return _EpochSampler(super()._get_train_sampler(dataset), self.args.seed)


class RLOOTrainer(TrlRlooTrainer):
    def _get_train_sampler(self, dataset: Dataset | None = None) -> _EpochSampler:
        return _EpochSampler(super()._get_train_sampler(dataset), self.args.seed)


__all__ = ["GRPOTrainer", "RLOOTrainer"]
