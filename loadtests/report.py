"""The report of a load test: pictures, a page for people (HTML, all in one file), and docs/LOADTESTS.md."""

from __future__ import annotations

import base64
import html
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from loadtests import plots
from loadtests.figures import Figures
from loadtests.run import Run
from loadtests.thresholds import Judged

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def draw(figures: Mapping[str, Any], seen: Mapping[str, Run], home: Path) -> list[Path]:
    """All pictures that can be made of what was seen."""
    home.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    if "mix" in seen:
        made.append(plots.streams(seen["mix"].requests, home))
    if "spike" in seen:
        made.append(plots.spike(seen["spike"].requests, figures["spike"], home))
    for policy in figures.get("saturation", {}):
        if f"saturation.{policy}" in seen:
            made.append(plots.saturation(policy, figures["saturation"][policy], home))
    for policy, found in figures.get("overload", {}).items():
        if run := seen.get(f"overload.{policy}"):
            made += [
                plots.overload(policy, run, found["capacity"], home),
                plots.waits(policy, run.requests, home),
            ]
    if "soak" in seen and seen["soak"].samples:
        made.append(plots.memory(seen["soak"], home))
    return made


def machine() -> str:
    """On what it was measured."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"
    )


def judged_table(judged: Sequence[Judged]) -> Table:
    """Each threshold, what was seen, and whether it was met."""
    rows = [
        (
            f"`{j.threshold.figure}`",
            j.threshold.why,
            f"{j.threshold.sense} {j.threshold.limit:g}",
            f"{j.value:g}",
            "met" if j.met else "**missed**",
        )
        for j in judged
    ]
    return ("figure", "what it says", "threshold", "seen", ""), rows


def tables(figures: Mapping[str, Any]) -> dict[str, Table]:
    """The figures in tables, by their headings."""
    found: dict[str, Table] = {}
    if "mix" in figures:
        found["Mix"] = _kinds(figures["mix"])
    if "spike" in figures:
        found["Spike"] = _spike(figures["spike"])
    for policy, curve in figures.get("saturation", {}).items():
        found[f"Saturation, policy `{policy}`"] = _saturation(curve)
    if "overload" in figures:
        found["Overload"] = _overload(figures["overload"])
    if "soak" in figures:
        found["Soak"] = _memory(figures["soak"])
        found["Soak, by kind of request"] = _kinds(figures["soak"])
    return found


def _kinds(mix: Figures) -> Table:
    head = (
        "",
        "requests",
        "refused",
        "failed",
        "p50 ms",
        "p99 ms",
        "first text p50",
        "p95",
        "between texts p50",
        "p99",
    )
    rows = []
    for kind, of in mix["kinds"].items():
        times = [of["ms"]["p50"], of["ms"]["p99"], of["ttft_ms"]["p50"], of["ttft_ms"]["p95"]]
        times += [of["gap_ms"]["p50"], of["gap_ms"]["p99"]]
        rows.append((kind, *_counts(of), *(_ms(value) for value in times)))
    return head, rows


def _counts(of: Figures) -> tuple[str, ...]:
    return f"{of['requests']:,}", f"{of['refused']:,}", f"{of['failed']:,}"


def _spike(spike: Figures) -> Table:
    rows = [
        (part, *_counts(spike[part]), f"{spike[part]['goodput']:.1f}", _ms(spike[part]["ms"]["p50"]),
         _ms(spike[part]["ms"]["p99"]))
        for part in ("before", "during", "after")
    ]  # fmt: skip
    return ("", "requests", "refused", "failed", "answered/s", "p50 ms", "p99 ms"), rows


def _saturation(curve: Figures) -> Table:
    rows = [
        (
            str(step["callers"]),
            f"{step['goodput']:.1f}",
            _ms(step["ms"]["p50"]),
            _ms(step["ms"]["p99"]),
            f"{step['refused']:,}",
            f"{step['failed']:,}",
        )
        for step in curve["steps"]
    ]
    return ("callers", "answered/s", "p50 ms", "p99 ms", "refused", "failed"), rows


def _overload(overload: Figures) -> Table:
    rows = [
        (
            f"`{policy}`",
            f"{of['capacity']:.1f}",
            f"{of['offered']:.0f} ({of['times_capacity']:.1f}x)",
            f"{of['goodput']:.1f} ({of['goodput_share']:.0%})",
            f"{_ms(of['ms']['p50'])} / {_ms(of['ms']['p99'])}",
            " / ".join(_ms(of["refused_ms"][level]) for level in ("p50", "p99", "max")),
            f"{of['failed']:,}",
        )
        for policy, of in overload.items()
    ]
    head = (
        "policy",
        "peak/s",
        "offered/s",
        "answered/s",
        "answered: p50 / p99 ms",
        "refused: p50 / p99 / max ms",
        "failed",
    )
    return head, rows


def _memory(soak: Figures) -> Table:
    rows = [
        (role, f"{of['start_mib']:.1f}", f"{of['end_mib']:.1f}", f"{of['growth_per_cent']:+.2f} %")
        for role, of in soak["memory"].items()
    ]
    return ("", "MiB after a tenth", "MiB at the end", "growth"), rows


def _ms(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, rows = table
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write_page(
    path: Path, figures: Mapping[str, Any], judged: Sequence[Judged], notes: str, pictures: Path
) -> None:
    """docs/LOADTESTS.md: what was measured when and on what, the thresholds, the tables, the pictures."""
    parts = [
        "# Load tests",
        f"Written by `make loadtest`. Machine: {machine()}. {_when(figures)}",
        "## Thresholds",
        markdown(judged_table(judged)),
        "## Figures",
    ]
    for heading, table in tables(figures).items():
        parts += [f"### {heading}", markdown(table)]
    shown = sorted(pictures.glob("*.png"))
    if shown:
        parts.append("## Pictures")
        parts += [f"![{p.stem}]({os.path.relpath(p, path.parent)})" for p in shown]
    path.write_text("\n\n".join([*parts, notes.strip()]) + "\n")


def _when(figures: Mapping[str, Any]) -> str:
    when = figures.get("when", {})
    return "Measured: " + ", ".join(f"{stage} on {day}" for stage, day in when.items()) + "."


def today() -> str:
    """The day, for the record."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } img { max-width: 100% }
