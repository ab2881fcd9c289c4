"""Runs a transformers trainer as every Keel run goes: resumable, watched, and told in `metrics.jsonl`.

What a trainer computes is left as it is; all of this hangs on its callbacks.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from training.checkpoint_marker import mark_complete, newest_complete, remove_incomplete, steps_of
from training.errors import TrainingError
from training.files import disk_errors
from training.models import ModelSource, load_policy
from training.reporting import Reports
from training.run_directory import RunDirectory
from training.trl.options import TrainingOptions, trainer_arguments
from training.trl.safety import SafetyCallback, SafetyConfig

__all__ = ["TrainingOptions", "is_main_process", "run_trainer", "trained_model", "trainer_arguments"]


def run_trainer(
    trainer: Trainer, run: Path | None, safety: SafetyConfig | None = None
) -> list[dict[str, Any]]:
    """Train to the end, from the newest whole checkpoint in `run`; returns the log, a record per entry.

    Every record has its `step`; in `run` they are also in `metrics.jsonl`, and go to what the arguments'
    `report_to` names. With `run` None nothing is written. Raises TrainingError where the loss is not finite
    or the disk is full.
    """
    for callback in (PrinterCallback, ProgressCallback, TensorBoardCallback, WandbCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_StopAtNonFinite())
    bar = _Bar()
    trainer.add_callback(bar)
    if safety is not None:
        trainer.add_callback(SafetyCallback(safety, trainer))
    try:
        if run is None:
            trainer.train()
        else:
            _run_in(trainer, run)
    finally:
        bar.stop()
    return [dict(record) for record in trainer.state.log_history if "train_runtime" not in record]


def trained_model(trainer: Trainer, run: Path | None) -> PreTrainedModel:
    """The model with all its weights; every process must call it, as sharded ones are gathered on the way.

    Under FSDP and DeepSpeed it is read back from a folder in `run`, an adapter merged; only the main
    process gets weights worth saving then. Raises TrainingError where sharded weights have no such folder.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        whole: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
        return whole
    if run is None:
        raise TrainingError(
            "weights that are sharded over processes are gathered in a run directory; give one"
        )
    place = run / "gathered"
    with disk_errors(place):
        trainer.save_model(str(place))
    trainer.accelerator.wait_for_everyone()
    model, _ = load_policy(ModelSource(path=str(place)))
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        shutil.rmtree(place)
    return model


def is_main_process() -> bool:
    """Whether this process is the one that writes; under accelerate launch there are others."""
    return int(os.environ.get("RANK", "0")) == 0


def _run_in(trainer: Trainer, run: Path) -> None:
    processes = trainer.accelerator  # one process, or those that accelerate launch started
    steps = run / "steps"
    checkpoint = newest_complete(steps) if steps.is_dir() else None
    processes.wait_for_everyone()
    reports = None
    if processes.is_main_process:
        directory = RunDirectory(run)
        remove_incomplete(steps)
        directory.rewind(0 if checkpoint is None else steps_of(checkpoint))
        destinations: Any = trainer.args.report_to
        reports = Reports(run, destinations)
        trainer.add_callback(_Writer(directory, reports))
    trainer.add_callback(_Complete(trainer, steps))
    try:
        with disk_errors(run):
            if checkpoint is not None and _is_last(checkpoint):
                trainer._load_from_checkpoint(str(checkpoint))
                trainer.state = _state_of(checkpoint)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    except TrainingError:
        if processes.is_main_process:
            remove_incomplete(steps)
        raise
    finally:
        if reports is not None:
            reports.close()


def _state_of(checkpoint: Path) -> TrainerState:
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state


def _is_last(checkpoint: Path) -> bool:
    """Whether the run had ended with it; a trainer that went on from there would take one step more."""
    state = _state_of(checkpoint)
    return state.global_step >= state.max_steps


class _Complete(TrainerCallback):
    """Marks a checkpoint when every process has written its part."""

    def __init__(self, trainer: Trainer, steps: Path) -> None:
        self._processes = trainer.accelerator
        self._steps = steps

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._processes.wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(self._steps / f"checkpoint-{state.global_step}")


class _StopAtNonFinite(TrainerCallback):
    """Ends the run at the first logged loss that is no number, before a checkpoint could hold the weights.

    A checkpoint is only written where there is a log; at the last step this sees to it.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_log = control.should_log or state.global_step >= state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise TrainingError(
                    f"step {state.global_step}: {name} is {value}, within the last {args.logging_steps} "
                    "steps; lower learning_rate, lengthen warmup or use fp32. The last checkpoint is from "
                    "before it; a run with other options needs another --run directory"
                )


class _Writer(TrainerCallback):
    """Every log record into `metrics.jsonl` and the reports."""

    def __init__(self, directory: RunDirectory, reports: Reports) -> None:
        self._directory = directory
        self._reports = reports

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "train_runtime" in logs:  # the summary at the end, which a resumed run tells wrong
            return
        self._directory.log({"step": state.global_step, **logs})
        self._reports.log(state.global_step, logs)


class _Bar(TrainerCallback):
    """Loss, steps and the time that remains, on the terminal of the main process."""

    def __init__(self) -> None:
        columns = (TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn())
        remaining = TimeRemainingColumn(elapsed_when_finished=True)
        # Seldom, as what draws it takes its time from the training.
        self._progress = Progress(*columns, remaining, refresh_per_second=2)
        self._task = self._progress.add_task("train", loss=math.nan)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
            self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._progress.update(self._task, loss=logs["loss"])

    def stop(self) -> None:
        self._progress.stop()
