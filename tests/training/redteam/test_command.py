"""`keel redteam` through real HTTP, its limits and exit statuses, and what its page shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from training.redteam import Report, load_behaviors
from training.redteam.campaign import Attempt
from training.redteam.cli import FAILED, PASSED, UNUSABLE, main

PAGE = (Path(__file__).parents[3] / "docs" / "REDTEAM.md").read_text(encoding="utf-8")


class _Gateway(BaseHTTPRequestHandler):
    """`open` obliges; `mine` blocks what its scores say, and refuses what says "how"."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = str(body["messages"][-1]["content"])
        score = 0.9 if re.search(r"\b(write|explain|show)\b", text, re.I) else 0.1
        if self.path == "/v1/checks":
            guard = {"guard": "harm", "categories": {"harm": score}}
            self._send(200, {"results": [{"guards": [guard]}]})
        elif body["model"] == "down":
            self._send(500, {"error": {"message": "broken", "code": "x"}})
        elif body["model"] == "mine" and score > 0.5:
            self._send(
                400, {"error": {"message": "no", "code": "content_filter"}, "guardrails": {"input": []}}
            )
        else:
            refuses = body["model"] == "mine" and "how " in text.lower()
            said = "I am sorry, but I cannot help with that." if refuses else f"Sure: {text}"
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            self._send(200, {"choices": [choice]})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-keel-checkpoint", "demo@1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_run_its_files_and_its_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gateway() as url:
        asked = [
            "--target",
            url,
            "--packs",
            "weapons",
            "--policy",
            "mine",
            "--strategies",
            "direct",
            "authority",
        ]
        status = main([*asked, "--before", "open", "--out", str(tmp_path), "--fail-above", "0.9"])
        assert status == PASSED
        assert "all attacks" in capsys.readouterr().out
        report = Report.read(tmp_path / "report.json")
        assert report.targets == ("mine", "open")
        assert report.success_rate("open").value == 1  # type: ignore[union-attr]
        assert 0 < report.success_rate("mine").value < 1  # type: ignore[union-attr]
        assert report.outcomes("mine")["blocked_input"] > 0
        assert report.about["checkpoint"] == "demo@1"
        assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
        assert main([*asked, "--fail-above", "0"]) == FAILED
        cases = str(tmp_path / "cases.jsonl")
        assert main(["--target", url, "--policy", "mine", "--replay", cases, "--fail-above", "0"]) == FAILED
        assert (
            main(["--target", url, "--policy", "mine", "--packs", "hate", "--fail-refusals-above", "0"])
            == FAILED
        )


def test_a_budget_and_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gateway() as url:
        common = ["--target", url, "--policy", "mine", "--packs", "weapons", "cyber", "--out", str(tmp_path)]
        assert main([*common, "--budget", "40", "--attacker", "learner", "--no-twins"]) == PASSED
        assert len(Report.read(tmp_path / "report.json").attempts) == 40
        plain = main([*common, "--strategies", "direct"])
        before = Report.read(tmp_path / "report.json").outcomes("mine")["blocked_input"]
        found = main([*common, "--strategies", "direct", "--search"])
        assert plain == found == PASSED
        after = Report.read(tmp_path / "report.json").outcomes("mine").get("blocked_input", 0)
        assert after < before
        assert "came under it" in capsys.readouterr().out


def test_every_policy_but_the_one_for_comparison_is_held_to_the_limits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with gateway() as url:
        asked = ["--target", url, "--packs", "weapons", "--strategies", "direct", "--fail-above", "0.9"]
        assert main([*asked, "--policy", "mine", "--before", "open"]) == PASSED
        assert main([*asked, "--policy", "mine", "--policy", "open"]) == FAILED
        told = capsys.readouterr().out
        assert "open: 100.0 % [67.6, 100.0] of 8 attacks succeeded, 90 % are allowed" in told
        assert "attacking: 16 of 32" in told  # a log draws no bar


def test_what_was_hunted_on_one_policy_is_asked_of_the_other_too(tmp_path: Path) -> None:
    with gateway() as url:
        asked = ["--target", url, "--packs", "weapons", "--policy", "mine", "--before", "open"]
        assert main([*asked, "--budget", "10", "--no-twins", "--out", str(tmp_path)]) == PASSED
    report = Report.read(tmp_path / "report.json")
    sent = {
        target: sorted((a.behavior, a.strategy) for a in report.attempts if a.target == target)
        for target in report.targets
    }
    assert len(sent["mine"]) == 10
    assert sent["open"] == sent["mine"]


def test_limits_that_nothing_could_be_above_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--fail-above", "5"], ["--fail-refusals-above", "0.1", "--no-twins"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == UNUSABLE
    told = capsys.readouterr().err
    assert "5 % is 0.05" in told
    assert "leave out --no-twins" in told


def test_what_can_not_be_run_is_no_clean_bill_of_health(capsys: pytest.CaptureFixture[str]) -> None:
    with gateway() as url:
        assert main(["--target", url, "--policy", "down", "--packs", "hate"]) == UNUSABLE
        told = capsys.readouterr().err
        assert "broken" in told
        assert "Nothing was attacked" in told
        assert main(["--target", url, "--strategies", "no_such"]) == UNUSABLE
        assert "there is no strategy" in capsys.readouterr().err
        assert main(["--target", url, "--judge-url", url]) == UNUSABLE


def test_keel_finds_the_command() -> None:
    code = "from service.commands import app; app(['redteam', '--list'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "crescendo" in done.stdout


def test_the_page_is_right(tmp_path: Path) -> None:
    (pack,) = re.findall(r"^```yaml\n(domain: .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    path = tmp_path / "travel.yaml"
    path.write_text(pack)
    assert load_behaviors([path])[0].domain == "travel"
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/REDTEAM.md, block {number + 1}", "exec"), {})  # noqa: S102
    fields = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE.partition("## report.json")[2], re.MULTILINE))
    assert fields >= set(Report.model_fields) - {"attempts", "twins"}
    assert {field.removeprefix("attempts.") for field in fields if field.startswith("attempts.")} == set(
        Attempt.model_fields
    )
    assert {field.removeprefix("summary.") for field in fields if field.startswith("summary.")} == set(
        Report(targets=("one",)).summary()["one"]
    )
    goals = [behavior.goal for behavior in load_behaviors()]
    assert f"{goals.count('answer')} requests" in PAGE
