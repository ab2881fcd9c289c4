"""Proximal policy optimisation with a KL penalty, for language models.

For prompts x, replies y ~ π and a score r(x, y) it maximises

    E[ r(x, y) - β log π(y|x) / π_ref(y|x) ]

(Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155). A step samples replies from
π_old, gives token t the reward -β KL_t, the last one the score as well, makes advantages A and returns R of
them (`training.rl.advantages`), and then, for some epochs of minibatches, minimises per token

    max(-ρ A, -clip(ρ, 1 ± c) A) + c_V ½ max((V - R)², (clip(V, V_old ± c_v) - R)²) - c_H H(π) + c_ptx L_ptx

with ρ = π/π_old (Schulman et al. 2017, arXiv:1707.06347). π is at the sampling temperature throughout. The
loss is the mean over the minibatch's tokens, however they are cut into micro-batches. L_ptx is the
language-modelling loss on conversations (PPO-ptx, Ouyang et al. 2022).

Several processes share each step's replies and take the step that one would (`training.rl.processes`).

Left out: weights that are sharded over processes; separate learning rates for policy and value; replay of
older rollouts, which the ratio would have to pay for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.manifest import DataSource
from training.data.epochs import steps_from
from training.data.mixture import load_mixture
from training.data.packing import Batch, collate
from training.data.preferences import Prompt
from training.data.render import Example, render_within
from training.errors import ConfigError, TrainingError
from training.losses.language_model import next_token_loss, shifted_positions
from training.losses.policy_gradient import clipped_policy_loss, clipped_value_loss
from training.methods.ppo_config import PpoConfig
from training.models import check_fits, reference_of
from training.optimization import build_optimizers, set_learning_rate
from training.reward_model import RewardFunction
from training.rl.actor_critic import ActorCritic, gathered
from training.rl.experience import Experience, step_seed
from training.rl.kl import kl_estimate
from training.rl.loop import Training, minibatches, sampler_for
from training.rl.processes import ALONE, Processes
from training.rl.replies import length_buckets, reply_batch
from training.rl.run import Loaded, on_policy_command, run_on_policy
from training.run_directory import RunDirectory

# An epoch ends once the policy is this many times `target_kl` away.
_KL_SLACK = 1.5


@dataclass(frozen=True, slots=True)
class PpoResult:
    """`model` is the one that was given, trained in place. `history` has one record a step: `reward`, `kl`
    (nats a reply), `entropy`, `clip_fraction`, `explained_variance`, … (docs/training/ppo.md lists all)."""

    model: PreTrainedModel
    actor: ActorCritic
    history: list[dict[str, float]]


def train_ppo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: PpoConfig,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    *,
    pretraining: Sequence[Example] = (),
    run: RunDirectory | Path | None = None,
    stop_after: int | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> PpoResult:
    """Train `model` in place on replies to `prompts`; the reference is the model as it comes in.

    With `run`, metrics and checkpoints are kept there, and an earlier run with the same config goes on.
    Each of several `processes` calls this with the same arguments, and ends with the same model.
    `pretraining` are rendered conversations for `config.pretraining`. `on_step` is told each step's figures.
    """
    check_fits(model, tokenizer)
    if bool(pretraining) != (config.pretraining is not None):
        raise TrainingError("PPO-ptx takes both: config.pretraining and the conversations")
    if isinstance(run, Path):
        run = RunDirectory(run)
    if run is not None:
        run.bind(config.model_dump(mode="json"))
    reference = reference_of(model)
    actor = ActorCritic(model, config.value)
    mix = None if config.pretraining is None else _Pretraining(pretraining, tokenizer, config)
    learner = PpoLearner(actor, config, mix, processes)
    with sampler_for(actor, tokenizer, config, run, processes) as sampler:
        history = Training(
            learner=learner,
            reference=reference,
            sampler=sampler,
            reward=reward,
            prompts=prompts,
            config=config,
            run=run,
            reference_every=config.reference_every,
            stop_after=stop_after,
            on_step=on_step,
            progress=progress,
            processes=processes,
        ).train()
    return PpoResult(model, actor, history)


class PpoLearner:
    """The update. `epochs` passes over the step's replies, each in `minibatches` optimizer steps."""

    def __init__(
        self,
        actor: ActorCritic,
        config: PpoConfig,
        pretraining: _Pretraining | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.actor = actor
        self.optimizers = build_optimizers(actor, config.optimizer)
        self._config = config
        self._pretraining = pretraining
        self._processes = processes

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        config = self._config
        rate = config.optimizer.learning_rate * config.schedule.factor(step, config.steps)
        set_learning_rate(self.optimizers, rate)
        sums = _Sums()
        stopped = 0.0
        for epoch in range(config.epochs):
            seed = step_seed(config.seed, step) + epoch
            for part, rows in enumerate(minibatches(len(experience.rollouts), config.minibatches, seed)):
                batches = self._pretraining_batches(step, epoch, part)
                if not self._minibatch(experience, rows, batches, sums):
                    stopped = 1.0
                    break
            if stopped:
                break
        return {**sums.means(self._processes), "lr": rate, "early_stop": stopped}

    def _minibatch(
        self, experience: Experience, rows: Sequence[int], pretraining: Sequence[Batch], sums: _Sums
    ) -> bool:
        """One optimizer step; False, and no step, where the policy has gone too far from the sampling one."""
        config = self._config
        count = int(experience.rollouts.lengths_B[list(rows)].sum())
        own, kl = self._processes.share(rows), 0.0
        for bucket in length_buckets(experience.rollouts, own, config.micro_batch_tokens):
            terms = self._terms(experience, bucket)
            (terms.loss(config).sum() / count).backward()  # type: ignore[no-untyped-call]
            sums.add(terms)
            kl += float(terms.drift_N.sum()) / count
        if config.target_kl is not None and self._processes.figures([kl])[0] > _KL_SLACK * config.target_kl:
            self._zero()
            return False
        if config.pretraining is not None and self._processes.main:
            sums.pretraining_loss = self._add_pretraining(pretraining, config.pretraining.coef)
        self._processes.add_gradients(self.actor.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(self.actor.parameters(), config.optimizer.clip_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                "the gradient is not finite; lower the learning rate, or clip rewards with reward_clip"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero()
        sums.grad_norm += norm
        sums.updates += 1
        return True

    def _terms(self, experience: Experience, rows: Sequence[int]) -> _Terms:
        config, mask_BT = self._config, experience.mask_BT
        batch = reply_batch(experience.rollouts, rows, self.actor.device)
        with torch.autocast(self.actor.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            scores = self.actor.score(batch, config.sample.temperature)

        def told(values_BT: Tensor) -> Tensor:
            return gathered(values_BT, mask_BT, rows).to(self.actor.device)

        old_N = told(experience.logprobs_BT)
        return _Terms(
            policy_N=clipped_policy_loss(
                scores.logprobs_N, old_N, told(experience.advantages_BT), config.clip
            ),
            value_N=clipped_value_loss(
                scores.values_N,
                told(experience.values_BT),
                told(experience.returns_BT),
                config.value_clip,
            ),
            entropy_N=scores.entropy_N,
            ratio_N=(scores.logprobs_N.detach() - old_N).exp(),
            drift_N=kl_estimate(old_N, scores.logprobs_N.detach(), "k3"),
            clip=config.clip,
        )

    def _add_pretraining(self, batches: Sequence[Batch], coef: float) -> float:
        """Add the gradient of the language-modelling loss; returns the loss per supervised token."""
        parts = self.actor.parts
        count = sum(len(shifted_positions(batch.supervised_BT)) for batch in batches)
        total = 0.0
        for batch in batches:
            positions_N = shifted_positions(batch.supervised_BT)
            output = parts.decoder(
                input_ids=batch.input_ids_BT,
                position_ids=batch.position_ids_BT,
                attention_mask=batch.attention_B1TT,
                use_cache=False,
            )
            hidden_ND = output.last_hidden_state.flatten(0, 1)[positions_N]
            targets_N = batch.input_ids_BT.roll(-1, dims=1).flatten()[positions_N]
            weight_VD: Any = parts.unembedding.weight
            loss = next_token_loss(hidden_ND, weight_VD, targets_N)
            (coef * loss / count).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total / count

    def _pretraining_batches(self, step: int, epoch: int, part: int) -> Sequence[Batch]:
        if self._pretraining is None:
            return ()
        config = self._config
        return self._pretraining.batches((step * config.epochs + epoch) * config.minibatches + part)

    def _zero(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class _Terms:
    """Per-token terms of one micro-batch. `drift_N` estimates KL(π_old ‖ π) (k3, of what π_old drew)."""

    policy_N: Tensor
    value_N: Tensor
    entropy_N: Tensor
    ratio_N: Tensor
    drift_N: Tensor
    clip: float

    def loss(self, config: PpoConfig) -> Tensor:
        loss_N = self.policy_N + config.value_coef * self.value_N
        return loss_N - config.entropy_coef * self.entropy_N if config.entropy_coef else loss_N


_MEANS = ("policy_loss", "value_loss", "entropy", "ratio_mean", "approx_kl", "clip_fraction")


class _Sums:
    """Sums over a step's tokens, and means of them."""

    def __init__(self) -> None:
        self._tokens = 0
        self._totals = dict.fromkeys(_MEANS, 0.0)
        self._ratio_low, self._ratio_high = math.inf, -math.inf
        self._first_ratio_error = 0.0
        self.grad_norm = 0.0
        self.updates = 0
        self.pretraining_loss: float | None = None

    def add(self, terms: _Terms) -> None:
        ratio_N = terms.ratio_N
        if self.updates == 0:
            error = float((ratio_N - 1).abs().max())
            self._first_ratio_error = max(error, self._first_ratio_error)
        self._tokens += len(ratio_N)
        self._ratio_low = min(self._ratio_low, float(ratio_N.min()))
        self._ratio_high = max(self._ratio_high, float(ratio_N.max()))
        clipped_N = ((ratio_N - 1).abs() > terms.clip).float()
        told = (terms.policy_N, terms.value_N, terms.entropy_N, ratio_N, terms.drift_N, clipped_N)
        for name, values_N in zip(_MEANS, told, strict=True):
            self._totals[name] += float(values_N.detach().sum())

    def means(self, processes: Processes) -> dict[str, float]:
        """Of all processes' tokens; each of them learns it."""
        tokens, *totals = processes.figures([self._tokens, *self._totals.values()])
        figures = {name: total / tokens for name, total in zip(_MEANS, totals, strict=True)}
        (figures["ratio_min"],) = processes.figures([self._ratio_low], "min")
        highest = processes.figures([self._ratio_high, self._first_ratio_error], "max")
        figures |= dict(zip(("ratio_max", "first_ratio_error"), highest, strict=True))
        figures["grad_norm"] = self.grad_norm / max(self.updates, 1)
        figures["updates"] = float(self.updates)
        if self.pretraining_loss is not None:
            figures["pretraining_loss"] = self.pretraining_loss
        return figures


class _Pretraining:
    """Packed conversations for PPO-ptx; which ones a minibatch gets follows from its number alone."""

    def __init__(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, config: PpoConfig
    ) -> None:
        assert config.pretraining is not None  # noqa: S101  the caller has looked
        self._examples, self._mix, self._seed = examples, config.pretraining, config.seed
        self._pad_id = int(tokenizer.pad_token_id)
        self._supply: Any = None
        self._next = -1

    def batches(self, number: int) -> list[Batch]:
        if self._supply is None or number != self._next:
            mix = self._mix
            self._supply = steps_from(self._examples, self._seed, mix.row_length, mix.rows, number)
        self._next = number + 1
        return [collate(next(self._supply), self._mix.row_length, self._pad_id)]


def run_ppo(config: PpoConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train (or go on), and write `run_path/final` with its record; returns that folder."""

    def train(loaded: Loaded) -> tuple[DataSource, ...]:
        examples, sources = _conversations(config, data_root, loaded.tokenizer)
        train_ppo(
            loaded.model,
            loaded.tokenizer,
            config,
            loaded.prompts,
            loaded.reward,
            pretraining=examples,
            run=run_path,
            progress=True,
            processes=loaded.processes,
        )
        return sources

    return run_on_policy("ppo", config, data_root, run_path, train)


def _conversations(
    config: PpoConfig, data_root: Path, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[Example], tuple[DataSource, ...]]:
    """What PPO-ptx mixes in, rendered, and where it is from."""
    mix = config.pretraining
    if mix is None:
        return [], ()
    if mix.data is None:
        raise ConfigError("pretraining.data: name the conversations to mix in")
    mixture = load_mixture(mix.data, data_root, config.seed)
    rendered = [render_within(c, tokenizer, mix.row_length) for c in mixture.train]
    return [e for e in rendered if e is not None and any(e.supervised[1:])], mixture.data


def main(argv: Sequence[str]) -> int:
    description = "Proximal policy optimisation against a reward model."
    return on_policy_command("ppo", description, PpoConfig, run_ppo, argv)
