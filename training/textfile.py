"""`keel-train figures RUN… --textfile FILE`: the newest figures of runs, for Prometheus.

The file is in the text format that node-exporter reads in its `--collector.textfile.directory`. It is made
from the runs' `metrics.jsonl`, whatever the method, while they train or after; training itself knows nothing
of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from training.errors import TrainingError

TAIL = 256 * 1024  # bytes of metrics.jsonl that are looked at
HEADS = {
    "keel_train_step": "The last step that has figures.",
    "keel_train_figure": "A figure of metrics.jsonl, as it was last written.",
    "keel_train_updated_timestamp_seconds": "When the run last wrote a figure, seconds since the epoch.",
    "keel_train_finished": "1 once the run's result, final/, is there.",
}


def latest(run: Path) -> tuple[int, dict[str, float]]:
    """A run's last step, and the last value of each figure. Raises TrainingError where there are none."""
    file = run / "metrics.jsonl"
    try:
        with file.open("rb") as metrics:
            size = metrics.seek(0, os.SEEK_END)
            metrics.seek(max(0, size - TAIL))
            lines = metrics.read().splitlines()
    except OSError as error:
        raise TrainingError(f"{file}: {error.strerror}; give the directory of a run") from error
    step, figures = -1, dict[str, float]()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off: by our look at the end only, or by a kill
        step = record.get("step", step)
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                figures[name] = float(value)
    if step < 0:
        raise TrainingError(f"{file}: no figures yet")
    return step, figures


def exposition(runs: Iterable[Path]) -> str:
    """The runs' figures in Prometheus' text format."""
    samples: dict[str, list[str]] = {name: [] for name in HEADS}
    for run in runs:
        step, figures = latest(run)
        name = {"run": run.resolve().name}
        samples["keel_train_step"].append(_sample("keel_train_step", name, step))
        for figure, value in sorted(figures.items()):
            labels = {**name, "figure": figure}
            samples["keel_train_figure"].append(_sample("keel_train_figure", labels, value))
        updated = (run / "metrics.jsonl").stat().st_mtime
        stamp = "keel_train_updated_timestamp_seconds"
        samples[stamp].append(_sample(stamp, name, updated))
        finished = (run / "final").is_dir()
        samples["keel_train_finished"].append(_sample("keel_train_finished", name, int(finished)))
    lines = []
    for metric, help_text in HEADS.items():
        lines += [f"# HELP {metric} {help_text}", f"# TYPE {metric} gauge", *samples[metric]]
    return "\n".join(lines) + "\n"


def _sample(metric: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f"{name}={_quoted(text)}" for name, text in labels.items())
    return f"{metric}{{{inside}}} {value!r}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def write(runs: Sequence[Path], file: Path) -> None:
    """Write the file in one step: a collector never sees half of it."""
    text = exposition(runs)
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise TrainingError(f"{file}: {error.strerror}") from error


def main(argv: Sequence[str]) -> int:
    """The command; with `--every` until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="keel-train figures",
        description="Newest figures of runs, for node-exporter's textfile collector.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument("--textfile", type=Path, help="where to write, ending in .prom (default: print)")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="write again and again, so often")
    arguments = parser.parse_args(argv)
    if arguments.every is not None and (arguments.every <= 0 or arguments.textfile is None):
        parser.error("--every needs --textfile and a number above 0")
    if arguments.textfile is None:
        print(exposition(arguments.runs), end="")
        return 0
    if arguments.textfile.suffix != ".prom":
        parser.error(f"--textfile {arguments.textfile}: node-exporter reads files that end in .prom")
    write(arguments.runs, arguments.textfile)
    try:
        while arguments.every is not None:
            time.sleep(arguments.every)
            write(arguments.runs, arguments.textfile)
    except KeyboardInterrupt:
        return 0
    return 0
