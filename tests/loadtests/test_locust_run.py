"""The whole chain, in seconds: locust in a process of its own, thresholds, report, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.bench.processes import ROOT, free_port, serve
from loadtests.record import read
from loadtests.run import Load, run
from loadtests.shapes import Plan
from tests.service.threaded import threaded_gateway

UPSTREAM = """
import asyncio, sys
from tests.fakes.upstream import FakeUpstream

async def main():
    await FakeUpstream().start(int(sys.argv[1]))
    await asyncio.Event().wait()

asyncio.run(main())
"""
BLOCKING = "input:\n  - {guard: patterns, patterns: ['(?i)instructions|guidelines'], action: block}\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with a guard that knows an attack, in front of a fake upstream."""
    folder = tmp_path_factory.mktemp("loadtest")
    port = free_port()
    argv = [sys.executable, "-c", UPSTREAM, str(port)]
    with serve(argv, port=port, ready="/v1/models", log=folder / "upstream.log", core=None):
        model = f'model: {{upstream: {{base_url: "http://127.0.0.1:{port}/v1", model: fake}}}}\n'
        with threaded_gateway(folder, {"standard": f"feedback: {{store: none}}\n{model}{BLOCKING}"}) as url:
            yield url


def test_the_mix_is_answered_blocked_and_timed(url: str, tmp_path: Path) -> None:
    everybody = ("Chat", "Stream", "LongContext", "Feedback", "Blocked")
    load = Load(Plan(((0, 20), (2, 20))), callers=everybody, think=0.2)
    seen = run(load, url, tmp_path, "mix").requests
    assert {row.kind for row in seen} == {"chat", "stream", "long", "rated", "feedback", "blocked"}
    assert {row.outcome for row in seen} == {"ok"}, [row for row in seen if row.outcome != "ok"]
    assert {row.status for row in seen if row.kind == "blocked"} == {400}
    streams = [row for row in seen if row.kind == "stream"]
    assert all(row.ttft_ms is not None and 0 < row.ttft_ms <= row.ms for row in streams)
    assert any(row.gaps_ms for row in streams)


def test_arrivals_come_at_their_rate_and_count_from_when_they_were_due(url: str, tmp_path: Path) -> None:
    seen = run(Load(Plan(((0, 1), (3, 1))), rate=50), url, tmp_path, "arrivals").requests
    assert 100 < sum(row.at < 3 for row in seen) < 200
    assert [row.at for row in seen] != sorted({round(row.at, 1) for row in seen})  # not in step with a clock


@pytest.mark.parametrize("limit", [60_000, 0])
def test_a_missed_threshold_fails_the_command(url: str, tmp_path: Path, limit: int) -> None:
    argv = [sys.executable, "-m", "loadtests", "--url", url, "--scale", "smoke", "--only", "mix"]
    argv += ["--out", str(tmp_path), "--threshold", f"mix.kinds.stream.ttft_ms.p95={limit}"]
    argv += ["--threshold", "mix.gap_ms.p99=60000"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == (0 if limit else 1), done.stdout + done.stderr
    assert ("MISSED mix.kinds.stream.ttft_ms.p95" in done.stdout) == (not limit)
    assert json.loads((tmp_path / "mix.json").read_text())["failed"] == 0
    assert "<img" in (tmp_path / "report.html").read_text()
    assert list(read(tmp_path / "mix.jsonl"))
