"""From requests to figures, verdicts and pages: a missed threshold fails the run and reads as missed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from loadtests import figures, report
from loadtests.record import Recorder, Seen, read
from loadtests.run import Run
from loadtests.thresholds import THRESHOLDS, changed, judge
from loadtests.watch import Sample


def seen(at: float, ms: float, outcome: Any = "ok", **more: Any) -> Seen:
    return Seen(at, more.pop("kind", "chat"), ms, 200 if outcome == "ok" else 503, outcome, **more)


def test_goodput_counts_answers_when_they_come() -> None:
    requests = [seen(0.5, 1_000), seen(1.5, 100), seen(1.9, 5_000), seen(1.2, 3, "refused")]
    found = figures.of_requests(requests, 1.0, 2.0)
    assert (found["requests"], found["ok"], found["refused"], found["failed"]) == (3, 2, 1, 0)
    assert found["goodput"] == 2.0  # the first, due earlier, and the second; the third comes too late
    assert found["refused_ms"]["p99"] == 3
    assert math.isnan(figures.of_requests(requests, 5, 6)["ms"]["p99"])


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [figures.quantile(values, level) for level in (0.5, 0.99, 1.0, 0.0)] == [50, 99, 100, 1]


def test_memory_growth_leaves_the_warm_up_out() -> None:
    def sample(at: int) -> Sample:
        return Sample(at, {"gateway": 50.0 if at < 100 else 100 + at / 100, "vLLM": 700.0}, {})

    samples = [sample(at) for at in range(1_001)]
    assert figures.growth(samples, "vLLM")["growth_per_cent"] == 0
    grown = figures.growth(samples, "gateway")
    assert grown == {"start_mib": 101.5, "end_mib": 109.5, "growth_per_cent": pytest.approx(7.88, abs=0.01)}


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    rows = [
        seen(1.0, 2.0, kind="stream", ttft_ms=1.5, gaps_ms=[0.1, 0.2]),
        seen(2.0, 3.0, "failed", error="x"),
    ]
    recorder = Recorder(tmp_path / "run.jsonl")
    for row in rows:
        recorder.add(row)
    recorder.close()
    assert list(read(tmp_path / "run.jsonl")) == rows


def overload(**changes: float) -> dict[str, Any]:
    times = {"p50": 10.0, "p95": 20.0, "p99": 30.0, "max": 40.0}
    of = {
        "capacity": 40.0,
        "offered": 400.0,
        "goodput": 39.0,
        "times_capacity": 10.0,
        "goodput_share": 0.975,
        "admitted_p99_ms": 3_000.0,
        "refused_p99_ms": 12.0,
        "failed": 0,
        "ms": times,
        "refused_ms": times,
    }
    return {"when": {"overload": "2000-01-01"}, "overload": {"standard": {**of, **changes}}}


@pytest.mark.parametrize(
    ("figure", "value"),
    [("goodput_share", 0.89), ("refused_p99_ms", 51.0), ("refused_p99_ms", math.nan), ("failed", 1)],
)
def test_a_figure_beyond_its_threshold_is_missed(figure: str, value: float) -> None:
    assert all(found.met for found in judge(overload()))
    missed = [found.threshold.figure for found in judge(overload(**{figure: value})) if not found.met]
    assert missed == [f"overload.standard.{figure}"]


def test_thresholds_can_be_changed_by_name_only() -> None:
    name = "overload.standard.refused_p99_ms"
    strict = changed(THRESHOLDS, [f"{name}=10"])
    assert [found.threshold.figure for found in judge(overload(), strict) if not found.met] == [name]
    with pytest.raises(ValueError, match="no threshold is named 'refused'"):
        changed(THRESHOLDS, ["refused=1"])


def test_the_pages_say_what_was_missed_and_show_the_pictures(tmp_path: Path) -> None:
    found = overload(goodput_share=0.5)
    requests = [seen(i / 40, 500.0) for i in range(80)] + [seen(i / 400, 5, "refused") for i in range(800)]
    pictures = report.draw(found, {"overload.standard": Run(requests, [])}, tmp_path / "pictures")
    assert [path.name for path in pictures] == ["overload-standard.png", "waits-standard.png"]
    judged = judge(found)
    report.write_page(tmp_path / "page.md", found, judged, "What limits it: nothing.", tmp_path / "pictures")
    page = (tmp_path / "page.md").read_text()
    assert (
        "| `overload.standard.goodput_share` | of the peak is still answered | at least 0.9 | 0.5 |" in page
    )
    assert page.count("**missed**") == 1
    assert "![overload-standard](pictures/overload-standard.png)" in page
    assert page.endswith("What limits it: nothing.\n")
    report.write_html(tmp_path / "report.html", found, judged, pictures)
    html = (tmp_path / "report.html").read_text()
    assert "1 of 5 thresholds missed" in html
    assert html.count("data:image/png;base64,") == 2