td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
         font-variant-numeric: tabular-nums }
.missed { color: #a4133c; font-weight: 600 } .met { color: #2d6a4f }
"""


def write_html(
    path: Path, figures: Mapping[str, Any], judged: Sequence[Judged], pictures: Sequence[Path]
) -> None:
    """One file with everything in it, for a browser."""
    missed = sum(not j.met for j in judged)
    verdict = (
        f"{missed} of {len(judged)} thresholds missed" if missed else f"all {len(judged)} thresholds met"
    )
    parts = [
        f"<h1>Load test: {verdict}</h1>",
        f"<p>{html.escape(machine())}. {html.escape(_when(figures))}</p>",
    ]
    parts.append(_html_table(judged_table(judged)))
    for heading, table in tables(figures).items():
        parts += [f"<h2>{html.escape(heading.replace('`', ''))}</h2>", _html_table(table)]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<p><img alt="{picture.stem}" src="data:image/png;base64,{data}"></p>')
    head = f'<meta charset="utf-8"><title>Load test</title><style>{_STYLE}</style>'
    path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>')


def _html_table(table: Table) -> str:
    head, rows = table

    def cell(text: str, tag: str) -> str:
        plain = text.replace("`", "").replace("**", "")
        mark = f' class="{plain}"' if plain in ("met", "missed") else ""
        return f"<{tag}{mark}>{html.escape(plain)}</{tag}>"

    lines = ["".join(cell(text, "th") for text in head)]
    lines += ["".join(cell(text, "td") for text in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
