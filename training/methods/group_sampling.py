"""What GRPO and RLOO share: groups of replies to one prompt, sampled from the policy and scored by rewards.

Both are TRL's trainers; replies are sampled in this process by transformers. Batches are counted in replies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from datasets import Dataset
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from policies.manifest import Evaluation
from training.chat_model import SamplingConfig
from training.data.preference_data import PromptData, PromptDataConfig, load_prompts
from training.data.preferences import Prompt, as_prompt
from training.errors import TrainingError
from training.evaluate.metrics import Figure, mean
from training.methods.dpo_trainer import adapters_of, forward_restored
from training.models import ModelSource, check_fits, load_policy, save_policy, tell_origin, write_record
from training.reward_model import RewardFunction
from training.rl.rewards import RewardSource, checked_scores, load_reward
from training.rl.rollout import SampleConfig, generate, prompt_tokens
from training.run_directory import RunDirectory
from training.trl.runner import TrainingOptions, is_main_process, run_trainer


class WeightedReward(RewardSource):
    """A reward, and what it weighs in the sum."""

    weight: float = 1.0


class GroupConfig(TrainingOptions):
    """`batch_size` and `micro_batch` count replies; `group_size` of them answer the same prompt.

    `beta` weighs the KL to the reference (0: there is none). `updates` passes are made over each batch of
    replies, with the likelihood ratio clipped to within `clip` of 1. `rewards` may be left out where a
    reward function is given in Python.
    """

    name: str
    seed: int = 0
    model: ModelSource
    data: PromptDataConfig
    rewards: tuple[WeightedReward, ...] = ()
    learning_rate: float = Field(default=1e-6, gt=0)
    group_size: int = Field(default=8, ge=2)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.0, ge=0)
    updates: int = Field(default=1, ge=1)
    clip: float = Field(default=0.2, gt=0, lt=1)
    ignore_cut_off: bool = False
    adapter: bool = False
    sampling: SamplingConfig | None = None

    @model_validator(mode="after")
    def _groups(self) -> GroupConfig:
        if self.batch_size % self.group_size:
            raise ValueError("batch_size counts replies: it must be a multiple of group_size")
        if self.checkpoint_every % self.updates:
            raise ValueError(
                "checkpoint_every must be a multiple of updates: a batch of replies can't be gone on with"
            )
        return self

    def trl_options(self) -> dict[str, Any]:
        """What TRL calls the shared options."""
        return {
            "num_generations": self.group_size,
            "max_completion_length": self.max_new_tokens,
            "temperature": self.temperature,
            "beta": self.beta,
            "num_iterations": self.updates,
            "epsilon": self.clip,
            "mask_truncated_completions": self.ignore_cut_off,
            "reward_weights": [reward.weight for reward in self.rewards] or None,
        }


@dataclass(frozen=True, slots=True)
class GroupResult:
    """`before` and `after`: the weighted reward of one sampled reply to each held-out prompt."""

    model: PreTrainedModel
    history: list[dict[str, Any]]
    before: Figure | None
    after: Figure | None
    too_long: int


Config = TypeVar("Config", bound=GroupConfig)


def rewards_of(
    config: GroupConfig, given: RewardFunction | Mapping[str, RewardFunction] | None
) -> dict[str, RewardFunction]:
    """Reward functions by name: those given, or those that the config names.

    Several are weighted by the config's `rewards`, in order; without those they weigh the same.
    """
    if given is not None:
        found = dict(given) if isinstance(given, Mapping) else {"reward": given}
    else:
        found = {_name(source, i): load_reward(source) for i, source in enumerate(config.rewards)}
    if not found:
        raise TrainingError("no reward: name reward models in rewards, or pass a reward function")
    if config.rewards and len(config.rewards) != len(found):
        raise TrainingError(f"{len(found)} reward functions, but rewards has {len(config.rewards)} weights")
    return found


def trl_rewards(rewards: Mapping[str, RewardFunction]) -> list[Any]:
    """The functions as TRL calls them; each score is checked to be a number."""

    def adapted(name: str, reward: RewardFunction) -> Any:
        def score(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
            texts = [completion[0]["content"] for completion in completions]
            scores: list[float] = checked_scores(reward, [as_prompt(p) for p in prompts], texts).tolist()
            return scores

        score.__name__ = name
        return score

    return [adapted(name, reward) for name, reward in rewards.items()]


def prompt_dataset(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast, config: GroupConfig
) -> tuple[Dataset, int]:
    """The prompts that leave room for a reply within `max_length`, and how many don't."""
    lengths = map(len, prompt_tokens(tokenizer, prompts))
    room = config.max_length - config.max_new_tokens
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= room]
    if not kept:
        raise TrainingError(
            f"no prompt is left: of {len(prompts)} none fits max_length {config.max_length} together with a "
            f"reply of {config.max_new_tokens} tokens"
        )
    rows = [[{"role": m.role, "content": m.content} for m in prompt] for prompt in kept]
    return Dataset.from_dict({"prompt": rows}), len(prompts) - len(kept)


