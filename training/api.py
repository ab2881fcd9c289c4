"""The Python API: everything of `keel-train` that a program or a notebook calls, under one name.

    from training.api import DpoConfig, load_policy, ModelSource, train_dpo

A name is imported when it is first asked for, since torch and TRL take seconds that nobody should pay for
reading a preference file. docs/TRAINING.md shows each of them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.constitution import Constitution
    from training.active import Candidate, candidates_of, select
    from training.data.conversation import Conversation, Message
    from training.data.preferences import (
        Preference,
        Prompt,
        Ranking,
        Rating,
        as_prompt,
        read_preferences,
        read_ratings,
        write_preferences,
    )
    from training.data.quality import examine
    from training.evaluate.constitution import evaluate_text
    from training.evaluate.pairwise import compare_replies, win_rate
    from training.evaluate.perplexity import perplexity
    from training.evaluate.policy import compare_policies, evaluate_policy
    from training.judge.local import PolicyJudge
    from training.judge.remote import JudgeConfig, RemoteJudge
    from training.judge.rules import Rule, Rules, RulesJudge
    from training.methods.dpo import DpoConfig, train_dpo
    from training.methods.grpo import GrpoConfig, train_grpo
    from training.methods.kto import KtoConfig, train_kto
    from training.methods.orpo import OrpoConfig, train_orpo
    from training.methods.ppo import train_ppo
    from training.methods.ppo_config import PpoConfig
    from training.methods.reward import RewardConfig, train_ensemble, train_reward
    from training.methods.rloo import RlooConfig, train_rloo
    from training.methods.sft import SftConfig, train_sft
    from training.methods.spin import SpinConfig, train_spin
    from training.methods.trpo import TrpoConfig, train_trpo
    from training.models import LoraConfig, ModelSource, load_policy, save_policy
    from training.reward_model import RewardFunction, RewardModel
    from training.reward_model_ensemble import RewardEnsemble
    from training.rl.rollout import generate
    from training.rl.sampling import SampleConfig

_NAMES = {
    "policies.constitution": ("Constitution",),
    "training.active": ("Candidate", "candidates_of", "select"),
    "training.data.conversation": ("Conversation", "Message"),
    "training.data.preferences": (
        *("Preference", "Prompt", "Ranking", "Rating", "as_prompt"),
        *("read_preferences", "read_ratings", "write_preferences"),
    ),
    "training.data.quality": ("examine",),
    "training.evaluate.constitution": ("evaluate_text",),
    "training.evaluate.pairwise": ("compare_replies", "win_rate"),
    "training.evaluate.perplexity": ("perplexity",),
    "training.evaluate.policy": ("compare_policies", "evaluate_policy"),
    "training.judge.local": ("PolicyJudge",),
    "training.judge.remote": ("JudgeConfig", "RemoteJudge"),
    "training.judge.rules": ("Rule", "Rules", "RulesJudge"),
    "training.methods.dpo": ("DpoConfig", "train_dpo"),
    "training.methods.grpo": ("GrpoConfig", "train_grpo"),
    "training.methods.kto": ("KtoConfig", "train_kto"),
    "training.methods.orpo": ("OrpoConfig", "train_orpo"),
    "training.methods.ppo": ("train_ppo",),
    "training.methods.ppo_config": ("PpoConfig",),
    "training.methods.reward": ("RewardConfig", "train_ensemble", "train_reward"),
    "training.methods.rloo": ("RlooConfig", "train_rloo"),
    "training.methods.sft": ("SftConfig", "train_sft"),
    "training.methods.spin": ("SpinConfig", "train_spin"),
    "training.methods.trpo": ("TrpoConfig", "train_trpo"),
    "training.models": ("LoraConfig", "ModelSource", "load_policy", "save_policy"),
    "training.reward_model": ("RewardFunction", "RewardModel"),
    "training.reward_model_ensemble": ("RewardEnsemble",),
    "training.rl.rollout": ("generate",),
    "training.rl.sampling": ("SampleConfig",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Candidate",
    "Constitution",
    "Conversation",
    "DpoConfig",
    "GrpoConfig",
    "JudgeConfig",
    "KtoConfig",
    "LoraConfig",
    "Message",
    "ModelSource",
    "OrpoConfig",
    "PolicyJudge",
    "PpoConfig",
    "Preference",
    "Prompt",
    "Ranking",
    "Rating",
    "RemoteJudge",
    "RewardConfig",
    "RewardEnsemble",
    "RewardFunction",
    "RewardModel",
    "RlooConfig",
    "Rule",
    "Rules",
    "RulesJudge",
    "SampleConfig",
    "SftConfig",
    "SpinConfig",
    "TrpoConfig",
    "as_prompt",
    "candidates_of",
    "compare_policies",
    "compare_replies",
    "evaluate_policy",
    "evaluate_text",
    "examine",
    "generate",
    "load_policy",
    "perplexity",
    "read_preferences",
    "read_ratings",
    "save_policy",
    "select",
    "train_dpo",
    "train_ensemble",
    "train_grpo",
    "train_kto",
    "train_orpo",
    "train_ppo",
    "train_reward",
    "train_rloo",
    "train_sft",
    "train_spin",
    "train_trpo",
    "win_rate",
    "write_preferences",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"training.api has no {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return list(__all__)
