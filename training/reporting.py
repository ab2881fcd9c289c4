"""Figures of a run for TensorBoard and Weights & Biases, beside `metrics.jsonl`, which is always written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from training.errors import TrainingError

Destination = Literal["tensorboard", "wandb"]


class _Writer(Protocol):
    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Reports:
    """Open reports to every destination that was asked for, none by default; use as a context manager."""

    def __init__(self, run: Path, destinations: Sequence[Destination], name: str | None = None) -> None:
        check_destinations(destinations)
        self._writers: list[_Writer] = [_WRITERS[to](run, name or run.name) for to in destinations]

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Pass on the record's numbers; what is no number stays in `metrics.jsonl` only."""
        figures = {
            name: float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        }
        for writer in self._writers:
            writer.log(step, figures)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = []


def check_destinations(destinations: Sequence[Destination]) -> None:
    """Raise TrainingError, before any training, where a destination's package is missing."""
    for destination in destinations:
        if find_spec(destination) is None:
            raise TrainingError(
                f"report_to: {destination} is not installed; install it with `pip install {destination}`, or "
                "leave it out: metrics.jsonl in the run's directory has every figure"
            )


class _TensorBoard:
    """Event files in the run's `tensorboard/`."""

    def __init__(self, run: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # loads tensorboard, which is not always there

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of project `WANDB_PROJECT` (default keel), in the run's `wandb/`; `WANDB_MODE=offline` works."""

    def __init__(self, run: Path, name: str) -> None:
        import wandb  # large, and not always there

        project = os.environ.get("WANDB_PROJECT", "keel")
        self._run: Any = wandb.init(
            project=project, name=name, dir=str(run), id=_identity(run), resume="allow"
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


def _identity(run: Path) -> str:
    """The run's identifier at W&B, kept in its directory, so that a resumed run goes on in the same one."""
    file = run / "wandb.id"
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


_WRITERS: dict[Destination, type[_TensorBoard] | type[_WandB]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
}
