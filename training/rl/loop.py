"""The loop of on-policy methods: sample, score, update, keep; and going on exactly where a run was killed.

All chance of a step comes from (seed, step), so a checkpoint needs no generator's state: weights, the
optimizers' state and the KL coefficient are all there is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from transformers import PreTrainedTokenizerFast

from training.data.preferences import Prompt
from training.errors import ConfigError, TrainingError
from training.models import Reference
from training.reporting import Reports
from training.reward_model import RewardFunction
from training.rl.actor_critic import ActorCritic
from training.rl.config import OnPolicyConfig
from training.rl.experience import Experience, Sampler, collect, prompts_of_step, step_seed
from training.rl.processes import ALONE, Processes
from training.rl.rollout import Rollouts, generate
from training.rl.vllm import vllm_sampler
from training.run_directory import RunDirectory, restore


class Learner(Protocol):
    """What makes one method different from another: how the policy follows from a step's experience."""

    actor: ActorCritic
    optimizers: list[torch.optim.Optimizer]

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Change the policy; returns figures about the change."""


@dataclass(slots=True)
class Training:
    """One training's parts. `reference_every` moves the reference; `stop_after` ends it after so many steps
    of this call, as an interruption would. Of several `processes` the first writes, all resume."""

    learner: Learner
    reference: Reference
    sampler: Sampler
    reward: RewardFunction
    prompts: Sequence[Prompt]
    config: OnPolicyConfig
    run: RunDirectory | None = None
    reference_every: int | None = None
    stop_after: int | None = None
    on_step: Callable[[dict[str, float]], None] | None = None
    progress: bool = False
    processes: Processes = ALONE

    def train(self) -> list[dict[str, float]]:
        """All remaining steps; returns every step's figures, those of earlier calls on `run` included."""
        if not self.prompts:
            raise TrainingError("no prompts: there is nothing to reply to")
        config, seeds = self.config, torch.random.fork_rng(devices=[])
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        start, kl_coef, history = self._resume()
        shown = self.progress and self.processes.main
        end = config.steps if self.stop_after is None else min(config.steps, start + self.stop_after)
        with seeds, self._reports() as reports, _Bar(config.steps, start, shown) as bar:
            for step in range(start, end):
                record, kl_coef = self._step(step, kl_coef)
                history.append(record)
                reports.log(step + 1, record)
                bar.advance(record)
                if self.on_step is not None:
                    self.on_step(record)
                if self.run is not None and self.processes.main:
                    self.run.log(record)
                    if (step + 1) % config.checkpoint_every == 0 or step + 1 == end:
                        state = {"kl_coef": kl_coef}
                        self.run.save(step + 1, self._saved(), self.learner.optimizers, state)
        self.processes.wait()
        return history

    def _step(self, step: int, kl_coef: float) -> tuple[dict[str, float], float]:
        """One step; returns its figures and the next step's KL coefficient."""
        config, actor = self.config, self.learner.actor
        torch.manual_seed(step_seed(config.seed, step))  # what dropout draws from
        began = time.perf_counter()
        prompts = prompts_of_step(self.prompts, config.rollouts, config.seed, step)
        experience = collect(
            actor,
            self.reference,
            self.reward,
            self.sampler,
            prompts,
            config,
            step=step,
            kl_coef=kl_coef,
            processes=self.processes,
        )
        collected = time.perf_counter()
        figures = self.learner.update(experience, step)
        finished = time.perf_counter()
        if bad := [name for name, value in figures.items() if math.isinf(value)]:
            raise TrainingError(f"step {step + 1}: {', '.join(bad)} grew beyond all bounds; lower the rate")
        if self.reference_every is not None and (step + 1) % self.reference_every == 0:
            with self.reference.weights() as frozen:
                frozen.load_state_dict(actor.policy.state_dict())
        timing = {
            "collect_s": collected - began,
            "update_s": finished - collected,
            "tokens_per_s": experience.rollouts.tokens / (finished - began),
        }
        record = {"step": step + 1, **experience.figures, **figures, **timing}
        return record, config.kl.adapted(kl_coef, experience.figures["kl"])

    def _saved(self) -> nn.Module:
        """What a checkpoint holds: policy and value function, and the reference where it moves."""
        if self.reference_every is None:
            return self.learner.actor
        with self.reference.weights() as frozen:
            return nn.ModuleDict({"actor": self.learner.actor, "reference": frozen})

    def _resume(self) -> tuple[int, float, list[dict[str, float]]]:
        """(steps done, KL coefficient, their records) of the newest complete checkpoint, or a fresh start."""
        place = self.run.latest() if self.run is not None else None
        if self.run is None or place is None:
            return 0, self.config.kl.coef, []
        state: dict[str, Any] = restore(place, self._saved(), self.learner.optimizers)
        if self.processes.main:
            self.run.rewind(state["step"])
        self.processes.wait()
        lines = self.run.metrics.read_text(encoding="utf-8").splitlines()
        return state["step"], state["kl_coef"], [json.loads(line) for line in lines]

    def _reports(self) -> Reports:
        destinations = self.config.report_to if self.run is not None and self.processes.main else ()
        path = self.run.path if self.run is not None else None
        return Reports(path, destinations, self.config.name)  # type: ignore[arg-type]  # unused without any


@contextmanager
def sampler_for(
    actor: ActorCritic,
    tokenizer: PreTrainedTokenizerFast,
    config: OnPolicyConfig,
    run: RunDirectory | None,
    processes: Processes = ALONE,
) -> Iterator[Sampler]:
    """The sampler that the config asks for; a vLLM that is started for it ends with the block."""
    if config.vllm is None:
        yield in_process(actor, tokenizer, config, processes)
        return
    if processes.size > 1:
        raise ConfigError(
            "vllm: rollouts through vLLM are for a training of one process; leave `vllm` out, so that each "
            f"of the {processes.size} processes samples its share, or start the training without a launcher"
        )
    with vllm_sampler(config.vllm, actor.policy, tokenizer, config.sample, run) as sampler:
        yield sampler


def in_process(
    actor: ActorCritic,
    tokenizer: PreTrainedTokenizerFast,
    config: OnPolicyConfig,
    processes: Processes = ALONE,
) -> Sampler:
    """The sampler of this process, or of several that share the rows."""

    def sample(prompts: Sequence[Prompt], seed: int, weight_version: int) -> Rollouts:
        return generate(
            actor.policy,
            tokenizer,
            prompts,
            config.sample,
            seed,
            readout=actor.readout,
            weight_version=weight_version,
            dtype=torch.bfloat16 if config.precision == "bf16" else None,
            processes=processes,
        )

    return sample


class _Bar:
    """Reward, KL, steps and the time that remains, on the terminal."""

    def __init__(self, steps: int, start: int, shown: bool) -> None:
        columns = (
            TextColumn("reward {task.fields[reward]:.3f}  kl {task.fields[kl]:.3f}"),
            BarColumn(),
            MofNCompleteColumn(),
        )
        self._progress = Progress(
            *columns, TimeRemainingColumn(elapsed_when_finished=True), disable=not shown
        )
        self._task = self._progress.add_task(
            "train", total=steps, completed=start, reward=math.nan, kl=math.nan
        )

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, record: dict[str, float]) -> None:
        self._progress.update(self._task, advance=1, reward=record["reward"], kl=record["kl"])


def minibatches(count: int, parts: int, seed: int) -> Iterator[list[int]]:
    """0 … count - 1 in random order, cut into `parts` of nearly equal size."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    for part in range(parts):
        yield order[part * count // parts : (part + 1) * count // parts]
