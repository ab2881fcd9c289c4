"""Training a chat model from scratch, or going on with one, on packed rows.

For conversations rendered to tokens x with a mask m (m_t = 1 where x_t is to be learnt), it minimizes

    L(θ) = - Σ_t m_t log p_θ(x_t | x_<t) / Σ_t m_t

the mean over the *supervised tokens* of a whole optimizer step, however the step is cut into
micro-batches. By default m marks the assistant's words (Ouyang et al. 2022 train on demonstrations so); a
source may ask for `supervise: all`, ordinary language modelling on dialogue, which from scratch teaches
twice as much per token and is sound where either speaker could be the assistant.

Rows are packed (`training.data.packing`); the data's order follows from (seed, epoch) alone, so a resumed
run continues bit for bit. The schedule is warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395).

Left out: data parallelism and gradient checkpointing, as models of this size need neither; dropout, as
they see their data once or twice; adapters. All of these come with `training.methods.sft`, which fine-tunes
a model of any size and architecture.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from policies.manifest import Evaluation
from training.chat_model import (
    ModelConfig,
    SamplingConfig,
    new_model,
    read_model,
    read_tokenizer,
    write_model,
)
from training.command import run_command
from training.config import Config
from training.data.epochs import steps_from
from training.data.mixture import Mixture, MixtureConfig, load_mixture, texts
from training.data.packing import Batch, Row, collate
from training.data.render import Example, render_within
from training.data.tokenizer import train_tokenizer
from training.errors import TrainingError
from training.files import appearing
from training.held_out import HeldOutScore
from training.losses.language_model import next_token_loss, shifted_positions
from training.optimization import OptimizerConfig, ScheduleConfig, build_optimizers, set_learning_rate
from training.provenance import RunRecord, code_revision, origin
from training.run_directory import RunDirectory, restore


class PretrainConfig(Config):
    """`model` trains from scratch with a new tokenizer; `init`, a directory, continues from its weights."""

    name: str
    seed: int = 0
    model: ModelConfig | None = None
    init: str | None = None
    data: MixtureConfig
    row_length: int = Field(default=512, gt=1)
    rows_per_step: int = Field(default=8, ge=1)
    micro_batch: int = Field(default=8, ge=1)
    steps: int = Field(gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    sampling: SamplingConfig = SamplingConfig()
    precision: Literal["bf16", "fp32"] = "fp32"
    compile: bool = False
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    evaluate_every: int = Field(default=500, ge=1)
    log_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either model (train from scratch) or init (a directory to start from)")
        if self.rows_per_step % self.micro_batch:
            raise ValueError("rows_per_step must be a multiple of micro_batch")
        return self


class Learner:
    """The model, its optimizers and one optimizer step; knows nothing of files or data sources."""

    def __init__(self, model: LlamaForCausalLM, config: PretrainConfig) -> None:
        self.model = model
        self.optimizers = build_optimizers(model, config.optimizer)
        self._config = config
        self._fast_hidden = torch.compile(self._hidden) if config.compile else self._hidden
        self._fast_loss = torch.compile(next_token_loss, dynamic=True) if config.compile else next_token_loss

    def loss(self, batch: Batch, compiled: bool = True) -> tuple[Tensor, int]:
        """Summed loss of the batch's supervised tokens, and how many they are."""
        hidden, loss = (self._fast_hidden, self._fast_loss) if compiled else (self._hidden, next_token_loss)
        targets = batch.input_ids_BT.roll(-1, dims=1).flatten()
        positions = shifted_positions(batch.supervised_BT)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._config.precision == "bf16"):
            hidden_BTD = hidden(batch.input_ids_BT, batch.position_ids_BT, batch.attention_B1TT)
            hidden_ND = hidden_BTD.flatten(0, 1)[positions]
            total = loss(hidden_ND, self.model.lm_head.weight, targets[positions])
        return total, len(positions)

    def step(self, batches: Sequence[Batch], learning_rate: float) -> tuple[float, float]:
        """One optimizer step over the micro-batches; returns (mean loss, gradient norm before clipping)."""
        count = sum(len(shifted_positions(batch.supervised_BT)) for batch in batches)
        if count == 0:
            raise TrainingError("a step has no supervised token; its rows would train nothing")
        total = 0.0
        for batch in batches:
            loss, _ = self.loss(batch)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self._config.optimizer.clip_norm
        ).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss or its gradient is not finite (loss {total / count}, norm {norm}); "
                "lower the learning rate, or resume from the last checkpoint with fp32"
            )
        set_learning_rate(self.optimizers, learning_rate)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total / count, norm

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Row], pad_id: int) -> HeldOutScore:
        """Held-out loss, one conversation to a row."""
        per_row: list[tuple[float, int]] = []
        for row in rows:
            total, count = self.loss(collate([row], len(row[0]), pad_id), compiled=False)
            per_row.append((total.item(), count))
        tokens = sum(count for _, count in per_row)
        return HeldOutScore(sum(total for total, _ in per_row) / max(tokens, 1), tuple(per_row))

    def _hidden(self, input_ids: Tensor, position_ids: Tensor, attention: Tensor) -> Tensor:
        output = self.model.model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention, use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def build_tokenizer(config: PretrainConfig, mixture: Mixture) -> PreTrainedTokenizerFast:
    """A new tokenizer, learnt from the mixture, or the one that `init` brings."""
    if config.model is None:
        return read_tokenizer(Path(str(config.init)))
    shape = config.model
    return train_tokenizer(texts(mixture.train), shape.vocab_size, shape.max_position_embeddings)


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A new model, or the one in `init`."""
    if config.model is None:
        return read_model(Path(str(config.init)))
    return new_model(config.model, tokenizer, config.seed)


def render_all(
    mixture: Mixture, tokenizer: PreTrainedTokenizerFast, row_length: int
) -> tuple[list[Example], list[Example]]:
    """(train, held-out) examples that fit a row and have at least one supervised token."""
    rendered: list[list[Example]] = []
    for conversations in (mixture.train, mixture.held_out):
        examples = [render_within(c, tokenizer, row_length) for c in conversations]
        rendered.append([e for e in examples if e is not None and any(e.supervised[1:])])
    if not rendered[0]:
        raise TrainingError(f"no conversation has a supervised token within {row_length} tokens")
    return rendered[0], rendered[1]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs of its data: rendered examples, and the tokenizer that rendered them."""

    mixture: Mixture
    tokenizer: PreTrainedTokenizerFast
    train: tuple[Example, ...]
    held_out: tuple[Row, ...]

    def report(self) -> str:
        """Sources and sizes, for whoever starts the run."""
        tokens = sum(map(len, self.train))
        supervised = sum(sum(example.supervised) for example in self.train)
        sizes = f"{len(self.train)} examples, {tokens:,} tokens, {supervised:,} supervised"
        return "\n".join([*self.mixture.report, f"{sizes}; {len(self.held_out)} held out"])


