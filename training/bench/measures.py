"""What is measured: PPO beside TRL's, SFT and DPO beside TRL called directly, three ways of sampling."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
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
    """Where to keep files, how many rounds, and the sizes that both sides get."""

    home: Path
    rounds: int = 3
    model: Path = ROOT / "checkpoints" / "demo-chat"
    rollouts: int = 64
    max_new_tokens: int = 64
    epochs: int = 4
    minibatches: int = 4
    say: Callable[[str], None] = print


def ppo(plan: Plan) -> Figures:
    """Whole PPO steps, ours beside TRL's, for replies of three kinds."""
    python = peer_python(plan.home)
    chat, endless = _job(plan, plan.model, "chat"), _job(plan, _endless(plan), "endless")
    return {
        "replies of the chat model, fp32": _ppo_rounds(plan, python, chat, "fp32"),
        "replies of the chat model, bf16": _ppo_rounds(plan, python, chat, "bf16"),
        "replies that never end, fp32": _ppo_rounds(plan, python, endless, "fp32"),
    }


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
    commands: dict[str, Sequence[str]] = {way: [*own, way] for way in ("keel", "generate", "vllm")}
    return _take_turns(plan, commands, over="generate")


def beside_trl(plan: Plan) -> Figures:
    """SFT and DPO, seconds of CPU, in turns of one process each."""
    found: Figures = {}
    for method in ("sft", "dpo"):
        file = plan.home / f"job-{method}.json"
        file.write_text(json.dumps({"model": str(plan.model), "method": method}))
        argv = [sys.executable, "-m", "training.bench.own_beside_trl", str(file)]
        with workers({method: argv}, plan.home) as running:
            running[method].turn()  # what is imported and compiled on first use
            turns = [running[method].turn() for _ in range(plan.rounds)]
        ours, theirs = ([turn[f"{who} {method}"]["cpu_s"] for turn in turns] for who in ("own", "trl"))
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
        rates = [turn["tokens"] / turn["cpu_s"] for turn in turns]
        base = [turn["tokens"] / turn["cpu_s"] for turn in seen[over]]
        result[name] = {
            "tokens_per_cpu_s": statistics.median(rates),
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


def _endless(plan: Plan) -> Path:
    """A model of the same shape with random weights: one reply in a hundred ends before the limit."""
    place = plan.home / "endless"
    tokenizer = read_tokenizer(plan.model)
    shape = json.loads((plan.model / "config.json").read_text())
    model = new_model(ModelConfig(**{name: shape[name] for name in ModelConfig.model_fields}), tokenizer, 0)
    write_model(place, model, tokenizer, SamplingConfig())
    return place
