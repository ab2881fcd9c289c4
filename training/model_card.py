"""The model card: what a checkpoint is, in words, beside the manifest that proves it (Mitchell et al. 2019,
arXiv:1810.03993).

Written by program from what is recorded, so that nothing in it can differ from what was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import yaml

from policies.manifest import DataSource, Evaluation
from training.checks import Check

if TYPE_CHECKING:
    from training.publish import Draft

CARD_NAME = "README.md"
_SERVES = {
    "full": "A chat model: the gateway serves it as it is.",
    "adapter": "A low-rank update, served together with its parent.",
    "reward": "A reward model: scores replies, generates nothing.",
    "classifier": "A text classifier, run by the guard workers.",
}


def model_card(draft: Draft, checks: Iterable[Check], limits: Sequence[str] = ()) -> str:
    """The card in Markdown. `limits` are known weaknesses in a person's words, a sentence each."""
    sections = [
        f"# {draft.name}",
        draft.description or "(No description was given.)",
        f"{_SERVES[draft.kind]} {_origin(draft)}",
        "## Figures",
        _figures(draft.evaluations),
        "## Gates",
        "\n".join(f"- {check}" for check in checks) or "None.",
        "## Data",
        _data(draft.data),
        "## Limits",
        "\n".join(f"- {limit}" for limit in [*limits, *_known_limits(draft)]),
        "## Config",
        f"Method `{draft.method}`, seed {draft.seed}, code {draft.code_revision}.",
        f"```yaml\n{yaml.safe_dump(draft.config, sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(sections) + "\n"


def _origin(draft: Draft) -> str:
    if draft.parent is not None:
        return f"Made by `{draft.method}` from `{draft.parent}`."
    if draft.base is not None:
        base = draft.base
        return (
            f"Made by `{draft.method}` from {base.name} (revision {base.revision}, licence {base.licence})."
        )
    return f"Made by `{draft.method}` from nothing: its weights have seen only the data below."


def _figures(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "Nothing was measured."
    lines = ["| figure | value | 95 % interval | rows | on |", "|---|---|---|---|---|"]
    for e in evaluations:
        interval = "–" if e.low is None or e.high is None else f"{e.low:.4g} to {e.high:.4g}"
        lines.append(f"| {e.metric} | {e.value:.4g} | {interval} | {e.n} | {_cell(e.data)} |")
    return "\n".join(lines)


def _data(sources: Sequence[DataSource]) -> str:
    if not sources:
        return "None was recorded."
    lines = ["| file | from | licence | sha256 |", "|---|---|---|---|"]
    for s in sources:
        lines.append(f"| {_cell(s.path)} | {_cell(s.origin)} | {_cell(s.licence)} | {s.sha256[:16]}… |")
    return "\n".join(lines)


def _known_limits(draft: Draft) -> list[str]:
    """What follows from the record alone."""
    limits = ["The figures hold for the rows that they were measured on; other texts will differ."]
    if few := [e.metric for e in draft.evaluations if 0 < e.n < 100]:
        limits.append(f"Measured on fewer than a hundred rows: {', '.join(few)}.")
    if unsure := [e.metric for e in draft.evaluations if e.low is None]:
        limits.append(f"Without an interval: {', '.join(unsure)}.")
    if draft.kind in ("full", "adapter") and not any("violation" in e.metric for e in draft.evaluations):
        limits.append("Its safety was not measured; serve it behind a policy with guards.")
    if draft.kind == "reward":
        limits.append(
            "A proxy of what people want: optimised too hard, it is met without being what was meant."
        )
    if share_alike := sorted({s.licence for s in draft.data if "SA" in s.licence.upper().split("-")}):
        limits.append(
            f"Part of its data is under {', '.join(share_alike)}: whoever passes it on must say so."
        )
    return limits


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
