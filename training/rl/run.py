"""An on-policy method from the command line: load what the config names, train, write the finished model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.manifest import DataSource
from training.command import run_command
from training.data.preference_data import PromptData, load_prompts
from training.data.preferences import Prompt
from training.errors import ConfigError
from training.models import load_policy, save_policy, write_record
from training.reward_model import RewardFunction
from training.rl.config import OnPolicyConfig
from training.rl.processes import Processes, launched, on_own_device
from training.rl.rewards import load_reward

C = TypeVar("C", bound=OnPolicyConfig)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a training starts from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    prompts: Sequence[Prompt]
    reward: RewardFunction
    processes: Processes


Train = Callable[[Loaded], tuple[DataSource, ...]]
"""Trains the model in place; returns what it was trained on beside the prompts."""


def run_on_policy(method: str, config: OnPolicyConfig, data_root: Path, run_path: Path, train: Train) -> Path:
    """Load, `train` (or go on), and write `run_path/final` with its record; returns that folder.

    The first of several processes writes. Raises ConfigError where the config names no model, reward or data.
    """
    data, source = _prompts(config, data_root), config.model
    if source is None or config.reward is None:
        raise ConfigError("the command needs `model:` and `reward:` in the config")
    reward = load_reward(config.reward)
    model, tokenizer = load_policy(source, config.seed)
    on_own_device(model)
    with launched() as processes:
        if processes.main:
            print("\n".join(data.report))
        more = train(Loaded(model, tokenizer, data.train, reward, processes))
    final = run_path / "final"
    if processes.main:
        save_policy(final, model, tokenizer, config.serve)
        write_record(run_path, method, config, source, config.seed, (*data.data, *more))
    return final


def on_policy_command(
    method: str,
    description: str,
    config_type: type[C],
    run: Callable[[C, Path, Path], Path],
    argv: Sequence[str],
) -> int:
    """`keel-train METHOD`; returns the exit status. `--check` reports on the prompts."""

    def check(config: C, data_root: Path) -> str:
        return "\n".join(_prompts(config, data_root).report)

    return run_command(method, description, config_type, run, argv, check)


def _prompts(config: OnPolicyConfig, data_root: Path) -> PromptData:
    if config.data is None:
        raise ConfigError("the command needs `data:` in the config: where prompts come from")
    return load_prompts(config.data, data_root, config.seed)
