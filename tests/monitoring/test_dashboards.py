"""The dashboards as files: what the code builds, what Grafana's own types read, and a layout that holds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.__main__ import FOLDER, files, text
from monitoring.rule_cases import CASES, RULES, TESTS, alerts
from service.telemetry.metrics import Metrics
from service.telemetry.observers import EngineMetrics, RuntimeMetrics

ROOT = Path(__file__).parents[2]
BOARDS = sorted(FOLDER.glob("*.json"))
RUNBOOK = (ROOT / "docs" / "RUNBOOK.md").read_text(encoding="utf-8")


def board(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def panels(content: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels, rows left out."""
    return [panel for panel in content["panels"] if panel["type"] != "row"]


def test_the_files_are_what_the_code_builds() -> None:
    stale = [file.name for file, wanted in files().items() if file.read_text(encoding="utf-8") != wanted]
    assert stale == [], "run `python -m monitoring`"
    assert {path.name for path in BOARDS} == {file.name for file in files()} - {TESTS.name}
    assert len(BOARDS) == 7


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_grafanas_types_read_what_was_written(path: Path) -> None:
    content = board(path)
    assert text(Dashboard.from_json(content)) == path.read_text(encoding="utf-8")
    assert content["uid"] == f"keel-{path.stem}"


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_panel_says_what_it_shows_and_stands_alone(path: Path) -> None:
    content = board(path)
    taken: dict[tuple[int, int], str] = {}
    for panel in content["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]
    bottom = max(y for _, y in taken)
    assert all(any((x, y) in taken for x in range(24)) for y in range(bottom)), "an empty line"
    ids = [panel["id"] for panel in content["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(content):
        assert len(panel["description"]) > 10 or panel["description"].endswith("."), panel["title"]
        unit = (
            panel["options"]["yAxis"]["unit"]
            if panel["type"] == "heatmap"
            else panel["fieldConfig"]["defaults"]["unit"]
        )
        assert unit, panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        if panel["type"] == "timeseries":
            assert panel["options"]["legend"]["showLegend"], panel["title"]
            assert len(panel["targets"]) == 1 or all(
                target["legendFormat"] != "__auto" for target in panel["targets"]
            ), panel["title"]
    titles = [(panel["title"], panel["type"]) for panel in panels(content)]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_windows_hold_for_any_scrape_interval(path: Path) -> None:
    """Grafana makes `$__rate_interval` four scrape intervals at least; other windows are an hour or more."""
    content = board(path)
    for panel in panels(content):
        for target in panel["targets"]:
            for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
                assert window in ("$__rate_interval", "1h", "1d", "7d"), (panel["title"], window)
            if "histogram_quantile" in target["expr"]:
                assert re.search(r"sum by \([^)]*\ble\b", target["expr"]), panel["title"]


def test_every_label_of_a_query_exists() -> None:
    """Keel's metrics are asked only for labels that they have."""
    known = _labels()
    for path in BOARDS:
        for panel in panels(board(path)):
            for target in panel["targets"]:
                for metric, matchers in re.findall(r"\b(keel_\w+|gen_ai_\w+)\{([^}]*)\}", target["expr"]):
                    if metric.startswith("keel_train_"):
                        continue
                    name = re.sub(r"_(bucket|sum|count)$", "", metric)
                    labels = set(re.findall(r"(\w+)[=!]", matchers)) - {"instance"}
                    assert labels <= known[name if name in known else metric], (path.stem, panel["title"])


def _labels() -> dict[str, set[str]]:
    """The labels of each metric, by its name in the exposition."""
    metrics = Metrics()
    EngineMetrics(metrics)
    RuntimeMetrics(metrics)
    out: dict[str, set[str]] = {}
    for collector in set(metrics.registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for name in metrics.registry._collector_to_names[collector]:
            out[name] = labels
    return out


def _exported() -> set[str]:
    """The names of all metrics."""
    metrics = Metrics()
    EngineMetrics(metrics)
    RuntimeMetrics(metrics)
    return {f"{f.name}_total" if f.type == "counter" else f.name for f in metrics.registry.collect()}


def test_every_metric_is_in_a_panel_or_an_alert() -> None:
    asked = " ".join(
        target["expr"] for path in BOARDS for panel in panels(board(path)) for target in panel["targets"]
    )
    asked += RULES.read_text(encoding="utf-8")
    unseen = {name for name in _exported() if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", asked)}
    assert unseen == {"process_virtual_memory_bytes", "process_start_time_seconds", "process_max_fds"}


def test_every_metric_is_in_the_documentation() -> None:
    """And the other way round: what is listed there exists."""
    pages = [
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("OPERATIONS.md", "OBSERVABILITY.md")
    ]
    rows = "\n".join(line for page in pages for line in page.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`((?:keel|gen_ai|process)_\w+)", rows))
    known = _exported()
    assert known - listed == set(), "list them in docs/OPERATIONS.md"
    assert listed - known == set(), "there are no such metrics"


def test_every_alert_has_its_tests_and_its_page() -> None:
    known = alerts()
    assert set(known) == {case.alert for case in CASES}
    headings = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(headings) == sorted(known), "a section of docs/RUNBOOK.md for each alert"
    for name, rule in known.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook_url"] == f"docs/RUNBOOK.md#{name.lower()}"
        section = RUNBOOK.split(f"## {name}\n")[1].split("\n## ")[0]
        assert "**Look at**" in section and "**Do**" in section, name
    for window in re.findall(r"\[(\d+)([smhd])\]", RULES.read_text(encoding="utf-8")):
        assert window[1] != "s", "shorter than four scrapes at 15 s"


def test_the_runbook_leads_to_panels_and_log_lines_that_are_there() -> None:
    titles = {}
    for path in BOARDS:
        content = board(path)
        titles[content["title"].removeprefix("Keel / ").lower()] = [p["title"] for p in content["panels"]]
    named = re.findall(r"\*([A-Z][a-z ]+): ([^*]+)\*", RUNBOOK)
    assert len(named) > 20
    for dashboard, panel in named:
        (found,) = [all_ for title, all_ in titles.items() if title.startswith(dashboard.lower())]
        assert any(title.startswith(panel) for title in found), (dashboard, panel)
    sentences = re.findall(r"log's lines? ([^.:;]*)", " ".join(RUNBOOK.split()))
    logged = [event for sentence in sentences for event in re.findall(r"`([a-z]+_\w+)`", sentence)]
    assert len(logged) > 5
    code = "".join(
        path.read_text() for room in ("service", "guardrails") for path in (ROOT / room).rglob("*.py")
    )
    assert [event for event in logged if f'"{event}"' not in code] == []


@pytest.mark.servers("promtool")
def test_every_alert_fires_and_clears() -> None:
    program = shutil.which("promtool")
    assert program is not None
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(TESTS)]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [program, "check", "config", "--syntax-only", "prometheus.yml"],
        cwd=ROOT / "monitoring" / "prometheus",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
