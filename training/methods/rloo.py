"""RLOO: REINFORCE with the other replies of the group as baseline (Ahmadian et al. 2024, arXiv:2402.14740).

To each prompt G replies are sampled. What a reply earned is its reward less β log π/π_ref, and its advantage
is that against the mean of the *others*, which leaves the gradient unbiased,

    A_i = r_i − (1 / (G − 1)) Σ_{j ≠ i} r_j ,

for the whole reply as one action: its log-probability is the sum over its tokens. There is no value model.

The trainer is TRL's. `normalize` divides advantages by their standard deviation in the batch. Left out: vLLM
as sampler (use `ppo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.rloo_config import RLOOConfig as TrlConfig

from training.command import run_command
from training.data.preference_data import PromptData
from training.data.preferences import Prompt
from training.methods.group_sampling import GroupConfig, GroupResult, check_group, run_group, train_group
from training.methods.group_trainers import RLOOTrainer
from training.reward_model import RewardFunction
from training.trl.runner import trainer_arguments


class RlooConfig(GroupConfig):
    """`normalize` divides advantages by their standard deviation over the batch."""

    group_size: int = Field(default=4, ge=2)
    beta: float = Field(default=0.05, ge=0)
    normalize: bool = False


def train_rloo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: RlooConfig,
    data: PromptData | Sequence[Prompt],
    reward: RewardFunction | Mapping[str, RewardFunction] | None = None,
    *,
    held_out: Sequence[Prompt] = (),
    run: Path | None = None,
) -> GroupResult:
    """Train `model` in place on its own replies; arguments and errors are as in `train_grpo`."""
    arguments = trainer_arguments(
        config,
        run,
        TrlConfig,
        seed=config.seed,
        normalize_advantages=config.normalize,
        eval_strategy="no",
        **config.trl_options(),
    )
    return train_group(RLOOTrainer, arguments, model, tokenizer, config, data, reward, held_out, run)


def run_rloo(config: RlooConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`."""
    return run_group("rloo", train_rloo, config, data_root, run_path)


def main(argv: Sequence[str]) -> int:
    about = "RLOO, policy gradient with a leave-one-out baseline."
    return run_command("rloo", about, RlooConfig, run_rloo, argv, check_group)
