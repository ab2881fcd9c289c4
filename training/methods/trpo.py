"""Trust region policy optimisation, for language models (Schulman et al. 2015, arXiv:1502.05477).

The objective and a step's experience are PPO's (`training.methods.ppo`, `training.rl.experience`). Instead of
clipping ratios, each step maximises the surrogate

    L(θ) = mean over reply tokens of  π_θ/π_old · A        subject to   mean KL(π_old(·|s) ‖ π_θ(·|s)) ≤ δ

by one natural-gradient step (`training.rl.trust_region`). The KL is between whole distributions over the
vocabulary at every token, not an estimate from what was drawn, and is measured over all of the step's tokens
before a step is kept: that it is at most δ is asserted. Fisher-vector products differentiate it twice, on
`fisher_rows` of the replies.

The value function must not move the policy outside the trust region: the shared kind is a linear head that
reads the trunk without training it, the separate kind a trunk of its own; both are fitted to the returns by
Adam after the policy's step.

Left out: bfloat16, in which Fisher-vector products are mostly rounding; PPO-ptx and entropy bonuses, which
are not part of the constrained problem; moving references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.manifest import DataSource
from training.data.preferences import Prompt
from training.errors import TrainingError
from training.losses.policy_gradient import token_logprobs
from training.models import check_fits, reference_of
from training.reward_model import RewardFunction
from training.rl.actor_critic import ActorCritic, gathered
from training.rl.causal import evaluating
from training.rl.config import OnPolicyConfig
from training.rl.experience import Experience, step_seed
from training.rl.loop import Training, minibatches, sampler_for
from training.rl.processes import ALONE, Processes
from training.rl.replies import length_buckets, reply_batch, reply_hidden
from training.rl.run import Loaded, on_policy_command, run_on_policy
from training.rl.trust_region import (
    StepReport,
    TrustRegionConfig,
    assign,
    flat,
    kl_hessian_product,
    trust_region_step,
)
from training.run_directory import RunDirectory


class TrpoConfig(OnPolicyConfig):
    """`fisher_rows` replies estimate the curvature; None takes all of them."""

    region: TrustRegionConfig = TrustRegionConfig()
    fisher_rows: int | None = Field(default=16, ge=1)
    value_epochs: int = Field(default=4, ge=0)
    value_minibatches: int = Field(default=4, ge=1)
    value_learning_rate: float = Field(default=1e-2, gt=0)

    @model_validator(mode="after")
    def _exact(self) -> TrpoConfig:
        if self.precision != "fp32":
            raise ValueError("TRPO's curvature needs precision: fp32")
        return self


@dataclass(frozen=True, slots=True)
class TrpoResult:
    """`model` is the one that was given, trained in place. `history` has one record a step: PPO's of the
    replies, and `step_kl`, `improvement`, `accepted`, `backtracks`, `cg_residual`."""

    model: PreTrainedModel
    actor: ActorCritic
    history: list[dict[str, float]]


def train_trpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: TrpoConfig,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    *,
    run: RunDirectory | Path | None = None,
    stop_after: int | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> TrpoResult:
    """Train `model` in place on replies to `prompts`; the reference is the model as it comes in.

    Each of several `processes` calls this with the same arguments, and ends with the same model.
    """
    check_fits(model, tokenizer)
    if isinstance(run, Path):
        run = RunDirectory(run)
    if run is not None:
        run.bind(config.model_dump(mode="json"))
    reference = reference_of(model)
    actor = ActorCritic(model, config.value)
    with sampler_for(actor, tokenizer, config, run, processes) as sampler:
        history = Training(
            learner=TrpoLearner(actor, config, processes),
            reference=reference,
            sampler=sampler,
            reward=reward,
            prompts=prompts,
            config=config,
            run=run,
            stop_after=stop_after,
            on_step=on_step,
            progress=progress,
            processes=processes,
        ).train()
    return TrpoResult(model, actor, history)


class TrpoLearner:
    """One constrained step of the policy, then some epochs of the value function."""

    def __init__(self, actor: ActorCritic, config: TrpoConfig, processes: Processes = ALONE) -> None:
        self.actor = actor
        self._processes = processes
        self._config = config
        self._policy = [p for p in actor.policy.parameters() if p.requires_grad]
        values = [p for n, p in actor.named_parameters() if not n.startswith("policy.") and p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(values, config.value_learning_rate)]

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        report = self._policy_step(experience, step)
        if report.kl > self._config.region.max_kl:
            raise TrainingError(
                f"step {step + 1} has a KL of {report.kl}, more than {self._config.region.max_kl}"
            )
        loss = self._value_steps(experience, step)
        return {
            "step_kl": report.kl,
            "improvement": report.improvement,
            "expected_improvement": report.expected,
            "accepted": float(report.accepted),
            "backtracks": float(report.backtracks),
            "cg_residual": report.residual,
            "value_loss": loss,
        }

    def _policy_step(self, experience: Experience, step: int) -> StepReport:
        """Dropout is off: the distribution that is compared must be the one that sampled."""
        actor = self.actor
        was_training = actor.training
        actor.train(False)
        try:
            # Only this implementation of attention can be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH):
                gradient_P = self._gradient(experience)
                fisher_rows = self._fisher_rows(experience, step)
                return trust_region_step(
                    self._policy,
                    gradient_P,
                    lambda vector_P: self._fisher_product(experience, fisher_rows, vector_P),
                    lambda old_P: self._measure(experience, old_P),
                    self._config.region,
                )
        finally:
            actor.train(was_training)

    def _gradient(self, experience: Experience) -> Tensor:
        """Of the surrogate at the old policy, where it is the policy gradient."""
        total_P = torch.zeros(sum(p.numel() for p in self._policy), device=self.actor.device)
        for rows in self._buckets(experience):
            logits_NV, targets_N = self._logits(experience, rows)
            logprobs_N, _ = token_logprobs(logits_NV, targets_N)
            ratio_N = (logprobs_N - logprobs_N.detach()).exp()
            surrogate = (ratio_N * self._told(experience, experience.advantages_BT, rows)).sum()
            gradients = torch.autograd.grad(surrogate, self._policy)
            total_P += flat(gradients)
        self._processes.add_up(total_P)
        return total_P / experience.rollouts.tokens

    def _fisher_rows(self, experience: Experience, step: int) -> list[int]:
        count = len(experience.rollouts)
        generator = torch.Generator().manual_seed(step_seed(self._config.seed, step))
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order[: self._config.fisher_rows or count]

    def _fisher_product(self, experience: Experience, chosen: Sequence[int], vector_P: Tensor) -> Tensor:
        total_P = torch.zeros_like(vector_P)
        count = int(experience.rollouts.lengths_B[list(chosen)].sum())
        for rows in self._buckets(experience, chosen):
            logits_NV, _ = self._logits(experience, rows)
            logp_NV = logits_NV.log_softmax(dim=-1)
            old_NV = logp_NV.detach()
            kl = (old_NV.exp() * (old_NV - logp_NV)).sum() / count
            total_P += kl_hessian_product(kl, self._policy, vector_P)
        self._processes.add_up(total_P)
        return total_P

    @torch.no_grad()
    def _measure(self, experience: Experience, old_P: Tensor) -> tuple[float, float]:
        """(growth of the surrogate, mean KL from the old policy) of the policy as it is, over all tokens."""
        new_P = flat([p.detach() for p in self._policy])
        growth = kl = 0.0
        for rows in self._buckets(experience):
            assign(self._policy, old_P)
            logits_NV, targets_N = self._logits(experience, rows)
            old_NV = logits_NV.log_softmax(dim=-1)
            assign(self._policy, new_P)
            new_NV = self._logits(experience, rows)[0].log_softmax(dim=-1)
            kl += float((old_NV.exp() * (old_NV - new_NV)).sum())
            ratio_N = (new_NV - old_NV).gather(1, targets_N[:, None]).squeeze(1).exp()
            growth += float(((ratio_N - 1) * self._told(experience, experience.advantages_BT, rows)).sum())
        growth, kl = self._processes.figures([growth, kl])
        return growth / experience.rollouts.tokens, kl / experience.rollouts.tokens

    def _value_steps(self, experience: Experience, step: int) -> float:
        """Fit values to returns by their mean squared error; returns the last epoch's, halved."""
        config, losses = self._config, [0.0]
        for epoch in range(config.value_epochs):
            losses = []
            seed = step_seed(config.seed, step) + epoch
            for part in minibatches(len(experience.rollouts), config.value_minibatches, seed):
                losses.append(self._value_step(experience, part))
        return sum(losses) / len(losses)

    def _value_step(self, experience: Experience, part: Sequence[int]) -> float:
        total, count = 0.0, int(experience.rollouts.lengths_B[list(part)].sum())
        for rows in self._buckets(experience, part):
            values_N = self._values(experience, rows)
            errors_N = values_N - self._told(experience, experience.returns_BT, rows)
            loss = 0.5 * errors_N.square().sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self._processes.add_gradients(self.actor.parameters())
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self._processes.figures([total])[0]

    def _values(self, experience: Experience, rows: Sequence[int]) -> Tensor:
        """Values with gradients for the head and a separate trunk, none for the policy."""
        actor = self.actor
        batch = reply_batch(experience.rollouts, rows, actor.device)
        if actor.value_trunk is not None:
            return actor.read_values(batch)
        with evaluating(actor.policy):
            hidden_ND = reply_hidden(actor.parts, batch)
        return actor.head(hidden_ND.detach()).squeeze(-1)  # type: ignore[no-any-return]

    def _logits(self, experience: Experience, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(logits at the sampling temperature [N, V], what was drawn [N])."""
        batch = reply_batch(experience.rollouts, rows, self.actor.device)
        logits_NV = self.actor.parts.unembed(reply_hidden(self.actor.parts, batch))
        return logits_NV.float() / self._config.sample.temperature, batch.targets_N

    def _told(self, experience: Experience, values_BT: Tensor, rows: Sequence[int]) -> Tensor:
        return gathered(values_BT, experience.mask_BT, rows).to(self.actor.device)

    def _buckets(self, experience: Experience, rows: Sequence[int] | None = None) -> list[list[int]]:
        """This process's share of the rows, or of all replies, in micro-batches."""
        own = self._processes.share(range(len(experience.rollouts)) if rows is None else rows)
        return length_buckets(experience.rollouts, own, self._config.micro_batch_tokens)


def run_trpo(config: TrpoConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train (or go on), and write `run_path/final` with its record; returns that folder."""

    def train(loaded: Loaded) -> tuple[DataSource, ...]:
        train_trpo(
            loaded.model,
            loaded.tokenizer,
            config,
            loaded.prompts,
            loaded.reward,
            run=run_path,
            progress=True,
            processes=loaded.processes,
        )
        return ()

    return run_on_policy("trpo", config, data_root, run_path, train)


def main(argv: Sequence[str]) -> int:
    description = "Trust region policy optimisation against a reward model."
    return on_policy_command("trpo", description, TrpoConfig, run_trpo, argv)
