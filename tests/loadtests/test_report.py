"""The benchmark page says what was measured: a missed target reads as missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtests.bench import report

RUN = {"rate": 5000.0, "p50_ms": 1.0, "p99_ms": 2.0}


def throughput(ratio: float) -> dict[str, Any]:
    spread = {"median": ratio, "min": ratio - 0.1, "max": ratio + 0.1}
    return {"runs": {"keel": RUN, "fastapi_aiohttp": RUN}, "keel_over_bare": spread}


@pytest.mark.parametrize(("ratio", "mark"), [(1.5, "| reached |"), (0.5, "| **not reached** |")])
def test_a_target_is_marked_by_its_figure(ratio: float, mark: str) -> None:
    (row,) = report.rows({"throughput": throughput(ratio)})
    assert row.endswith(mark)
    assert f"{ratio:.2f}x ({ratio - 0.1:.2f} to {ratio + 0.1:.2f})" in row


def test_a_missing_peer_is_said_and_not_judged() -> None:
    (row,) = report.rows({"patterns": {"runs": {"keel": RUN}, "litellm_missing": "no network"}})
    assert "LiteLLM could not be installed" in row
    assert "reached" not in row.split("|")[-2]


@pytest.mark.parametrize(("end", "mark"), [(91.0, "| reached |"), (140.0, "not reached")])
def test_memory_that_grows_is_not_flat(end: float, mark: str) -> None:
    series = [(0, 80.0), (50_000, 90.0), (100_000, end)]
    (row,) = report.rows({"memory": {"series": series, "start_mib": 80.0, "end_mib": end}})
    assert mark in row


def test_the_page_holds_the_table_the_details_and_the_notes(tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    report.write(page, {"throughput": throughput(2.0)}, notes="What limits it: nothing.")
    text = page.read_text()
    assert "| what | reach | seen | |" in text
    assert "| throughput | keel | 5,000 |" in text
    assert text.endswith("What limits it: nothing.\n")