@contextmanager
def reference_on_disk(model: PreTrainedModel, needed: bool) -> Iterator[None]:
    """TRL reads the reference of a plain model from the folder that it came from; a model in memory has
    none, or has been trained since. Inside the block its name is a folder with what it is now."""
    if not needed:
        yield
        return
    name = model.config._name_or_path
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.config._name_or_path = folder
        try:
            yield
        finally:
            model.config._name_or_path = name


def sampled_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, RewardFunction],
    config: GroupConfig,
) -> Figure | None:
    """The weighted reward of a sampled reply a prompt, with its interval; None without prompts."""
    if not prompts:
        return None
    sample = SampleConfig(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    texts = generate(model, tokenizer, prompts, sample, config.seed).texts
    weights = [reward.weight for reward in config.rewards] or [1.0] * len(rewards)
    scores: Tensor = torch.stack(
        [w * checked_scores(r, prompts, texts) for w, r in zip(weights, rewards.values(), strict=True)]
    ).sum(0)
    return mean(scores.tolist())


def train_group(
    trainer_type: Callable[..., Trainer],
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: GroupConfig,
    data: PromptData | Sequence[Prompt],
    reward: RewardFunction | Mapping[str, RewardFunction] | None,
    held_out: Sequence[Prompt],
    run: Path | None,
) -> GroupResult:
    """Train `model` in place with one of TRL's trainers; the held-out reward is measured around it."""
    check_fits(model, tokenizer)
    train, aside = (data, held_out) if isinstance(data, Sequence) else (data.train, data.held_out)
    rewards = rewards_of(config, reward)
    rows, too_long = prompt_dataset(train, tokenizer, config)
    before = sampled_reward(model, tokenizer, aside, rewards, config)
    adapters = adapters_of(model)
    with forward_restored(model):
        with reference_on_disk(model, needed=config.beta > 0 and not adapters):
            trainer = trainer_type(model, trl_rewards(rewards), arguments, rows, processing_class=tokenizer)
        # TRL keeps a copy of the adapter as reference; the reference is the base, the adapter switched off.
        trained: Any = trainer.model
        for name in adapters_of(trained) - adapters:
            trained.delete_adapter(name)
        history = run_trainer(trainer, run, config.safety)
    trained = trainer.accelerator.unwrap_model(trained)
    after = sampled_reward(trained, tokenizer, aside, rewards, config)
    return GroupResult(trained, history, before, after, too_long)


def run_group(
    method: str,
    train: Any,
    config: Config,
    data_root: Path,
    run_path: Path,
) -> Path:
    """Load, train with `train`, write `final/` and `record.json`; goes on where a run was interrupted."""
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    tell_origin(config.model)  # what cannot be published is told before it is trained
    rewards = rewards_of(config, None)
    data = load_prompts(config.data, data_root, config.seed)
    print("\n".join(data.report))
    model, tokenizer = load_policy(config.model, config.seed)
    result: GroupResult = train(model, tokenizer, config, data, rewards, run=run_path)
    final = run_path / "final"
    if is_main_process():
        print(f"reward on held-out prompts: {result.before}, trained {result.after}")
        save_policy(final, result.model, tokenizer, config.sampling, adapter=config.adapter)
        served, _ = load_policy(ModelSource(path=str(final)))
        figure = sampled_reward(served, tokenizer, data.held_out, rewards, config)
        evaluations: tuple[Evaluation, ...] = ()
        if figure is not None:
            on = "a sampled reply to each held-out prompt"
            found = {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}
            evaluations = (Evaluation(metric="reward", data=on, **found),)  # type: ignore[arg-type]
        write_record(run_path, method, config, config.model, config.seed, data.data, evaluations)
    return final


def check_group(config: GroupConfig, data_root: Path) -> str:
    """The data's report, for `--check`."""
    return "\n".join(load_prompts(config.data, data_root, config.seed).report)


def _name(source: WeightedReward, number: int) -> str:
    named = source.rule if source.rule is not None else Path(source.paths[0]).name
    return f"{number}-{named}"
