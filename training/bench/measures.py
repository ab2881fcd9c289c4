"""What is measured: PPO beside TRL's, SFT and DPO beside TRL called directly, three ways of sampling."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from training.bench.workers import ROOT, peer_python, workers
from training.chat_model import ModelConfig, SamplingConfig, new_model, read_tokenizer, write_model
from training.demo import demo_prompts
from training.reward_model import RewardModel, unnormalised
from training.rl.rollout import prompt_tokens

Figures = dict[str, Any]
PEER = ROOT / "training" / "bench" / "peer_trl.py"


@dataclass(frozen=True)
class Plan:
    """Where to keep files, how many rounds, and the sizes that both sides get.

    `peer` is a Python that has TRL 1.12; without one an environment is made. On a CPU rates are of CPU time,
    on another device of time.
    """

    home: Path
    rounds: int = 3
    device: str = "cpu"
    peer: Path | None = None
    model: Path = ROOT / "checkpoints" / "demo-chat"
    rollouts: int = 64
    max_new_tokens: int = 64
    epochs: int = 4
    minibatches: int = 4
    say: Callable[[str], None] = print

    @property
    def clock(self) -> str:
        """Which of a turn's times counts."""
        return "cpu_s" if self.device == "cpu" else "wall_s"


def ppo(plan: Plan) -> Figures:
    """Whole PPO steps, ours beside TRL's, for replies of three kinds."""
    python = str(plan.peer) if plan.peer else peer_python(plan.home)
    chat = _job(plan, plan.model, "chat")
    found = {f"replies of the chat model, {p}": _ppo_rounds(plan, python, chat, p) for p in ("fp32", "bf16")}
    if plan.device == "cpu":
        endless = _job(plan, _endless(plan, {}), "endless")
        return found | {"replies that never end, fp32": _ppo_rounds(plan, python, endless, "fp32")}
    large = _job(plan, _endless(plan, _LARGE), "large")
    what = "replies that never end, 0.27B parameters, bf16"
    return found | {what: _ppo_rounds(plan, python, large, "bf16")}


def _ppo_rounds(plan: Plan, python: str, job: Figures, precision: str) -> Figures:
    files: dict[str, Path] = {}
    for name, value in (("keel", "shared"), ("keel, separate value model", "separate"), ("trl", "separate")):
        files[name] = plan.home / f"job-{len(files)}.json"
        files[name].write_text(json.dumps(job | {"precision": precision, "value": value}))
    own = [sys.executable, "-m", "training.bench.own_ppo"]
    commands: dict[str, Sequence[str]] = {
        "keel": [*own, str(files["keel"])],
        "keel, separate value model": [*own, str(files["keel, separate value model"])],
        "trl": [python, str(PEER), str(files["trl"])],
    }
    return _take_turns(plan, commands, over="trl")


def rollouts(plan: Plan) -> Figures:
    """Sampling alone: in process, transformers' generate(), vLLM."""
    file = plan.home / "job-rollouts.json"
    file.write_text(json.dumps(_job(plan, plan.model, "chat") | {"rollouts": 64}))
    own = [sys.executable, "-m", "training.bench.own_rollouts", str(file)]
    ways = ("keel", "generate", "vllm") if plan.device == "cpu" else ("keel", "generate")
    commands: dict[str, Sequence[str]] = {way: [*own, way] for way in ways}
    return _take_turns(plan, commands, over="generate")


def beside_trl(plan: Plan) -> Figures:
    """SFT and DPO in seconds, ours and TRL's in turns of one process each."""
    found: Figures = {}
    commands: dict[str, Sequence[str]] = {}
    for method in ("sft", "dpo"):
        file = plan.home / f"job-{method}.json"
        file.write_text(json.dumps({"model": str(plan.model), "method": method, "device": plan.device}))
        commands[method] = [sys.executable, "-m", "training.bench.own_beside_trl", str(file)]
    with workers(commands, plan.home) as running:
        taken = {
            method: [worker.turn() for _ in range(plan.rounds + 1)][1:]  # the first compiles and imports
            for method, worker in running.items()
        }
    for method, turns in taken.items():
        ours, theirs = ([turn[f"{who} {method}"][plan.clock] for turn in turns] for who in ("own", "trl"))
        found[method] = {
            "own_s": statistics.median(ours),
            "trl_s": statistics.median(theirs),
            "ratio": _spread([a / b for a, b in zip(ours, theirs, strict=True)]),
        }
        plan.say(f"  {method}: {found[method]}")
    return found


def _take_turns(plan: Plan, commands: dict[str, Sequence[str]], over: str) -> Figures:
    """Each command once a round, after a round that isn't counted; ratios are taken round by round."""
    seen: dict[str, list[Figures]] = {name: [] for name in commands}
    with workers(commands, plan.home) as running:
        for number in range(plan.rounds + 1):
            for name, worker in running.items():
                turn = worker.turn()
                plan.say(f"  round {number} {name}: {turn}")
                if number:
                    seen[name].append(turn)
    result: Figures = {}
    for name, turns in seen.items():
        rates = [turn["tokens"] / turn[plan.clock] for turn in turns]
        base = [turn["tokens"] / turn[plan.clock] for turn in seen[over]]
        result[name] = {
            "rate": statistics.median(rates),
            "tokens_per_s": statistics.median(turn["tokens"] / turn["wall_s"] for turn in turns),
            "tokens": statistics.median(turn["tokens"] for turn in turns),
            "memory_mib": max(turn.get("rss_mib", 0.0) or turn["peak_mib"] for turn in turns),
            "ratio": _spread([a / b for a, b in zip(rates, base, strict=True)]),
        }
    return result


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _job(plan: Plan, model: Path, name: str) -> Figures:
    """What both sides are given: model, reward model of the same size, prompts, sizes."""
    tokenizer = read_tokenizer(model)
    reward = plan.home / f"reward-{name}"
    torch.manual_seed(0)
    backbone = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    RewardModel(backbone, tokenizer, unnormalised("causal", ["overall"], None, 512)).save(reward)
    prompts = demo_prompts(512, 0)
    return {
        "device": plan.device,
        "model": str(model),
        "reward": str(reward),
        "scratch": str(plan.home / "scratch"),
        "texts": [prompt[0].content for prompt in prompts],
        "prompts": [list(ids) for ids in prompt_tokens(tokenizer, prompts)],
        "rollouts": plan.rollouts,
        "max_new_tokens": plan.max_new_tokens,
        "epochs": plan.epochs,
        "minibatches": plan.minibatches,
        "steps": plan.rounds + 2,
        "learning_rate": 1e-6,
    }


# A shape for devices on which the demo model's steps are nothing but the starting of kernels.
_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def _endless(plan: Plan, other: Mapping[str, int]) -> Path:
    """The model's shape, or another, with random weights: one reply in a hundred ends before the limit."""
    place = plan.home / "endless"
    tokenizer = read_tokenizer(plan.model)
    shape = json.loads((plan.model / "config.json").read_text()) | other
    model = new_model(ModelConfig(**{name: shape[name] for name in ModelConfig.model_fields}), tokenizer, 0)
    write_model(place, model, tokenizer, SamplingConfig())
    return place
