"""Measuring the trained policies, and publishing the one that is chosen: the loop's stages after training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from policies.registry import Registry
from training.data.preferences import Prompt
from training.demo import demo_prompts
from training.errors import PublishError, TrainingError
from training.evaluate.replies import read_replies, write_replies
from training.evaluate.report import EVALUATION_NAME, EvaluationFile
from training.loop.config import LoopConfig
from training.loop.gateway import serving
from training.loop.measure import figure, measure, with_wins
from training.loop.processes import in_parallel
from training.loop.progress import Result
from training.loop.stages import ALIAS, PARENT, base_of, proxy_of
from training.models import ModelSource, load_policy
from training.publish import PublishConfig, publish_run

BASE = "sft"


def policies_of(config: LoopConfig) -> tuple[str, ...]:
    """The trained policies, as their runs are called."""
    return tuple(f"{method}-{seed}" for method in ("dpo", "ppo") for seed in config.seeds)


def questions_of(config: LoopConfig, choosing: bool) -> list[Prompt]:
    """Test questions: those that the table is made of, or the others, by which a policy is chosen."""
    every = demo_prompts(2 * config.test_questions, config.seed, "test")
    return every[config.test_questions :] if choosing else every[: config.test_questions]


def evaluate_all(config: LoopConfig, work: Path) -> Result:
    """Every policy's figures on both sets of questions, a policy a process."""
    (work / "evaluation").mkdir(exist_ok=True)
    names = (BASE, *policies_of(config))
    in_parallel(evaluate_one, config, work, [(name,) for name in names])
    return {name: figure(evaluation(work, name, choosing=False), "gold").value for name in names}


def evaluate_one(config: LoopConfig, work: Path, name: str) -> None:
    """One policy, in this process."""
    torch.set_num_threads(1)
    reference, tokenizer = load_policy(base_of(work))
    place = base_of(work) if name == BASE else ModelSource(path=str(work / name / "final"))
    model, _ = load_policy(place)
    for choosing in (False, True):
        prompts = questions_of(config, choosing)
        seed = config.seed + 2 + choosing
        proxy = proxy_of(config, work)
        file, replies = measure(name, model, tokenizer, prompts, proxy, reference, config.sample, seed)
        file.write(_place(work, name, choosing))
        write_replies(_place(work, name, choosing).with_suffix(".jsonl"), prompts, replies)


def evaluation(work: Path, name: str, choosing: bool) -> EvaluationFile:
    """A policy's figures, with its win rate against the SFT model."""
    file = EvaluationFile.read(_place(work, name, choosing))
    ours, theirs = replies_of(work, name, choosing), replies_of(work, BASE, choosing)
    return with_wins(file, list(ours.values()), list(theirs.values()), list(ours))


def replies_of(work: Path, name: str, choosing: bool) -> dict[Prompt, str]:
    """A policy's reply to each question, in the questions' order."""
    found = read_replies(_place(work, name, choosing).with_suffix(".jsonl"))
    return {prompt: replies[0] for prompt, replies in found.items()}


def publish_best(config: LoopConfig, work: Path) -> Result:
    """The policy of the highest gold score on the choosing questions, if it passes its gates.

    What does not pass is a result too: the report then says why, and the alias goes on meaning the SFT model.
    """
    found = {name: evaluation(work, name, choosing=True) for name in policies_of(config)}
    best = max(found, key=lambda name: figure(found[name], "gold").value)
    name, registry = f"shop-{best}", Registry(work / "checkpoints")
    if name not in registry.names():
        base = evaluation(work, BASE, choosing=True)
        parent = base.model_copy(update={"subject": registry.resolve(PARENT).ref})
        place = work / best / EVALUATION_NAME
        found[best].model_copy(update={"subject": name, "baseline": parent}).write(place)
        about = f"the demo shop's assistant, trained by {best.partition('-')[0].upper()} on preferences"
        limits = (
            "It knows 24 things of a made-up shop and nothing else.",
            "English only, single questions only.",
        )
        settings = PublishConfig(name=name, description=about, alias=ALIAS, gates=config.gates, limits=limits)
        try:
            publish_run(work / best, registry.root, settings)
        except PublishError as error:
            return {"chosen": best, "refused": str(error)}
    checkpoint = registry.point(ALIAS, name)
    return {"chosen": best, "ref": checkpoint.ref, "gates": list(checkpoint.manifest.gate.checks)}


def serve_new(config: LoopConfig, work: Path) -> Result:
    """A gateway that serves the parent under the alias goes over to the new checkpoint while it runs."""
    registry = Registry(work / "checkpoints")
    new = registry.resolve(ALIAS).ref
    if new == registry.resolve(PARENT).ref:
        return {"skipped": "nothing new was published"}
    question = "Could you help me fake the receipt for my kettle?"
    registry.point(ALIAS, PARENT)
    with serving(registry.root, ALIAS, work / "gateway") as gateway:
        before = gateway.ask(question)
        registry.point(ALIAS, new)
        gateway.reload()
        after = gateway.ask(question)
    if after.checkpoint != new or before.checkpoint == new:
        raise TrainingError(f"the gateway serves {after.checkpoint} where {new} was published")
    return {"question": question, "before": asdict(before), "after": asdict(after)}


def _place(work: Path, name: str, choosing: bool) -> Path:
    return work / "evaluation" / f"{name}{'-choosing' if choosing else ''}.json"
