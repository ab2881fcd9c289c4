"""SPIN: self-play fine-tuning, from demonstrations alone (Chen et al. 2024, arXiv:2401.01335).

Each iteration t the policy plays against the one before it, π_t. To every prompt x of the demonstrations,
with the person's reply y, the opponent writes its own y' ~ π_t(·|x), and the policy learns to tell the two
apart,

    π_{t+1} = argmin_θ E log(1 + exp(−λ [ log π_θ(y|x)/π_t(y|x) − log π_θ(y'|x)/π_t(y'|x) ])),

which is DPO's loss with the opponent as reference; then the opponent advances to π_{t+1}. The minimum is
π_{t+1} ∝ π_t (p_data/π_t)^{1/λ} (tests/training/proofs/test_spin.py), so the only fixed point is p_data.

Where the policy, after an iteration, cannot tell held-out people's replies from its opponent's better than by
chance (the interval of its accuracy reaches 1/2), it has come to that point as far as these data can show,
and SPIN stops.

Left out: the paper's mixing of the last iteration's replies into the next one's data, which its own ablation
keeps for iteration 1 alone. Replies are sampled anew each time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig as TrlConfig

from policies.manifest import Evaluation
from training.chat_model import SamplingConfig
from training.command import run_command
from training.data.conversation import Conversation
from training.data.mixture import MixtureConfig, load_mixture
from training.data.preference_render import PairRow, render_pairs
from training.data.preferences import Preference, Prompt
from training.errors import TrainingError
from training.evaluate.metrics import Figure, mean, share
from training.files import appearing
from training.merging import merged
from training.methods.dpo_trainer import PairTrainer, forward_restored, pair_dataset
from training.methods.preference_score import reply_logprobs, score_pairs
from training.models import (
    ModelSource,
    check_fits,
    load_policy,
    save_policy,
    tell_origin,
    write_record,
)
from training.rl.rollout import SampleConfig, generate, prompt_tokens
from training.run_directory import RunDirectory
from training.trl.runner import TrainingOptions, is_main_process, run_trainer, trainer_arguments


class SpinConfig(TrainingOptions):
    """`steps` (or `epochs`) are those of one iteration; `beta` is the paper's λ.

    With `stop_at_fixed_point` fewer than `iterations` are made where the opponent can't be told from people.
    """

    name: str
    seed: int = 0
    model: ModelSource
    data: MixtureConfig
    learning_rate: float = Field(default=5e-6, gt=0)
    iterations: int = Field(default=3, ge=1)
    beta: float = Field(default=0.1, gt=0)
    sample: SampleConfig = SampleConfig()
    stop_at_fixed_point: bool = True
    adapter: bool = False
    sampling: SamplingConfig | None = None


@dataclass(frozen=True, slots=True)
class SpinIteration:
    """One iteration on held-out demonstrations, against the opponent that it played.

    `told_apart`: share of prompts where the policy's log-ratio of the person's reply is the higher one.
    `data_logprob`: mean log π of people's replies, in nats a reply. None without held-out demonstrations.
    `ties`: training prompts to which the opponent wrote the person's very reply, and which were left out.
    """

    number: int
    loss: float
    ties: int
    told_apart: Figure | None
    data_logprob: Figure | None

    @property
    def at_fixed_point(self) -> bool:
        return self.told_apart is not None and self.told_apart.low <= 0.5


@dataclass(frozen=True, slots=True)
class SpinResult:
    model: PreTrainedModel
    history: list[dict[str, Any]]
    iterations: tuple[SpinIteration, ...]

    @property
    def converged(self) -> bool:
        """Whether the last iteration's opponent could not be told from people."""
        return bool(self.iterations) and self.iterations[-1].at_fixed_point


@dataclass(frozen=True, slots=True)
class _Demonstration:
    prompt: Prompt
    reply: str


def train_spin(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: SpinConfig,
    data: Sequence[Conversation],
    *,
    held_out: Sequence[Conversation] = (),
    run: Path | None = None,
) -> SpinResult:
    """Train `model` in place on the last replies of the conversations; with `run`, resumable there.

    Raises TrainingError where no demonstration leaves room for a reply.
    """
    check_fits(model, tokenizer)
    train = _demonstrations(data, tokenizer, config)
    if not train:
        raise TrainingError(f"no demonstration fits max_length {config.max_length}; nothing to train on")
    tested = _demonstrations(held_out, tokenizer, config)
    done = _restore(model, run)
    history: list[dict[str, Any]] = []
    while len(done) < config.iterations and not (
        done and config.stop_at_fixed_point and done[-1].at_fixed_point
    ):
        number = len(done)
        made, log = _iterate(model, tokenizer, config, number, train, tested, run)
        history += [{"iteration": number, **record} for record in log]
        done.append(made)
        if run is not None and is_main_process():
            _keep(model, done, run)
    return SpinResult(model, history, tuple(done))


def _iterate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: SpinConfig,
    number: int,
    train: Sequence[_Demonstration],
    tested: Sequence[_Demonstration],
    run: Path | None,
) -> tuple[SpinIteration, list[dict[str, Any]]]:
    """Freeze the opponent, let it write, train against it, and measure."""
    opponent = merged(model).requires_grad_(False)
    rows, ties = _against(opponent, tokenizer, config, train, seed=2 * number)
    if not rows:
        raise TrainingError("the model writes every demonstration word for word; there is nothing to learn")
    place = run / f"iteration-{number}" if run is not None else None
    arguments = trainer_arguments(
        config,
        place,
        TrlConfig,
        seed=config.seed + number,
        loss_type=["sigmoid"],
        beta=config.beta,
        max_length=config.max_length,
        eval_strategy="no",
    )
    with forward_restored(model), forward_restored(opponent):
        learnt = pair_dataset(rows, soft=False, margin_scale=0)
        trainer = PairTrainer(model, tokenizer, arguments, learnt, None, reference=opponent)
        log = run_trainer(trainer, place, config.safety)
    losses = [record["loss"] for record in log if "loss" in record]
    apart, likelihood = _measured(model, opponent, tokenizer, config, number, tested)
    return SpinIteration(number, losses[-1], ties, apart, likelihood), log


