"""Supervised fine-tuning, also from scratch.

For conversations rendered to tokens x with a mask m (m_t = 1 where x_t is to be learnt), it minimizes

    L(θ) = - Σ_t m_t log p_θ(x_t | x_<t) / Σ_t m_t

the mean over the *supervised tokens* of a whole optimizer step, however the step is cut into
micro-batches. By default m marks the assistant's words (Ouyang et al. 2022 train on demonstrations so); a
source may ask for `supervise: all`, ordinary language modelling on dialogue, which from scratch teaches
twice as much per token and is sound where either speaker could be the assistant.

Rows are packed (`training.data.packing`); the data's order follows from (seed, epoch) alone, so a resumed
run continues bit for bit. The schedule is warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395).

Left out: data parallelism and gradient checkpointing, as models of this size need neither; dropout, as
they see their data once or twice; adapters, which come with the preference methods.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from policies.manifest import DataSource, Evaluation
from training.config import Config
from training.data.mixture import Mixture, MixtureConfig, load_mixture, texts
from training.data.packing import Batch, Row, collate, pack
from training.data.render import Example, render_within
from training.data.tokenizer import train_tokenizer
from training.errors import TrainingError
from training.losses.language_model import next_token_loss, shifted_positions
from training.optimization import OptimizerConfig, ScheduleConfig, build_optimizers, set_learning_rate
from training.provenance import RunRecord, code_revision
from training.run_directory import RunDirectory, load_parameters, restore


class ModelConfig(Config):
    """A Llama-type model with tied embeddings, in transformers' names."""

    vocab_size: int = Field(gt=256)
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int


class SamplingConfig(Config):
    """Defaults for whoever serves the model, where a request says nothing else."""

    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    repetition_penalty: float = Field(default=1.1, ge=1)


class SftConfig(Config):
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
    def _check(self) -> SftConfig:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either model (train from scratch) or init (a directory to start from)")
        if self.rows_per_step % self.micro_batch:
            raise ValueError("rows_per_step must be a multiple of micro_batch")
        return self


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Mean negative log-likelihood in nats per supervised token, and each conversation's (sum, count)."""

    loss: float
    per_row: tuple[tuple[float, int], ...]

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def perplexity_interval(self, seed: int, resamples: int = 2000) -> tuple[float, float]:
        """The 95 % percentile-bootstrap interval, over conversations (Efron 1979)."""
        sums_R2 = torch.tensor(self.per_row, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        picks_SR = torch.randint(len(sums_R2), (resamples, len(sums_R2)), generator=generator)
        totals_S2 = sums_R2[picks_SR].sum(dim=1)
        losses_S = totals_S2[:, 0] / totals_S2[:, 1]
        low, high = losses_S.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).exp().tolist()
        return low, high


class Learner:
    """The model, its optimizers and one optimizer step; knows nothing of files or data sources."""

    def __init__(self, model: LlamaForCausalLM, config: SftConfig) -> None:
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
        hidden = output.last_hidden_state
        assert hidden is not None  # noqa: S101  the base model always returns it
        return hidden


