"""Pictures of a run: PNG files of a few inches, one idea each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.figures import Figures
from loadtests.record import Seen
from loadtests.run import Run

GOOD, SLOW, REFUSED, MUTED = "#1b6ca8", "#d1495b", "#edae49", "#8d96a3"
COLOURS = (GOOD, SLOW, REFUSED, "#3a7d44", "#6a4c93")


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def saturation(policy: str, found: Figures, home: Path) -> Path:
    """Answers a second and how long they take, by callers."""
    steps: Sequence[Figures] = found["steps"]
    callers = [step["callers"] for step in steps]
    figure, axes = _axes(f"Saturation, policy {policy!r}", "callers", "answers a second")
    axes.plot(callers, [step["goodput"] for step in steps], "o-", color=GOOD, label="answered")
    axes.set_xscale("log", base=2)
    axes.set_xticks(callers, [str(n) for n in callers])
    axes.set_ylim(bottom=0)
    times = axes.twinx()
    times.spines["top"].set_visible(False)
    times.set_ylabel("milliseconds")
    for name, style in (("p50", "-"), ("p99", ":")):
        times.plot(callers, [step["ms"][name] for step in steps], style, color=SLOW, label=name)
    times.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *times.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="upper left")
    return _save(figure, home / f"saturation-{policy}.png")


def overload(policy: str, run: Run, capacity: float, home: Path) -> Path:
    """What became of the requests, second by second."""
    figure, axes = _axes(f"Overload, policy {policy!r}", "seconds", "requests a second")
    ended = [row.at + row.ms / 1e3 for row in run.requests if row.outcome == "ok"]
    arrived = [row.at for row in run.requests]
    end = max(arrived, default=1.0)
    edges = np.arange(0, end + 1, 1.0)
    for times, colour, label in ((arrived, REFUSED, "offered"), (ended, GOOD, "answered")):
        counts, _ = np.histogram(times, edges)
        axes.step(edges[:-1], counts, where="post", color=colour, label=label)
    axes.axhline(capacity, color=MUTED, linestyle="--", linewidth=1, label="peak without overload")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return _save(figure, home / f"overload-{policy}.png")


def waits(policy: str, requests: Sequence[Seen], home: Path) -> Path:
    """How long an answer took, and how long a refusal."""
    figure, axes = _axes(
        f"Overload, policy {policy!r}: until the answer", "milliseconds", "share of requests"
    )
    for outcome, colour, label in (("ok", GOOD, "answered"), ("refused", REFUSED, "refused")):
        times = sorted(row.ms for row in requests if row.outcome == outcome)
        if times:
            axes.plot(times, np.arange(1, len(times) + 1) / len(times), color=colour, label=label)
    axes.axvline(50, color=MUTED, linestyle="--", linewidth=1, label="50 ms")
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    return _save(figure, home / f"waits-{policy}.png")


def streams(requests: Sequence[Seen], home: Path) -> Path:
    """Times to the first text and between texts, of all streams of the mix."""
    figure, axes = _axes("Streams of the mix", "milliseconds", "share")
    first = sorted(row.ttft_ms for row in requests if row.ttft_ms is not None and row.outcome == "ok")
    gaps = sorted(gap for row in requests if row.outcome == "ok" for gap in row.gaps_ms)
    for times, colour, label in ((first, GOOD, "first text"), (gaps, SLOW, "between texts")):
        if times:
            axes.plot(
                np.maximum(times, 0.1), np.arange(1, len(times) + 1) / len(times), color=colour, label=label
            )
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    return _save(figure, home / "streams.png")


def spike(requests: Sequence[Seen], found: Figures, home: Path) -> Path:
    """How long each answer of the spike took, and who was refused."""
    title = f"A spike from {found['callers']} to {found['peak']} callers"
    figure, axes = _axes(title, "seconds", "milliseconds")
    for outcome, colour, label in (("ok", GOOD, "answered"), ("refused", REFUSED, "refused")):
        rows = [row for row in requests if row.outcome == outcome]
        axes.scatter([r.at for r in rows], [r.ms for r in rows], s=5, color=colour, alpha=0.6, label=label)
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return _save(figure, home / "spike.png")


def memory(run: Run, home: Path) -> Path:
    """Resident memory over the soak, each part as a share of where it stood after the warm-up."""
    figure, axes = _axes("Soak: resident memory", "minutes", "of the size after a tenth of the run")
    minutes = [sample.at / 60 for sample in run.samples]
    base = len(run.samples) // 10
    roles: list[Any] = sorted({role for sample in run.samples for role in sample.rss_mib} - {"others"})
    for role, colour in zip(roles, COLOURS, strict=False):
        sizes = [sample.rss_mib.get(role, 0.0) for sample in run.samples]
        axes.plot(minutes, [size / sizes[base] for size in sizes], color=colour, label=role, linewidth=1)
    axes.axhline(1.05, color=MUTED, linestyle="--", linewidth=1, label="+5 %")
    axes.set_ylim(0.8, 1.2)
    axes.legend(fontsize=8)
    return _save(figure, home / "soak.png")
