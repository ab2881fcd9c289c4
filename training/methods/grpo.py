"""GRPO: policy gradient with a group of replies as its own baseline (Shao et al. 2024, arXiv:2402.03300).

To each prompt G replies are sampled. A reply's advantage is its reward against its group's,

    A_i = (r_i − mean_j r_j) / (std_j r_j),

the same for all its tokens, and the objective is PPO's clipped one with that advantage, less β times an
estimate of the KL to the reference. There is no value model. Dividing by the standard deviation weighs
prompts on which all replies score alike as much as others (Liu et al. 2025, arXiv:2503.20783): `scale: none`
leaves it out.

The trainer is TRL's. Left out of what it has: vLLM as sampler (use `ppo`, whose rollouts can be vLLM's),
tools, environments, and losses but `grpo`, `dapo`, `dr_grpo`, `bnpo`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.grpo_config import GRPOConfig as TrlConfig

from training.command import run_command
from training.data.preference_data import PromptData
from training.data.preferences import Prompt
from training.methods.group_sampling import GroupConfig, GroupResult, check_group, run_group, train_group
from training.methods.group_trainers import GRPOTrainer
from training.reward_model import RewardFunction
from training.trl.runner import trainer_arguments


class GrpoConfig(GroupConfig):
    """`loss` says over what token losses are averaged: each reply first (`grpo`), all tokens of the batch
    (`dapo`, `bnpo`), or a constant (`dr_grpo`)."""

    loss: Literal["grpo", "dapo", "bnpo", "dr_grpo"] = "dapo"
    scale: Literal["group", "batch", "none"] = "group"


def train_grpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: GrpoConfig,
    data: PromptData | Sequence[Prompt],
    reward: RewardFunction | Mapping[str, RewardFunction] | None = None,
    *,
    held_out: Sequence[Prompt] = (),
    run: Path | None = None,
) -> GroupResult:
    """Train `model` in place on its own replies to the prompts, scored by `reward` (or several by name, or
    those that the config names). Raises TrainingError without rewards or prompts, or for a score that is no
    number."""
    arguments = trainer_arguments(
        config,
        run,
        TrlConfig,
        seed=config.seed,
        loss_type=config.loss,
        scale_rewards=config.scale,
        eval_strategy="no",
        **config.trl_options(),
    )
    return train_group(GRPOTrainer, arguments, model, tokenizer, config, data, reward, held_out, run)


def run_grpo(config: GrpoConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`."""
    return run_group("grpo", train_grpo, config, data_root, run_path)


def main(argv: Sequence[str]) -> int:
    about = "GRPO, policy gradient with groups of replies."
    return run_command("grpo", about, GrpoConfig, run_grpo, argv, check_group)
