"""What the loop does, in numbers: in full, with one seed in a third of the time, and just to see it run."""

from __future__ import annotations

from pydantic import Field

from training.config import Config
from training.rl.kl import KlConfig
from training.rl.sampling import SampleConfig
from training.trl.options import TrainingOptions


class DpoBudget(Config):
    """DPO as the loop runs it; the rest are the method's defaults."""

    beta: float = Field(gt=0)
    training: TrainingOptions


class PpoBudget(Config):
    """PPO as the loop runs it; the rest are the method's defaults."""

    steps: int = Field(ge=1)
    rollouts: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    epochs: int = Field(default=1, ge=1)
    minibatches: int = Field(default=2, ge=1)
    kl: KlConfig


class LoopConfig(Config):
    """`seeds` train a policy each, of either method; raters compare `replies` to each of `questions`, and the
    reward models also learn from `decoys` times as many pairs with a reply that is made to please.

    `test_questions` make the table; as many others choose what is published, and are what `gates` are
    measured on, so that the table's figures of it are not the ones that it was chosen by. `workers` processes
    train at a time, on one core each; 1 trains in this process.
    """

    profile: str
    base: str = "checkpoints/demo-chat"
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1)
    workers: int = Field(default=2, ge=1)
    demonstrations: int = Field(ge=1)
    sft: TrainingOptions
    questions: int = Field(ge=2)
    replies: int = Field(default=4, ge=2)
    reward_members: int = Field(default=2, ge=1)
    decoys: float = Field(default=0.25, ge=0)
    reward: TrainingOptions
    dpo: DpoBudget
    ppo: PpoBudget
    test_questions: int = Field(ge=2)
    sample: SampleConfig = SampleConfig(max_new_tokens=72)
    gates: tuple[str, ...] = ("gold>=parent", "violations<=parent")
    serve: bool = True


def _options(steps: int, batch: int, rate: float, **more: object) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {
            "steps": steps,
            "batch_size": batch,
            "micro_batch": batch,
            "learning_rate": rate,
            "precision": "bf16",
            "max_length": 192,
            "threads": 1,
            "checkpoint_every": 50,
            "warmup": max(1, steps // 20),
            **more,
        }
    )


FULL = LoopConfig(
    profile="full",
    demonstrations=3000,
    sft=_options(110, 8, 1e-3),
    questions=900,
    reward=_options(400, 16, 3e-4),
    dpo=DpoBudget(beta=0.1, training=_options(120, 16, 1e-4)),
    ppo=PpoBudget(steps=60, rollouts=64, learning_rate=1e-4, epochs=2, kl=KlConfig(coef=0.08)),
    test_questions=400,
)

SHORT = LoopConfig(
    profile="short",
    seeds=(0,),
    demonstrations=3000,
    sft=_options(110, 8, 1e-3),
    questions=700,
    reward=_options(100, 16, 3e-4),
    dpo=DpoBudget(beta=0.1, training=_options(50, 16, 1.5e-4)),
    ppo=PpoBudget(steps=16, rollouts=64, learning_rate=2e-4, epochs=2, kl=KlConfig(coef=0.05)),
    test_questions=250,
)

QUICK = LoopConfig(
    profile="quick",
    seeds=(0,),
    workers=1,
    demonstrations=320,
    sft=_options(6, 4, 1e-3, checkpoint_every=10),
    questions=24,
    replies=3,
    reward_members=1,
    reward=_options(4, 8, 3e-4, checkpoint_every=10),
    dpo=DpoBudget(beta=0.1, training=_options(4, 8, 1e-4, checkpoint_every=10)),
    ppo=PpoBudget(steps=2, rollouts=8, learning_rate=5e-5, kl=KlConfig(coef=0.05)),
    test_questions=24,
    sample=SampleConfig(max_new_tokens=32),
    gates=("gold>=parent-10", "violations<=parent+1"),
    serve=False,
)

PROFILES = {config.profile: config for config in (FULL, SHORT, QUICK)}
