"""docs/BENCHMARKS-TRAINING.md, written from the figures of a run."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from training.bench.workers import TRL

_NOTES = Path(__file__).with_name("NOTES.md")
_CPU_TIME = """ of CPU time, so that another process on
the machine does not count; wall-clock rates stand beside them. One thread each"""
_HEAD = """# Benchmarks of training

Written by `{command}` on {date}; the figures are replaced as a whole by each run.

Machine: {machine}, Python {python}, torch {torch}, transformers {transformers}. Those compared stay loaded
and take turns (A B C A B C …). A figure is the median of its rounds, a ratio is taken round by round.
Rates are tokens of replies, their end of text included, per second{clock}.

| what | reach | seen | |
|---|---|---|---|
"""


def write(place: Path, figures: Mapping[str, Any], device: str) -> None:
    """Replace the page."""
    on_cpu = device == "cpu"
    head = _HEAD.format(
        command="make bench-training" if on_cpu else f"python -m training.bench --device {device}",
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        machine=_machine() if on_cpu else torch.cuda.get_device_name(device),
        clock=_CPU_TIME if on_cpu else "",
        transformers=transformers.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
    )
    sections = [_ppo_details(figures), _rollout_details(figures), _method_details(figures)]
    text = head + "\n".join(_targets(figures)) + "\n" + "".join(sections)
    place.write_text(text + "\n" + _NOTES.read_text(encoding="utf-8"), encoding="utf-8")


def _targets(figures: Mapping[str, Any]) -> list[str]:
    lines = []
    for what, seen in figures.get("ppo", {}).items():
        ratio, rate, base = seen["keel"]["ratio"], seen["keel"], seen["trl"]
        rates = f"{rate['rate']:,.0f} against {base['rate']:,.0f} tokens/s"
        told = f"{rates}: {_spread(ratio)}"
        lines.append(_row(f"PPO, {what}", f"≥ 3x TRL {TRL}", told, ratio["median"] >= 3))
    for method, seen in figures.get("beside_trl", {}).items():
        told = f"{seen['own_s']:.2f} against {seen['trl_s']:.2f} s: {_spread(seen['ratio'])}"
        reached = seen["ratio"]["median"] <= 1.05
        lines.append(_row(f"{method.upper()}, time", "≤ 1.05x TRL called directly", told, reached))
    ways = figures.get("rollouts", {})
    for way in ("keel", "vllm"):
        if way in ways:
            told = f"{ways[way]['rate']:,.0f} tokens/s: {_spread(ways[way]['ratio'])}"
            lines.append(_row(f"rollouts, {_WAYS[way]}", "transformers' generate()", told, None))
    return lines


_WAYS = {"keel": "in process", "vllm": "vLLM", "generate": "transformers' generate()"}


def _ppo_details(figures: Mapping[str, Any]) -> str:
    if "ppo" not in figures:
        return ""
    lines = [
        "\n## PPO\n",
        "| replies | trainer | rate | tokens/s of wall time | peak MiB | over TRL |",
        "|---|---|---|---|---|---|",
    ]
    for what, seen in figures["ppo"].items():
        for name, f in seen.items():
            lines.append(
                f"| {what} | {name} | {f['rate']:,.0f} | {f['tokens_per_s']:,.0f} "
                f"| {f['memory_mib']:,.0f} | {_spread(f['ratio'])} |"
            )
    return "\n".join(lines) + "\n"


def _rollout_details(figures: Mapping[str, Any]) -> str:
    if "rollouts" not in figures:
        return ""
    lines = [
        "\n## Rollouts\n",
        "| way | rate | tokens/s of wall time | resident MiB | over generate() |",
        "|---|---|---|---|---|",
    ]
    for name, f in figures["rollouts"].items():
        lines.append(
            f"| {_WAYS[name]} | {f['rate']:,.0f} | {f['tokens_per_s']:,.0f} "
            f"| {f['memory_mib']:,.0f} | {_spread(f['ratio'])} |"
        )
    return "\n".join(lines) + "\n"


def _method_details(figures: Mapping[str, Any]) -> str:
    if "beside_trl" not in figures:
        return ""
    lines = ["\n## SFT and DPO\n", "| method | ours, s | TRL, s | ratio |", "|---|---|---|---|"]
    for method, f in figures["beside_trl"].items():
        lines.append(f"| {method} | {f['own_s']:.2f} | {f['trl_s']:.2f} | {_spread(f['ratio'])} |")
    return "\n".join(lines) + "\n"


def _row(what: str, reach: str, seen: str, reached: bool | None) -> str:
    mark = "" if reached is None else ("reached" if reached else "**not reached**")
    return f"| {what} | {reach} | {seen} | {mark} |"


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
