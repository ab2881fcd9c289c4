"""The options of PPO."""

from __future__ import annotations

from pydantic import Field, model_validator

from training.config import Config
from training.data.mixture import MixtureConfig
from training.optimization import OptimizerConfig, ScheduleConfig
from training.rl.config import OnPolicyConfig


class PretrainingMix(Config):
    """PPO-ptx (Ouyang et al. 2022): `rows` conversations a minibatch, their loss times `coef`."""

    data: MixtureConfig | None = None
    coef: float = Field(default=1.0, gt=0)
    rows: int = Field(default=8, ge=1)
    row_length: int = Field(default=512, gt=1)


class PpoConfig(OnPolicyConfig):
    """`target_kl` ends a step's epochs once a minibatch is 1.5 times so far (nats a token) from the policy
    that sampled. `reference_every` makes the policy its own reference every so many steps."""

    epochs: int = Field(default=4, ge=1)
    minibatches: int = Field(default=4, ge=1)
    clip: float = Field(default=0.2, gt=0, lt=1)
    value_clip: float | None = Field(default=0.2, gt=0)
    value_coef: float = Field(default=0.1, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    target_kl: float | None = Field(default=None, gt=0)
    reference_every: int | None = Field(default=None, ge=1)
    pretraining: PretrainingMix | None = None
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=0, decay=0)

    @model_validator(mode="after")
    def _fits(self) -> PpoConfig:
        if self.minibatches > self.rollouts:
            raise ValueError(f"{self.minibatches} minibatches of {self.rollouts} rollouts leave some empty")
        if self.reference_every is not None and self.model is not None and self.model.lora is not None:
            raise ValueError(
                "reference_every: a LoRA policy's reference is its own base, which doesn't move; train "
                "without lora, or leave reference_every out"
            )
        return self
