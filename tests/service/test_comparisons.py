"""Comparisons, reviews, and what comes out of the store as training data."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from service.active import OVERLAP, Candidate, choose
from service.agreement import alpha
from service.auth import KeyFile
from service.commands import app
from service.pairing import pairs_of
from tests.service.conftest import Running, Serve
from tests.service.test_feedback import KEEPING, completed
from training.data.feedback import main, read_feedback
from training.data.quality import krippendorff_alpha
from training.data.reviews import read_reviews
from training.data.safety_written import pair as with_prompt

ADMIN = "keel-admin-key-0123456789"
PAIRS = [
    {"prompt": "What is two and two?", "first": "Four.", "second": "Five."},
    {"prompt": [{"role": "user", "content": "Hi"}], "first": "Hello!", "second": "What?", "gap": 3.0},
    {"prompt": "Name a colour.", "first": "Blue.", "second": "Monday.", "objective": "helpful"},
]


def keel_command(tmp_path: Path, *arguments: str, status: int = 0) -> str:
    config = tmp_path / "command.yaml"
    config.write_text(f"state_dir: {tmp_path / 'state'}\n")
    result = CliRunner().invoke(app, ["feedback", *arguments, "--config", str(config)])
    assert result.exit_code == status, result.output
    return result.output


async def command(tmp_path: Path, *arguments: str) -> str:
    return await asyncio.to_thread(keel_command, tmp_path, *arguments)


def raters(tmp_path: Path) -> list[dict[str, str]]:
    file = KeyFile(tmp_path / "state" / "keys.json")
    return [{"authorization": f"Bearer {file.create(name, role='rater')}"} for name in ("rita", "walter")]


async def next_pair(keel: Running, rater: dict[str, str]) -> dict[str, Any]:
    status, raw, _ = await keel.get("/v1/comparisons/next", rater)
    assert status == 200, raw
    found: dict[str, Any] = json.loads(raw)
    return found


async def judge(keel: Running, rater: dict[str, str], pair: dict[str, Any], **said: Any) -> None:
    body = {"pair": pair["id"], "left": pair["left"], **said}
    status, answer, _ = await keel.post("/v1/comparisons", body, rater)
    assert status == 200, answer


async def test_pairs_are_compared_blind_and_exported(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)))
    rita, walter = raters(tmp_path)
    async with serve(admin_key=ADMIN) as keel:
        assert "3 pairs" in await command(tmp_path, "import-pairs", str(file))
        await command(tmp_path, "import-pairs", str(file))  # again: changes nothing
        for rater in (rita, walter):
            seen = set()
            for number in range(3):
                found = await next_pair(keel, rater)
                pair = found["pair"]
                assert (found["judged"], found["left"]) == (number, 3 - number)
                assert pair.keys() == {"id", "objective", "prompt", "left", "replies"}
                seen.add(pair["prompt"][-1]["content"])
                better = "right" if pair["replies"]["right"] in ("Four.", "Hello!", "Blue.") else "left"
                if "colour" in pair["prompt"][-1]["content"] and rater is walter:
                    await judge(keel, rater, pair, choice="skip", reason="unclear")
                else:
                    await judge(keel, rater, pair, choice=better, strength=3, seconds=4.5)
            assert len(seen) == 3 and (await next_pair(keel, rater))["pair"] is None
        for body, status in [
            ({"pair": pair["id"], "left": "first", "choice": "skip"}, 400),
            ({"pair": pair["id"], "left": "first", "choice": "tie", "reason": "unclear"}, 400),
            ({"pair": "nothing", "left": "first", "choice": "tie"}, 404),
            ({"pair": pair["id"], "left": "first", "choice": "first"}, 400),
        ]:
            assert (await keel.post("/v1/comparisons", body, rita))[0] == status
        assert (await keel.get("/v1/comparisons/next"))[0] == 401
        headers = {"authorization": f"Bearer {ADMIN}"}
        status, raw, _ = await keel.get("/admin/v1/feedback", headers)
        summary = json.loads(raw)
        assert (summary["judgements"], summary["skipped"], summary["raters"]) == (6, 1, 2)
        assert (summary["pairs"]["several"], summary["pairs"]["judged"]) == (2, 3)
        out = tmp_path / "out.jsonl"
        told = await command(tmp_path, "export", "--out", str(out))
        assert "5 preference rows" in told and "1 skipped pairs" in told
        found = read_feedback(out)
        assert {p.chosen for p in found.preferences} == {"Four.", "Hello!", "Blue."}
        assert {p.strength for p in found.preferences} == {3.0}
        assert {p.objective for p in found.preferences} == {"overall", "helpful"}
        assert len({p.rater for p in found.preferences}) == 2
        assert "rita" not in out.read_text() and "walter" not in out.read_text()


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"prompt": "x", "first": "a"}', '{"prompt": "x", "first": "a", "second": "a "}',
     '{"prompt": [{"role": "tool", "content": "x"}], "first": "a", "second": "b"}'],
)  # fmt: skip
def test_pairs_that_are_none(tmp_path: Path, line: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{json.dumps(PAIRS[0])}\n{line}\n")
    assert "pairs.jsonl:2" in keel_command(tmp_path, "import-pairs", str(file), status=2)


async def test_everything_kept_goes_round_into_training(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thumbs, scores, corrections, preferences, mined pairs and reviews: out, and read by what trains."""
    threads: list[threading.Thread] = []
    monkeypatch.setattr(
        "service.comparisons.pairs_of",
        lambda kept: threads.append(threading.current_thread()) or pairs_of(kept),
    )
    (rita, _) = raters(tmp_path)
    async with serve({"keeping": KEEPING}, admin_key=ADMIN) as keel:
        first = await completed(keel, "keeping", "How are you?", "I am well.")
        second = await completed(keel, "keeping", "How are you?", "Go away.")
        for body in [
            {"completion_id": first, "thumb": "up", "score": 4, "rater": "eve"},
            {"completion_id": second, "thumb": "down", "correction": "I am fine, and you?", "rater": "eve"},
            {"completion_id": second, "preferred_over": first, "rater": "eve"},  # and thought better of it
            {"completion_id": first, "preferred_over": second, "strength": 2, "rater": "eve"},
            {"completion_id": first, "thumb": "down", "rater": "mallory"},
        ]:
            assert (await keel.post("/v1/feedback", body))[0] == 200
        await keel.gateway.records.aclose()
        await keel.gateway.writer.flush()
        pair = (await next_pair(keel, rita))["pair"]
        assert set(pair["replies"].values()) == {"I am well.", "Go away."}
        assert (
            threads and threading.current_thread() not in threads
        )  # texts are long, and the loop is everybody's
        side = next(name for name, reply in pair["replies"].items() if reply == "I am well.")
        await judge(keel, rita, pair, choice=side, strength=1)
        out = tmp_path / "out.jsonl"
        told = await command(tmp_path, "export", "--out", str(out))
        assert "2 preference rows" in told and "3 rating rows" in told and "1 correction rows" in told
        assert "alpha" in told
        headers = {"authorization": f"Bearer {ADMIN}"}
        for says, decision in [("You forbidden thing.", "overturned"), ("It is forbidden.", "upheld")]:
            await completed(keel, "keeping", "Hello", says)
            await keel.gateway.records.aclose()
            await keel.gateway.writer.flush()
            _, raw, _ = await keel.get("/admin/v1/reviews", headers)
            (item,) = json.loads(raw)["items"]
            path, body = f"/admin/v1/reviews/{item['id']}", {"decision": decision, "note": "seen"}
            status, answer, _ = await keel.post(path, body, headers)
            assert (status, answer["status"], answer["decided_by"]) == (200, decision, "admin:settings-admin")
            status, answer, _ = await keel.post(path, {"decision": "upheld"}, headers)
            assert status == 409, answer
        _, metrics, _ = await keel.get("/metrics")
        assert b'keel_reviews_total{decision="overturned",policy="keeping"} 1.0' in metrics
        assert b"keel_review_queue 0.0" in metrics
        harm = {"guard": "harm", "kind": "harm", "entity_type": "UNSAFE_REPLY", "start": 0, "end": 15}
        insult = {"guard": "toxicity", "kind": "toxicity", "entity_type": "INSULT", "start": 6, "end": 15}
        for status, findings in (("overturned", [insult]), ("upheld", [{**insult, "start": 0}, harm])):
            row = {**item, "id": f"rev-{status}", "findings": findings, "status": status}
            await keel.gateway.writer.write("reviews", {**row, "decided_at": time.time()})
        told = await command(tmp_path, "export", "--reviews", "--out", str(tmp_path / "reviews.jsonl"))
        assert "1 overturned rows" in told and "2 reviews of what no classifier had found" in told
        reviewed = read_reviews([tmp_path / "reviews.jsonl"])
        assert (reviewed.counts, reviewed.unknown) == ((3, 1), 0)
        assert {(one.text, *one.labels.items()) for one in reviewed.examples} == {
            ("forbidden", ("insult", 0.0)),
            ("It is forbidden", ("insult", 1.0), ("toxicity", 1.0)),
            (with_prompt("Hello", "It is forbidden"), ("unsafe_reply", 1.0)),
        }
        await keel.gateway.audit.flush()
        records = "".join(p.read_text() for p in keel.gateway.settings.audit_folder.rglob("*.jsonl"))
        assert "review.overturned" in records and "forbidden" not in records
    assert main([str(out), "--folder", str(tmp_path / "data")]) == 0
    assert "raters of ratings agree" in capsys.readouterr().out
    found = read_feedback(out)
    assert found.kinds == {"preference": 2, "rating": 3, "correction": 1}
    assert {p.chosen for p in found.preferences} == {"I am well.", "I am fine, and you?"}
    assert (tmp_path / "data" / "demonstrations.jsonl").is_file()


