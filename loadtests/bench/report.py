"""docs/BENCHMARKS.md, written from the figures of a run."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

_HEAD = """# Benchmarks

Written by `make bench` on {date}; the figures below are replaced as a whole by each run.

Machine: {cpu}, {cores} cores, {memory:.0f} GiB, Python {python}. The server runs on core 0; the stub and the
load share core 1. Rounds are interleaved (A B A B …); a figure is the median of its rounds, a ratio is taken
round by round. Absolute figures drift with the machine; the ratios are what counts.

| what | reach | seen | |
|---|---|---|---|
"""


def _mark(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _row(what: str, reach: str, seen: str, reached: bool | None) -> str:
    return f"| {what} | {reach} | {seen} | {'' if reached is None else _mark(reached)} |"


def rows(figures: Mapping[str, Any]) -> list[str]:
    """One table row for each target that was measured."""
    lines: list[str] = []
    for name, tell in _TARGETS.items():
        if name in figures:
            lines += tell(figures[name])
    return lines


def _spread(ratio: Mapping[str, float], digits: int) -> str:
    return f"{ratio['median']:.{digits}f}x ({ratio['min']:.{digits}f} to {ratio['max']:.{digits}f})"


def _throughput(f: Mapping[str, Any]) -> list[str]:
    ratio, runs = f["keel_over_bare"], f["runs"]
    rates = f"{runs['keel']['rate']:,.0f} against {runs['fastapi_aiohttp']['rate']:,.0f} req/s"
    seen = f"{rates}: {_spread(ratio, 2)}"
    return [_row("no guards, nginx stub, 64 callers", "≥ bare FastAPI + aiohttp", seen, ratio["median"] >= 1)]


def _patterns(f: Mapping[str, Any]) -> list[str]:
    what, reach = "pattern guards in and out, 16 callers", "≥ 20x LiteLLM"
    rate = f["runs"]["keel"]["rate"]
    ratio = f.get("keel_over_litellm")
    if ratio is None:
        return [_row(what, reach, f"{rate:,.0f} req/s; LiteLLM could not be installed", None)]
    seen = f"{rate:,.0f} against {f['runs']['litellm']['rate']:,.0f} req/s: {_spread(ratio, 1)}"
    return [_row(what, reach, seen, ratio["median"] >= 20)]


def _overhead(f: Mapping[str, Any]) -> list[str]:
    added = f["added_p50_ms"]
    seen = f"{added['patterns']:.3f} ms (no guards {added['no_guards']:.3f} ms)"
    return [_row("added p50, one caller, pattern guards", "< 0.8 ms", seen, added["patterns"] < 0.8)]


def _streaming(f: Mapping[str, Any]) -> list[str]:
    ours, direct = f["patterns"], f["direct"]
    p50, p99 = (ours[k] - direct[k] for k in ("added_p50_ms", "added_p99_ms"))
    first = ours["lag_first"] - direct["lag_first"]
    return [
        _row("64 streams at 30 ms a token: first text", "≤ 1 token behind", f"{first:g} token", first <= 1),
        _row("64 streams: added p99 per chunk", "< 10 ms", f"{p99:.2f} ms (p50 {p50:.2f} ms)", p99 < 10),
    ]


def _guard_cpu(f: Mapping[str, Any]) -> list[str]:
    what = "`standard`, 100-word prompt, 64-token reply: guard CPU"
    ours, peer, ratio = f["guards_ms"], f["presidio_and_bert_ms"], f["bert_over_guards"]
    return [
        _row(what, "< 15 ms", f"{ours:.1f} ms", ours < 15),
        _row(
            "the same by Presidio + BERT-base one by one",
            "≥ 10x",
            f"{peer:.0f} ms: {ratio:.1f}x",
            ratio >= 10,
        ),
    ]


def _memory(f: Mapping[str, Any]) -> list[str]:
    start, end, series = f["start_mib"], f["end_mib"], f["series"]
    seen = f"{start:.0f} MiB at the start, {end:.0f} MiB after {series[-1][0]:,} requests"
    flat = end - series[len(series) // 2][1] < 3
    return [_row("gateway's memory without workers", "< 150 MiB, flat", seen, end < 150 and flat)]


def _constraints(f: Mapping[str, Any]) -> list[str]:
    ratio, rates = f["ratio"], f["tokens_s"]
    spread = f"{ratio['median']:.3f}x [{ratio['low']:.3f}, {ratio['high']:.3f}] over {ratio['pairs']} pairs"
    seen = f"{rates['bound']:,.0f} against {rates['free']:,.0f} tokens/s: {spread}"
    what = "constraints on the demo model's vLLM, 16 callers: tokens/s kept"
    return [_row(what, "> 95 %", seen, ratio["median"] > 0.95)]


_TARGETS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "throughput": _throughput,
    "patterns": _patterns,
    "overhead": _overhead,
    "streaming": _streaming,
    "guard_cpu": _guard_cpu,
    "memory": _memory,
    "constraints": _constraints,
}


def _details(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Details",
        "",
        "| measurement | target | req/s | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for measure in ("throughput", "patterns", "overhead"):
        for name, run in figures.get(measure, {}).get("runs", {}).items():
            lines.append(
                f"| {measure} | {name} | {run['rate']:,.0f} | {run['p50_ms']:.3f} | {run['p99_ms']:.3f} |"
            )
    if f := figures.get("streaming"):
        lines += [
            "",
            "| 64 streams | p50 ms behind | p99 ms behind | tokens behind, first | p99 |",
            "|---|---|---|---|---|",
        ]
        for name, run in f.items():
            lines.append(
                f"| {name} | {run['added_p50_ms']:.2f} | {run['added_p99_ms']:.2f} "
                f"| {run['lag_first']:g} | {run['lag_p99']:g} |"
            )
    if f := figures.get("memory"):
        lines += [
            "",
            "Memory by requests served: " + ", ".join(f"{n:,}: {m:.1f}" for n, m in f["series"]) + " MiB.",
        ]
    return lines


def write(path: Path, figures: Mapping[str, Any], notes: str = "") -> None:
    """Write the page: the table of targets, the details behind it, and the notes kept beside the code."""
    head = _HEAD.format(
        date=datetime.date.today().isoformat(),
        cpu=_cpu(),
        cores=os.cpu_count(),
        memory=psutil.virtual_memory().total / 2**30,
        python=platform.python_version(),
    )
    page = (
        head
        + "\n".join([*rows(figures), *_details(figures)])
        + "\n"
        + (f"\n{notes.strip()}\n" if notes else "")
    )
    path.write_text(page)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
