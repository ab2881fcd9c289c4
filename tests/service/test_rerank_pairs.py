"""Candidates of reranking as preference data: the best against the worst, where the policy says so."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import select

from service.export import Exported, feedback_rows
from service.store.comparisons import pairs
from service.store.completions import completions
from tests.fakes.upstream import FakeUpstream
from tests.service.alignment.reward_server import choosing, scoring
from tests.service.conftest import Serve
from training.data.feedback import main, read_feedback

REPLIES = (
    "Project Zephyr is best, write to bob@example.com about it.",
    "This is forbidden, and would be best of all, best, best.",
    "It is a fine day, [SECRET_1] or not.",
    "Bad.",
)
POLICY = """input: [{guard: patterns, patterns: [{name: SECRET, regex: 'hunter[0-9]+'}], action: mask}]
output:
  - {guard: patterns, label: names, patterns: ['Zephyr'], action: redact, replacement: Name}
  - {guard: patterns, label: words, words: [forbidden]}
"""
RERANK = "rerank: {{n: 4, model: {{upstream: {{base_url: '{url}', model: judge-of-days}}}}, {more}}}\n"


async def test_the_best_and_the_worst_candidate_become_a_preference(serve: Serve, tmp_path: Path) -> None:
    server = FakeUpstream(scoring(lambda text: [float(text.count("best")) - text.count("Bad")]))
    async with server:
        policies = {
            name: POLICY + RERANK.format(url=server.base_url, more=more)
            for name, more in (("keeping", "store_pairs: true"), ("silent", "deadline_ms: 5000"))
        }
        async with serve(policies) as keel:
            keel.upstream.default = choosing(*REPLIES)
            for model in policies:
                status, answer = await keel.chat("Is it a fine day? hunter2", model=model)
                assert status == 200, answer
                assert answer["choices"][0]["message"]["content"].startswith("Project Name is best")
            await keel.gateway.records.aclose()
            await keel.gateway.writer.flush()
            exported = Exported()
            rows = [row async for row in feedback_rows(keel.gateway.database, exported)]
            async with keel.gateway.database.read() as connection:
                kept = (await connection.execute(select(pairs))).mappings().all()
                known = (await connection.execute(select(completions.c.policy))).scalars().all()
            page = (await keel.get("/metrics"))[1].decode()
    assert [(row["source"], row["gap"]) for row in kept] == [("rerank", 2.0)]
    assert [about["reward"] for about in (kept[0]["first_about"], kept[0]["second_about"])] == [1.0, -1.0]
    assert known == ["keeping"]
    assert 'keel_rerank_pairs_total{model="keeping",outcome="stored"} 1.0' in page
    (row,) = rows
    assert row["chosen"] == "Project Name is best, write to <EMAIL_ADDRESS> about it."
    assert row["rejected"] == "Bad."
    assert "hunter2" not in json.dumps(rows)
    assert (row["origin"], row["rater"], row["policy"]) == ("rerank", "reward: judge-of-days", "keeping")
    file = tmp_path / "feedback.jsonl"
    file.write_text(
        json.dumps(row) + "\n" + json.dumps({**row, "origin": "comparison", "rater": "r-1"}) + "\n"
    )
    assert [one.rater for one in read_feedback(file).preferences] == ["r-1"]
    assert read_feedback(file).left_out == {"rerank": 1}
    (own,) = read_feedback(file, origins=["rerank"]).preferences
    assert (own.strength, own.rater) == (2.0, "reward: judge-of-days")
    assert main([str(file), "--origin", "rerank", "--folder", str(tmp_path / "data")]) == 0
    assert len((tmp_path / "data" / "preferences.jsonl").read_text().splitlines()) == 1
