"""The options that on-policy methods share: what to sample, how to score it, how to make advantages of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from training.chat_model import SamplingConfig
from training.config import Config
from training.data.preference_data import PromptDataConfig
from training.models import ModelSource
from training.reporting import Destination
from training.rl.actor_critic import ValueKind
from training.rl.kl import KlConfig
from training.rl.rewards import RewardSource
from training.rl.sampling import SampleConfig
from training.rl.vllm import VllmRollouts


class OnPolicyConfig(Config):
    """What every step of an on-policy method does before it updates the policy.

    A step samples `rollouts` replies to prompts that are gone through in shuffled order, scores them, and
    makes advantages of the scores. `model`, `data` and `reward` are what the command loads; with the
    in-memory API they may be left out.
    """

    name: str
    seed: int = 0
    model: ModelSource | None = None
    data: PromptDataConfig | None = None
    reward: RewardSource | None = None
    steps: int = Field(ge=1)
    rollouts: int = Field(default=64, ge=1)
    sample: SampleConfig = SampleConfig()
    vllm: VllmRollouts | None = None
    kl: KlConfig = KlConfig()
    reward_clip: float | None = Field(default=None, gt=0)
    whiten_rewards: bool = False
    eos_penalty: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    whiten_advantages: bool = True
    value: ValueKind = "shared"
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch_tokens: int = Field(default=2048, ge=1)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=10, ge=1)
    report_to: tuple[Destination, ...] = ()
    serve: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _whole_distribution(self) -> OnPolicyConfig:
        if self.sample.truncated:
            raise ValueError(
                "sample: top_k, top_p and temperature 0 draw from another distribution than the policy's, "
                "so ratios and KL would be wrong; train with temperature alone and truncate when serving"
            )
        return self