def prepare(config: PretrainConfig, data_root: Path) -> Prepared:
    """Read and render the data; everything that can be wrong with it is told here, before any training."""
    mixture = load_mixture(config.data, data_root, config.seed)
    tokenizer = build_tokenizer(config, mixture)
    train, held_out = render_all(mixture, tokenizer, config.row_length)
    return Prepared(mixture, tokenizer, tuple(train), tuple((example,) for example in held_out))


def train(config: PretrainConfig, data_root: Path, run_path: Path, stop_after: int | None = None) -> Path:
    """Run to the end, resuming what `run_path` holds; returns the folder of the finished model.

    `stop_after` ends this call after so many steps of its own, as an interruption would.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    run = RunDirectory(run_path)
    # Without a decay the number of steps changes nothing but the end: such a run may be made longer.
    run.bind(config.model_dump(mode="json", exclude={"steps"} if config.schedule.decay == 0 else None))
    data = prepare(config, data_root)
    print(data.report())
    learner = Learner(build_model(config, data.tokenizer), config)
    place = run.latest()
    start = restore(place, learner.model, learner.optimizers)["step"] if place is not None else 0
    run.rewind(start)
    end = config.steps if stop_after is None else min(config.steps, start + stop_after)
    with Bar(config.steps, start) as bar:
        for done, loss in run_steps(config, data, learner, run, start, end):
            if done % config.checkpoint_every == 0 or done == end:
                run.save(done, learner.model, learner.optimizers, {})
            bar.advance(loss)
    final = run_path / "final"
    if end == config.steps:
        with appearing(final) as partial:
            write_model(partial, learner.model, data.tokenizer, config.sampling)
        write_record(config, data, learner, run_path)
    return final


def run_steps(
    config: PretrainConfig, data: Prepared, learner: Learner, run: RunDirectory, start: int, end: int
) -> Iterator[tuple[int, float]]:
    """Take the steps `start`, …, `end - 1`; yields (steps done, loss) after each, and logs both losses."""
    pad_id = int(data.tokenizer.pad_token_id)
    supply = steps_from(data.train, config.seed, config.row_length, config.rows_per_step, start)
    for step, rows in zip(range(start, end), supply, strict=False):
        began = time.perf_counter()
        cuts = range(0, len(rows), config.micro_batch)
        batches = [collate(rows[i : i + config.micro_batch], config.row_length, pad_id) for i in cuts]
        rate = config.optimizer.learning_rate * config.schedule.factor(step, config.steps)
        loss, norm = learner.step(batches, rate)
        speed = round(config.rows_per_step * config.row_length / (time.perf_counter() - began))
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            run.log({"step": done, "loss": loss, "grad_norm": norm, "lr": rate, "tokens_per_s": speed})
        if data.held_out and (done % config.evaluate_every == 0 or done == config.steps):
            score = learner.evaluate(data.held_out, pad_id)
            run.log({"step": done, "held_out_loss": score.loss, "held_out_perplexity": score.perplexity})
        yield done, loss


def write_record(config: PretrainConfig, data: Prepared, learner: Learner, run_path: Path) -> None:
    """Leave the run's record for the manifest, with the held-out perplexity and its bootstrap interval."""
    evaluations: tuple[Evaluation, ...] = ()
    if data.held_out:
        score = learner.evaluate(data.held_out, int(data.tokenizer.pad_token_id))
        evaluations = (score.evaluation(config.seed),)
    earlier, parent = origin(Path(config.init)) if config.init is not None else (None, None)
    RunRecord(
        method="pretrain",
        config=config.model_dump(mode="json"),
        seed=config.seed,
        code_revision=code_revision(),
        data=data.mixture.data,
        evaluations=evaluations,
        earlier=earlier,
        parent=parent,
    ).write(run_path)


class Bar:
    """Loss, steps and the time that remains, on the terminal."""

    def __init__(self, steps: int, start: int) -> None:
        columns = (TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True))
        self._task = self._progress.add_task("train", total=steps, completed=start, loss=math.nan)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, loss: float) -> None:
        self._progress.update(self._task, advance=1, loss=loss)


def main(argv: Sequence[str]) -> int:
    return run_command(
        "pretrain",
        "Train a chat model from scratch, or go on with one.",
        PretrainConfig,
        train,
        argv,
        check=lambda config, data_root: prepare(config, data_root).report(),
    )
