"""TRL's GRPO and RLOO trainers, imported without vLLM.

TRL imports vLLM, where it is installed, for a sampler that is not used here, which takes twenty seconds and
warns about its version. It is told that there is none while its modules are imported.
"""

from __future__ import annotations

from unittest.mock import patch

from trl import import_utils


def _no_vllm(min_version: str | None = None) -> bool:
    return False


with patch.object(import_utils, "is_vllm_available", _no_vllm):
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

__all__ = ["GRPOTrainer", "RLOOTrainer"]
