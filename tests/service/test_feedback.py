"""`POST /v1/feedback`, and what is kept of generations for it: over HTTP, in real databases."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.store.completions import completions
from service.store.feedback import feedback, feedback_keys, texts
from service.store.retention import forget
from service.store.reviews import reviews
from tests.fakes import upstream as fake
from tests.service.conftest import Running, Serve, until

TAKING = "feedback: {}\n"
KEEPING = """input: [{guard: secrets, action: mask}]
output:
  - {guard: patterns, patterns: [forbidden], action: escalate}
  - {guard: patterns, label: words, words: [blocked]}
feedback: {store: text}
review: {store: text}
"""
_ids = itertools.count(1)


def saying(text: str) -> fake.Behaviour:
    """An engine that says this, each time under another id."""

    async def behave(exchange: fake.Exchange) -> None:
        payload = {**fake.completion(text), "id": f"chatcmpl-{next(_ids)}"}
        if exchange.request.json.get("stream"):
            chunk = {"id": payload["id"], "object": "chat.completion.chunk", "created": 1, "model": "fake"}
            pieces = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
            pieces.append({"index": 0, "delta": {}, "finish_reason": "stop"})
            raw = b"".join(fake.event({**chunk, "choices": [piece]}) for piece in pieces)
            await fake.raw_stream(raw + fake.DONE)(exchange)
        else:
            await fake.answer(payload)(exchange)

    return behave


async def completed(keel: Running, model: str, prompt: str = "Hello", says: str = "A fine day.") -> str:
    """The id of a completion."""
    keel.upstream.default = saying(says)
    status, answer = await keel.chat(prompt, model=model)
    assert status == 200, answer
    name: str = answer["id"]
    return name


async def rows(keel: Running, table: Any) -> list[dict[str, Any]]:
    await keel.gateway.writer.flush()
    async with keel.gateway.database.read() as connection:
        return [dict(row) for row in (await connection.execute(select(table))).mappings()]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers("initdb"))])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "sqlite":
        return {}
    return {"store": {"url": request.getfixturevalue("postgres_url")}}


async def test_what_is_said_is_stored_once_and_changed_by_saying_it_again(
    serve: Serve, store: dict[str, Any]
) -> None:
    async with serve({"taking": TAKING}, **store) as keel:
        name = await completed(keel, "taking")
        body = {"completion_id": name, "thumb": "up", "score": 0.5, "labels": ["helpful"], "rater": "eve"}
        for _ in range(2):
            status, answer, _ = await keel.post("/v1/feedback", body)
            assert (status, answer["recorded"]) == (200, ["thumb", "score", "labels"]), answer
        await keel.post("/v1/feedback", {"completion_id": name, "thumb": "down", "rater": "eve"})
        await keel.post("/v1/feedback", {"completion_id": name, "thumb": "up", "rater": "mallory"})
        harmless = {"completion_id": name, "thumb": "up", "rater": "eve", "objective": "harmless"}
        await keel.post("/v1/feedback", harmless)
        kept = await rows(keel, feedback)
        values = {(row["rater"], row["kind"], row["objective"]): row["value"] for row in kept}
        assert len(values) == len(kept) == 5
        assert sorted(map(str, values.values())) == sorted(map(str, [0.5, ["helpful"], "down", "up", "up"]))
        assert "eve" not in str(kept)
        assert [row["policy"] for row in await rows(keel, completions)] == ["taking"]
        assert await rows(keel, texts) == []
        _, metrics, _ = await keel.get("/metrics")
        assert b'keel_feedback_total{kind="thumb",policy="taking"} 5.0' in metrics


async def test_streamed_replies_too(serve: Serve) -> None:
    async with serve({"taking": TAKING}) as keel:
        keel.upstream.default = saying("A fine day.")
        first = json.loads((await keel.stream(model="taking"))[0])
        status, _, _ = await keel.post("/v1/feedback", {"completion_id": first["id"], "thumb": "up"})
        assert status == 200


async def test_what_is_wrong_with_feedback(serve: Serve) -> None:
    async with serve({"taking": TAKING}) as keel:
        name, silent = await completed(keel, "taking"), await completed(keel, "plain")
        for body, status, code in [
            ({"completion_id": "chatcmpl-never", "thumb": "up"}, 404, "completion_not_found"),
            ({"completion_id": silent, "thumb": "up"}, 404, "completion_not_found"),
            ({"completion_id": name, "preferred_over": "chatcmpl-never"}, 404, "completion_not_found"),
            ({"completion_id": name}, 400, "invalid_value"),
            ({"completion_id": name, "thumb": "sideways"}, 400, "invalid_value"),
            ({"completion_id": name, "score": 1e9}, 400, "invalid_value"),
            ({"completion_id": name, "labels": ["Free text!"]}, 400, "invalid_value"),
            ({"completion_id": name, "preferred_over": name}, 400, "invalid_value"),
            ({"completion_id": name, "thumb": "up", "strength": 1}, 400, "invalid_value"),
            ({"completion_id": name, "thumb": "up", "more": 1}, 400, None),
        ]:
            got, answer, _ = await keel.post("/v1/feedback", body)
            assert got == status, answer
            assert code is None or answer["error"]["code"] == code, answer
        assert await rows(keel, feedback) == []


async def test_an_idempotency_key_stands_for_one_body(serve: Serve) -> None:
    async with serve({"taking": TAKING}) as keel:
        name = await completed(keel, "taking")
        body, headers = {"completion_id": name, "thumb": "up"}, {"idempotency-key": "once"}
        for _ in range(2):
            assert (await keel.post("/v1/feedback", body, headers))[0] == 200
        status, answer, _ = await keel.post("/v1/feedback", {**body, "thumb": "down"}, headers)
        assert (status, answer["error"]["code"]) == (409, "idempotency_key_reused")
        assert [row["value"] for row in await rows(keel, feedback)] == ["up"]
        assert len(await rows(keel, feedback_keys)) == 1


async def test_texts_are_kept_where_the_policy_says_so_without_personal_data(
    serve: Serve, log_text: Any
) -> None:
    mail, key = "jane.doe@example.com", "AKIAIOSFODNN7EXAMPLE"
    async with serve({"taking": TAKING, "keeping": KEEPING}) as keel:
        state = keel.gateway.settings.state_dir
        name = await completed(keel, "taking", f"Write to {mail}", f"To {mail}")
        body = {"comment": f"Write to {mail} again", "correction": "Dear Jane,", "thumb": "down"}
        status, answer, _ = await keel.post("/v1/feedback", {"completion_id": name, **body})
        assert (status, answer["recorded"], answer["not_stored"]) == (
            200,
            ["thumb"],
            ["comment", "correction"],
        )
        name = await completed(keel, "keeping", f"I am {mail}, my key is {key}", f"Hello {mail}!")
        status, answer, _ = await keel.post("/v1/feedback", {"completion_id": name, **body})
        assert (status, answer["not_stored"]) == (200, [])
        await keel.gateway.records.aclose()
        (kept,) = await rows(keel, texts)
        assert kept["prompt"][0]["content"].startswith("I am <EMAIL_ADDRESS>, my key is ")
        assert kept["replies"] == ["Hello <EMAIL_ADDRESS>!"]
        said = {row["kind"]: row["value"] for row in await rows(keel, feedback)}
        assert said["comment"] == "Write to <EMAIL_ADDRESS> again"
        everything = [*(tuple(row.values()) for row in await rows(keel, feedback)), *kept.values()]
        assert mail not in str(everything) and key not in str(everything)
    stored = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert b"<EMAIL_ADDRESS>" in stored and mail.encode() not in stored and key.encode() not in stored
    assert mail not in log_text.getvalue()


async def test_what_was_withheld_waits_for_review(serve: Serve) -> None:
    escalating = "output: [{guard: patterns, patterns: [forbidden], action: escalate}]\n"
    async with serve({"keeping": KEEPING, "escalating": escalating}) as keel:
        for model, says in [("keeping", "forbidden"), ("keeping", "blocked"), ("escalating", "forbidden")]:
            await completed(keel, model, "Ask jane.doe@example.com", f"Jane Doe says: {says} things.")
        await completed(keel, "keeping")
        await keel.gateway.records.aclose()
        found = {(row["policy"], row["action"]): row for row in await rows(keel, reviews)}
        assert found.keys() == {("keeping", "escalate"), ("keeping", "block"), ("escalating", "escalate")}
        kept = found["keeping", "escalate"]
        (finding,) = kept["findings"]
        assert kept["text"][finding["start"] : finding["end"]] == "forbidden"
        assert kept["prompt"] == [{"role": "user", "content": "Ask <EMAIL_ADDRESS>"}]
        assert found["escalating", "escalate"]["text"] is None
        assert {row["status"] for row in found.values()} == {"open"}


async def test_every_choice_that_was_withheld_waits(serve: Serve) -> None:
    guards = KEEPING[KEEPING.index("output:") : KEEPING.index("feedback:")]
    async with serve({"keeping": KEEPING, "escalated-only": guards}) as keel:
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for index, text in enumerate(("A fine day.", "It is blocked.", "It is forbidden."))
        ]
        keel.upstream.default = fake.answer({**fake.completion(""), "choices": choices})
        for model in ("keeping", "escalated-only"):
            assert (await keel.chat(model=model, n=3))[0] == 200
        await keel.gateway.records.aclose()
        found = [(row["policy"], row["action"], row["text"]) for row in await rows(keel, reviews)]
        assert sorted(found, key=str) == [
            ("escalated-only", "escalate", None),
            ("keeping", "block", "It is blocked."),
            ("keeping", "escalate", "It is forbidden."),
        ]


async def test_a_blocked_request_waits_too(serve: Serve) -> None:
    policy = "input: [{guard: patterns, words: [zephyr]}]\nreview: {store: text}\n"
    async with serve({"strict": policy}) as keel:
        status, _ = await keel.chat("Mail a@example.com about zephyr.", model="strict")
        assert status == 400
        await keel.gateway.records.aclose()
        (row,) = await rows(keel, reviews)
        (finding,) = row["findings"]
        assert (row["stage"], row["completion_id"]) == ("input", "")
        assert row["text"] == "Mail <EMAIL_ADDRESS> about zephyr."
        assert row["text"][finding["start"] : finding["end"]] == "zephyr"


async def test_who_asks_for_nothing_pays_for_nothing(serve: Serve) -> None:
    async with serve() as keel:
        await completed(keel, "plain")
        assert keel.gateway.records.policy_of("chatcmpl-fake") is None
        assert not (Path(keel.gateway.settings.state_dir) / "keel.db").exists()


async def test_old_rows_go(serve: Serve) -> None:
    async with serve({"taking": TAKING}) as keel:
        name = await completed(keel, "taking")
        headers = {"idempotency-key": "once"}
        await keel.post("/v1/feedback", {"completion_id": name, "thumb": "up"}, headers)
        await keel.gateway.writer.flush()
        day = 86_400.0
        assert await forget(keel.gateway.database, 90 * day) == 0
        assert await forget(keel.gateway.database, 90 * day, time.time() + 2 * day) == 1  # the key
        assert await forget(keel.gateway.database, 90 * day, time.time() + 91 * day) == 2
        assert await rows(keel, feedback) == await rows(keel, completions) == []


SERVE = """
import asyncio, sys
from pathlib import Path
from service.settings import Settings
from service.serve import run
run(Settings.load(Path(sys.argv[1])))
"""


async def test_acknowledged_feedback_survives_kill_9(serve: Serve, tmp_path: Path) -> None:
    async with serve({"taking": TAKING}) as keel:
        name = await completed(keel, "taking")
        await keel.gateway.writer.flush()
        config = tmp_path / "keel.yaml"
        config.write_text(
            f"port: 0\npolicies: [{tmp_path}/policies]\nshipped_policies: false\ndefault_policy: plain\n"
            f"state_dir: {tmp_path}/state\nlog: {{format: json}}\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, str(config), stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        url = ""
        while not url:
            line = (await process.stderr.readline()).decode()
            assert line, "the gateway ended"
            if "Keel is ready on " in line:
                url = line.split("Keel is ready on ")[1].split()[0]
        body = {"completion_id": name, "thumb": "up", "rater": "eve"}
        async with keel.session.post(f"{url}/v1/feedback", json=body) as response:
            assert response.status == 200  # of a completion that another gateway gave
            os.kill(process.pid, signal.SIGKILL)
        await process.communicate()
        assert [row["value"] for row in await rows(keel, feedback)] == ["up"]
        await until(lambda: process.returncode is not None)