def build_model(config: SftConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A new model from `config.model`, or the one in `config.init`."""
    torch.manual_seed(config.seed)
    if config.model is not None:
        shape = LlamaConfig(
            **config.model.model_dump(),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return LlamaForCausalLM(shape)
    place = Path(str(config.init))
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(place))
    tensors = {name: t.float() for name, t in load_file(place / "model.safetensors").items()}
    load_parameters(model, tensors, place)
    return model


def build_tokenizer(config: SftConfig, mixture: Mixture) -> PreTrainedTokenizerFast:
    if config.model is not None:
        return train_tokenizer(
            texts(mixture.train), config.model.vocab_size, config.model.max_position_embeddings
        )
    tokenizer = AutoTokenizer.from_pretrained(str(config.init))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TrainingError(f"{config.init}: its tokenizer is not a fast tokenizer, which rendering needs")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse what silently ruins training: no chat template, no EOS, padding that is the EOS."""
    if not tokenizer.chat_template:
        raise TrainingError("the tokenizer has no chat template; conversations can't be rendered")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise TrainingError("the tokenizer needs an eos_token and a pad_token")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise TrainingError("pad_token is eos_token; give padding its own token, lest ends go unlearnt")


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


def epoch_rows(examples: Sequence[Example], seed: int, epoch: int, row_length: int) -> list[Row]:
    """The epoch's packed rows; a pure function of its arguments."""
    chance = random.Random(f"{seed}/{epoch}")  # noqa: S311  an order, no secret
    rows = pack(chance.sample(examples, len(examples)), row_length)
    chance.shuffle(rows)
    return rows


def steps_from(examples: Sequence[Example], config: SftConfig, start: int) -> Iterator[list[Row]]:
    """The rows of step `start`, `start + 1`, …, without end; an epoch's incomplete last step is dropped."""
    epoch, first = 0, 0
    while True:
        rows = epoch_rows(examples, config.seed, epoch, config.row_length)
        count = len(rows) // config.rows_per_step
        if count == 0:
            raise TrainingError(
                f"the data fills {len(rows)} rows of {config.row_length} tokens, fewer than rows_per_step "
                f"({config.rows_per_step}); lower rows_per_step or add data"
            )
        for index in range(max(0, start - first), count):
            yield rows[index * config.rows_per_step : (index + 1) * config.rows_per_step]
        epoch, first = epoch + 1, first + count


def train(config: SftConfig, data_root: Path, run_path: Path, stop_after: int | None = None) -> Path:
    """Run to the end, resuming what `run_path` holds; returns the directory of the finished model.

    `stop_after` ends this call early after so many steps of its own, as an interruption would.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    run = RunDirectory(run_path)
    run.bind(config.model_dump(mode="json"))
    mixture = load_mixture(config.data, data_root, config.seed)
    final = run_path / "final"
    tokenizer = build_tokenizer(config, mixture)
    check_tokenizer(tokenizer)
    examples, held_out = render_all(mixture, tokenizer, config.row_length)
    held_out_rows: list[Row] = [(example,) for example in held_out]
    for line in mixture.report:
        print(line)
    print(f"{len(examples)} examples, {sum(map(len, examples)):,} tokens; {len(held_out)} held out")

    learner = Learner(build_model(config, tokenizer), config)
    place = run.latest()
    start = restore(place, learner.model, learner.optimizers)["step"] if place is not None else 0
    end = config.steps if stop_after is None else min(config.steps, start + stop_after)
    pad_id = int(tokenizer.pad_token_id)
    supply = steps_from(examples, config, start)
    with _progress(config.steps, start) as advance:
        for step in range(start, end):
            began = time.perf_counter()
            rows = next(supply)
            batches = [
                collate(rows[i : i + config.micro_batch], config.row_length, pad_id)
                for i in range(0, len(rows), config.micro_batch)
            ]
            rate = config.optimizer.learning_rate * config.schedule.factor(step, config.steps)
            loss, norm = learner.step(batches, rate)
            seconds = time.perf_counter() - began
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                tokens = config.rows_per_step * config.row_length / seconds
                run.log(
                    {"step": done, "loss": loss, "grad_norm": norm, "lr": rate, "tokens_per_s": round(tokens)}
                )
            if done % config.evaluate_every == 0 or done == config.steps:
                score = learner.evaluate(held_out_rows, pad_id)
                run.log({"step": done, "held_out_loss": score.loss, "held_out_perplexity": score.perplexity})
            if done % config.checkpoint_every == 0 or done == end:
                run.save(done, learner.model, learner.optimizers, {})
            advance(loss)
    if end == config.steps:
        write_model(final, learner.model, tokenizer, config.sampling)
        write_record(config, mixture, learner.evaluate(held_out_rows, pad_id), run_path)
    return final


def write_model(
    place: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig
) -> None:
    """The model directory that vLLM and transformers load, in bfloat16, with its sampling defaults."""
    tokenizer.save_pretrained(place)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        do_sample=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling.model_dump(),
    )
    copy.to(torch.bfloat16).save_pretrained(place)


def write_record(config: SftConfig, mixture: Mixture, score: HeldOutScore, run_path: Path) -> None:
    """Leave the run's record for the manifest, with the held-out perplexity and its bootstrap interval."""
    low, high = score.perplexity_interval(config.seed)
    RunRecord(
        method="sft",
        config=config.model_dump(mode="json"),
        seed=config.seed,
        code_revision=code_revision(),
        data=tuple(
            DataSource(path=s.path, origin=s.origin, licence=s.licence, sha256=mixture.digests[s.path])
            for s in config.data.sources
        ),
        evaluations=(
            Evaluation(
                metric="perplexity",
                value=score.perplexity,
                low=low,
                high=high,
                data="supervised tokens of the held-out conversations",
                n=len(score.per_row),
            ),
        ),
        earlier=RunRecord.read(Path(config.init).parent) if config.init is not None else None,
    ).write(run_path)


class _progress:
    """A bar with the time that remains; call it with the loss after each step."""

    def __init__(self, steps: int, start: int) -> None:
        columns = (TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True))
        self._task = self._bar.add_task("train", total=steps, completed=start, loss=math.nan)

    def __enter__(self) -> Callable[[float], None]:
        self._bar.start()
        return lambda loss: self._bar.update(self._task, advance=1, loss=loss)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train sft", description="Supervised fine-tuning.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument("--run", type=Path, help="the run's directory (default: runs/NAME)")
    parser.add_argument("--check", action="store_true", help="read and render the data, train nothing")
    arguments = parser.parse_args(argv)
    config = SftConfig.load(arguments.config)
    if arguments.check:
        mixture = load_mixture(config.data, arguments.data, config.seed)
        tokenizer = build_tokenizer(config, mixture)
        check_tokenizer(tokenizer)
        examples, held_out = render_all(mixture, tokenizer, config.row_length)
        supervised = sum(sum(example.supervised) for example in examples)
        print("\n".join(mixture.report))
        print(f"{len(examples)} examples ({len(held_out)} held out), {sum(map(len, examples)):,} tokens,")
        print(f"{supervised:,} of them supervised")
        return 0
    final = train(config, arguments.data, arguments.run or Path("runs") / config.name)
    print(f"finished: {final}")
    return 0