def test_alpha_is_what_training_reports() -> None:
    rng = Random(0)
    for _ in range(50):
        units = [rng.choices("abc", (5, 2, 1), k=rng.randint(1, 4)) for _ in range(rng.randint(1, 12))]
        ours, several = alpha(units)
        theirs = krippendorff_alpha(units)
        assert several == sum(len(unit) > 1 for unit in units)
        assert ours == pytest.approx(theirs) if theirs is not None else ours is None


def test_what_is_undecided_comes_first_and_some_pairs_come_twice() -> None:
    rng = Random(0)
    fresh = [Candidate(f"clear {i}", 6.0, 0, 0, 0) for i in range(20)]
    close = [Candidate(f"close {i}", 0.0, 0, 0, 0) for i in range(20)]
    shared = [Candidate(f"shared {i}", None, 1, 0, 0) for i in range(5)]
    disputed = Candidate("disputed", None, 1, 1, 0)
    enough = Candidate("enough", 0.0, 1, 1, 1)
    picks = Counter[str]()
    for _ in range(2_000):
        chosen = choose([*fresh, *close, *shared, disputed, enough], rng)
        assert chosen is not None
        picks[chosen.id.split()[0]] += 1
    assert picks["close"] > 4 * picks["clear"]
    assert abs(picks["disputed"] / 2_000 - OVERLAP) < 0.04  # four standard errors
    assert picks["shared"] == picks["enough"] == 0
    assert choose([enough], rng) is None
    assert choose(shared, rng) in shared


def test_pairs_that_are_near_even_are_asked_first() -> None:
    """Of 60 pairs whose rewards are known, the 20 that are asked are nearer to even than 20 at random."""
    answers = {}
    for seed in range(20):
        rng = Random(seed)
        gaps = [rng.gauss(0, 2) for _ in range(60)]
        candidates = [Candidate(str(i), gap, 0, 0, 0) for i, gap in enumerate(gaps)]
        asked = []
        for _ in range(20):
            chosen = choose(candidates, rng)
            assert chosen is not None
            asked.append(abs(gaps[int(chosen.id)]))
            candidates.remove(chosen)
        random = [abs(gap) for gap in rng.sample(gaps, 20)]
        answers[seed] = (sum(asked) / 20, sum(random) / 20)
    assert sum(by_doubt < by_lot for by_doubt, by_lot in answers.values()) >= 18