def _against(
    opponent: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: SpinConfig,
    demonstrations: Sequence[_Demonstration],
    seed: int,
) -> tuple[tuple[PairRow, ...], int]:
    """(person's reply, opponent's reply) as pairs, and how often the two are the same."""
    prompts = [demonstration.prompt for demonstration in demonstrations]
    written = generate(opponent, tokenizer, prompts, config.sample, config.seed * 10_007 + seed).texts
    pairs = [
        Preference(demonstration.prompt, demonstration.reply, reply)
        for demonstration, text in zip(demonstrations, written, strict=True)
        if (reply := text.strip()) and reply != demonstration.reply
    ]
    ties = sum(text.strip() == d.reply for d, text in zip(demonstrations, written, strict=True))
    return (render_pairs(pairs, tokenizer, config.max_length).rows if pairs else ()), ties


def _measured(
    model: PreTrainedModel,
    opponent: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: SpinConfig,
    number: int,
    tested: Sequence[_Demonstration],
) -> tuple[Figure | None, Figure | None]:
    """(told apart, log-probability of people's replies) on held-out prompts."""
    if not tested:
        return None, None
    pad_id = int(tokenizer.pad_token_id)
    rows, ties = _against(opponent, tokenizer, config, tested, seed=2 * number + 1)
    ours, theirs = score_pairs(model, rows, pad_id), score_pairs(opponent, rows, pad_id)
    gained: Tensor = (ours.chosen_N - theirs.chosen_N) - (ours.rejected_N - theirs.rejected_N)
    # The same reply on both sides can't be told apart: a coin's throw, alternately right and wrong.
    right = [*(gained > 0).tolist(), *(i % 2 == 0 for i in range(ties))]
    likelihood = mean(reply_logprobs(model, [(r.prompt, r.chosen) for r in rows], pad_id).tolist() or [0.0])
    return share(right), likelihood


def _demonstrations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, config: SpinConfig
) -> list[_Demonstration]:
    """Each conversation's last reply with all before it as prompt, where a reply of the opponent fits too."""
    found = [
        _Demonstration(c.messages[:-1], c.messages[-1].content)
        for c in conversations
        if c.messages[-1].role == "assistant"
    ]
    lengths = map(len, prompt_tokens(tokenizer, [demonstration.prompt for demonstration in found]))
    room = config.max_length - config.sample.max_new_tokens
    return [each for each, length in zip(found, lengths, strict=True) if length <= room]


def _keep(model: PreTrainedModel, done: Sequence[SpinIteration], run: Path) -> None:
    """The weights that train and the figures so far, from which a run goes on."""
    trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    with appearing(run / "played") as partial:
        save_file(trained, partial / "trained.safetensors")
        (partial / "iterations.json").write_text(json.dumps([asdict(each) for each in done], indent=1))


def _restore(model: PreTrainedModel, run: Path | None) -> list[SpinIteration]:
    """Load the weights after the last finished iteration into the model; returns the finished ones."""
    if run is None or not (run / "played").is_dir():
        return []
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in load_file(run / "played" / "trained.safetensors").items():
            parameters[name].copy_(tensor)
    rows = json.loads((run / "played" / "iterations.json").read_text())
    return [
        SpinIteration(
            row["number"],
            row["loss"],
            row["ties"],
            Figure(**row["told_apart"]) if row["told_apart"] else None,
            Figure(**row["data_logprob"]) if row["data_logprob"] else None,
        )
        for row in rows
    ]


def describe(iteration: SpinIteration) -> str:
    """One line for the terminal."""
    apart = "" if iteration.told_apart is None else f", told apart {iteration.told_apart.percent()}"
    likelihood = "" if iteration.data_logprob is None else f", log p(data) {iteration.data_logprob}"
    return f"iteration {iteration.number}: loss {iteration.loss:.4f}{apart}{likelihood}"


def run_spin(config: SpinConfig, data_root: Path, run_path: Path) -> Path:
    """Load, train, write `final/` and `record.json`; goes on where an interrupted run stopped."""
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    tell_origin(config.model)  # what cannot be published is told before it is trained
    mixture = load_mixture(config.data, data_root, config.seed)
    print("\n".join(mixture.report))
    model, tokenizer = load_policy(config.model, config.seed)
    result = train_spin(model, tokenizer, config, mixture.train, held_out=mixture.held_out, run=run_path)
    final = run_path / "final"
    if is_main_process():
        print("\n".join(map(describe, result.iterations)))
        save_policy(final, result.model, tokenizer, config.sampling, adapter=config.adapter)
        evaluations: tuple[Evaluation, ...] = ()
        figure = result.iterations[-1].told_apart
        if figure is not None:
            on = "held-out demonstrations against the last opponent's replies"
            evaluations = (
                Evaluation(
                    metric="told_apart",
                    value=figure.value,
                    low=figure.low,
                    high=figure.high,
                    data=on,
                    n=figure.n,
                ),
            )
        write_record(run_path, "spin", config, config.model, config.seed, mixture.data, evaluations)
    return final


def main(argv: Sequence[str]) -> int:
    def check(config: SpinConfig, data_root: Path) -> str:
        return "\n".join(load_mixture(config.data, data_root, config.seed).report)

    return run_command("spin", "SPIN, self-play on demonstrations.", SpinConfig, run_spin, argv, check)
