"""Experiments through the whole gateway: who gets which arm, what is recorded, what is decided."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.experiments.state import Event, State
from service.store import experiments as store
from service.store.database import StoreError
from tests.fakes import upstream as fake
from tests.service.conftest import Running, until
from tests.service.experiments.conftest import ADMIN, STRICT, TWO, Trying, ask, eventually, overview

RAMP = """
ramp: {arm: new, steps: [50, 100], min_units: 10, min_s: 0, approve: [100]}
plan_units: 100
"""


async def rows(keel: Running, table: str) -> list[dict[str, object]]:
    await keel.gateway.writer.flush()
    statement = {"exposures": "SELECT * FROM exposures", "completions": "SELECT * FROM completions"}[table]
    async with keel.gateway.database.read() as connection:
        return [dict(row) for row in (await connection.execute(text(statement))).mappings()]


async def test_a_session_stays_on_its_arm_and_the_reply_says_which(trying: Trying) -> None:
    async with trying() as keel:
        arms = {}
        for session in map(str, range(20)):
            first, answer = await ask(keel, session)
            assert answer["model"] == "test"
            assert answer.get("guardrails", {}).get("experiment", {"arm": first})["arm"] == first
            assert (await ask(keel, session))[0] == first
            arms[session] = first
        assert set(arms.values()) == {"control", "new"}
        exposed = await rows(keel, "exposures")
        assert len(exposed) == 20
        assert Counter(row["arm"] for row in exposed) == Counter(arms.values())
        completions = await rows(keel, "completions")
        assert len(completions) == 40
        assert {row["experiment"] for row in completions} == {"test"}
        policies = {"control": "plain", "new": "other"}
        assert all(row["policy"] == policies[str(row["arm"])] for row in completions)
        assert not any("x-session" in str(row) for row in exposed)
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_experiment_weight{arm="new",experiment="test"} 0.5' in page
        assert 'keel_experiment_exposures_total{arm="control",experiment="test"}' in page


async def test_what_is_in_no_experiment_is_not_recorded(trying: Trying) -> None:
    async with trying() as keel:
        status, answer = await keel.chat(model="plain")
        assert (status, answer["model"]) == (200, "plain")
        assert await rows(keel, "completions") == []


@pytest.mark.parametrize("policy", ["", STRICT + "expose: summary\n"])
async def test_streams_and_guarded_replies_tell_their_arm(trying: Trying, policy: str) -> None:
    async with trying(other=policy) as keel:
        for _ in range(8):
            body = {"model": "test", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
                raw = (await response.read()).decode()
                arm = response.headers["x-keel-experiment"]
            assert '"model":"test"' in raw
            if policy and arm == "test/new":
                assert '"experiment":{"name":"test","arm":"new"}' in raw


async def test_only_testers_choose_and_do_not_count(trying: Trying) -> None:
    async with trying(TWO + "testers: [qa]\n") as keel:
        for arm in ("new", "control"):
            assert (await ask(keel, "s", **ADMIN, **{"x-keel-arm": arm}))[0] == arm
        body = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
        for headers, wanted in (
            ({"x-keel-arm": "new"}, 403),
            ({"x-keel-arm": "new", "authorization": "Bearer wrong"}, 403),
            ({"x-keel-arm": "none", **ADMIN}, 400),
        ):
            status, _, _ = await keel.post("/v1/chat/completions", body, headers)
            assert status == wanted
        assert [row["chosen"] for row in await rows(keel, "exposures")] == [1, 1]
        await ask(keel, "s")
        found = await eventually(
            keel, lambda o: o["look"] and sum(o["look"]["mismatch"]["units"].values()) == 1
        )
        assert sum(arm["units"] for arm in found["look"]["arms"]) <= 1


async def test_a_unit_that_found_no_room_is_recorded_with_its_next_request(
    trying: Trying, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trying(TWO) as keel:
        with monkeypatch.context() as full:
            full.setattr(keel.gateway.writer, "put", lambda table, row: False)
            await ask(keel, "s")
        assert await rows(keel, "exposures") == []
        for _ in range(2):
            await ask(keel, "s")
        assert len(await rows(keel, "exposures")) == 1


async def test_a_ramp_goes_up_waits_for_a_person_and_completes(trying: Trying) -> None:
    async with trying(TWO + RAMP) as keel:
        for number in range(60):
            await ask(keel, str(number))
        found = await eventually(keel, lambda o: o["status"] == "waiting")
        assert "100 % needs approval" in found["reason"]
        approve = "/admin/v1/experiments/test/approve"
        status, answer, _ = await keel.post(approve, {"step": 1}, ADMIN)  # looked at before it went on
        assert (status, "step 2" in answer["error"]["message"]) == (409, True)
        status, answer, _ = await keel.post(approve, {"reason": "fine", "step": 2}, ADMIN)
        assert (status, answer["status"], answer["shares"]) == (200, "running", {"control": 0.0, "new": 1.0})
        assert (await ask(keel, "later"))[0] == "new"
        for number in range(15):
            await ask(keel, f"again-{number}")
        found = await eventually(keel, lambda o: o["status"] == "completed")
        assert [event["action"] for event in found["history"]] == ["complete", "approve", "wait", "begin"]
        assert found["history"][1]["actor"].startswith("admin:")
        status, _, _ = await keel.post("/admin/v1/experiments/test/approve", {}, ADMIN)
        assert status == 409


async def test_an_arm_that_crosses_its_limit_is_taken_back_by_itself(trying: Trying) -> None:
    limits = "limits: [{metric: block_rate, max: 0.2}]\n"
    async with trying(TWO + RAMP + limits, other=STRICT) as keel:
        for number in range(60):
            await ask(keel, str(number))
        # The store knows a moment before the gateway gives out the new shares.
        found = await eventually(keel, lambda o: o["status"] == "rolled_back" and o["arms"][0]["share"] == 1)
        assert "new: block_rate max 0.2: 1, surely within" in found["reason"]
        assert {arm["name"]: arm["share"] for arm in found["arms"]} == {"control": 1.0, "new": 0.0}
        assert {(await ask(keel, str(number)))[0] for number in range(60)} == {"control"}
        event = found["history"][0]
        assert (event["action"], event["actor"]) == ("roll_back", "gateway")
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_experiment_changes_total{action="roll_back",experiment="test"} 1.0' in page


async def test_an_arm_that_turns_requests_away_is_taken_back_too(trying: Trying) -> None:
    limits = "limits: [{metric: error_rate, max: 0.2}]\n"
    async with trying(TWO + RAMP + limits, other="streaming: refuse\n") as keel:
        body = {"model": "test", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        refused = 0
        for number in range(60):
            async with keel.session.post(
                keel.url + "/v1/chat/completions", json=body, headers={"x-session-id": str(number)}
            ) as response:
                await response.read()
                refused += response.status == 400
        assert 0 < refused < 60
        found = await eventually(keel, lambda o: o["status"] == "rolled_back")
        assert "new: error_rate max 0.2: 1, surely within" in found["reason"]


async def test_a_new_gateway_goes_on_where_the_old_one_was(trying: Trying) -> None:
    async with trying(TWO) as keel:
        status, _, _ = await keel.post("/admin/v1/experiments/test/rollback", {"reason": "bad"}, ADMIN)
        assert status == 200
    async with trying(TWO) as keel:
        assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control"}
        found = await overview(keel)
        assert (found["status"], found["reason"]) == ("rolled_back", "bad")
        status, answer, _ = await keel.post("/admin/v1/experiments/test/ramp", {}, ADMIN)
        assert (status, answer["epoch"]) == (200, found["epoch"] + 1)
        assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control", "new"}


async def test_units_under_another_key_leave_the_control_in_charge(trying: Trying) -> None:
    async with trying(TWO, hash_key="k" * 32):
        pass
    async with trying(TWO, begun=False, hash_key="j" * 32) as keel:
        assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control"}
        assert "hash_key" in (await overview(keel))["fault"]
        assert await rows(keel, "exposures") == []


async def test_a_store_that_stays_away_leaves_the_control_in_charge(
    trying: Trying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.experiments.live.STALE_S", 0.3)
    async with trying(TWO) as keel:
        assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control", "new"}

        async def away(*_: Any) -> None:
            raise StoreError("the store can't be used")

        experiments = keel.gateway.house.experiments
        with monkeypatch.context() as patched:
            patched.setattr(keel.gateway.database, "open", away)
            assert experiments.live["test"].known  # a short while changes nothing
            await until(lambda: experiments.live["test"].fault)
            assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control"}
        await until(lambda: not experiments.live["test"].fault)
        assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control", "new"}


async def test_a_limit_that_is_crossed_counts_more_than_what_others_decide_meanwhile(
    trying: Trying, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = "limits: [{metric: block_rate, max: 0.2}]\n"
    async with trying(TWO + RAMP + limits, other=STRICT) as keel:
        before = store.save
        approved: list[str] = []

        async def save(connection: Any, state: State, event: Event) -> bool:
            if event.action == "roll_back" and not approved:
                approved.append(event.actor)
                on = replace(state, status="running", shares={"control": 0.0, "new": 1.0})
                assert await before(connection, on, Event("approve", "admin:eve", event.at, ""))
                return False
            return await before(connection, state, event)

        monkeypatch.setattr(store, "save", save)
        for number in range(60):
            await ask(keel, str(number))
        found = await eventually(keel, lambda o: o["status"] == "rolled_back")
        assert approved == ["gateway"] and "block_rate" in found["reason"]


async def test_without_its_store_the_control_answers(trying: Trying) -> None:
    nowhere = "postgresql://keel@127.0.0.1:1/keel"
    async with trying(TWO, begun=False, store={"url": nowhere}) as keel:
        assert {(await ask(keel, str(number)))[0] for number in range(20)} == {"control"}
        status, _, _ = await keel.get("/admin/v1/experiments/test", ADMIN)
        assert status == 503


async def test_shadows_get_copies_that_nobody_waits_for(trying: Trying) -> None:
    shadow = TWO + "shadows: [{name: next, policy: other, share: 1.0}]\nshadow_concurrency: 2\n"
    async with trying(shadow, other=STRICT) as keel:
        for number in range(6):
            await ask(keel, str(number))
        found = await eventually(
            keel, lambda o: o["look"] and o["look"]["shadows"] and o["look"]["shadows"][0]["units"]
        )
        assert found["look"]["shadows"][0]["metrics"]["block_rate"]["estimate"] == 1.0
        assert sum(found["look"]["mismatch"]["units"].values()) == 6
        assert not any(b"stream" in request.body for request in keel.upstream.requests)


async def test_a_shadow_that_hangs_delays_nobody_and_is_bounded(trying: Trying) -> None:
    alike = "arms: [{name: control, policy: plain}, {name: new, policy: plain}]\n"
    shadow = "shadows: [{name: next, policy: other, share: 1.0}]\nshadow_concurrency: 1\n"
    async with fake.FakeUpstream(fake.stall_before_headers()) as stalled:
        other = f'model: {{upstream: {{base_url: "{stalled.base_url}/v1", model: fake}}}}\n'
        async with trying(alike + shadow, other=other) as keel:
            async with asyncio.timeout(20):
                for number in range(5):
                    await ask(keel, str(number))
            page = (await keel.get("/metrics"))[1].decode()
            assert 'keel_experiment_shadows_total{arm="next",experiment="test",outcome="skipped"} 4.0' in page


async def test_models_and_checks_know_the_experiment(trying: Trying) -> None:
    async with trying() as keel:
        status, body, _ = await keel.get("/v1/models")
        assert b'"id":"test"' in body
        status, answer, _ = await keel.post("/v1/checks", {"model": "test", "input": "hello"})
        assert (status, answer["model"]) == (200, "plain")


@pytest.mark.servers("initdb")
async def test_two_gateways_share_a_postgres_and_one_looks(
    trying: Trying, postgres_url: str, tmp_path: Path
) -> None:
    shared = {"store": {"url": postgres_url}, "hash_key": "k" * 32}
    async with trying(TWO, **shared) as one, trying(TWO, **shared, state_dir=tmp_path / "second") as two:
        arms = {str(number): (await ask(one, str(number)))[0] for number in range(12)}
        assert {s: (await ask(two, s))[0] for s in arms} == arms
        for keel in (one, two):
            await eventually(keel, lambda o: o["look"] and sum(a["units"] for a in o["look"]["arms"]) == 12)
        status, _, _ = await two.post("/admin/v1/experiments/test/rollback", {}, ADMIN)
        assert status == 200
        async with asyncio.timeout(20):
            while {(await ask(one, s))[0] for s in arms} != {"control"}:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)
        exposed = [row for row in await rows(one, "exposures") if row["epoch"] == 1]
        assert {str(row["unit"]) for row in await rows(two, "exposures")} >= {str(r["unit"]) for r in exposed}
        assert len(exposed) == 12
        begun = [e for e in (await overview(one))["history"] if e["action"] == "begin"]
        assert len(begun) == 1


async def test_thumbs_given_within_the_window_are_a_metric(trying: Trying) -> None:
    async with trying(TWO.replace("arms:", "window_s: 4\narms:")) as keel:
        for number in range(4):
            _, answer = await ask(keel, str(number))
            row = {
                "completion_id": answer["id"],
                "rater": "r",
                "kind": "thumb",
                "other": "",
                "value": "up" if number else "down",
                "objective": "helpful",
                "policy": "plain",
                "at": 1.0,
            }
            await keel.gateway.writer.write("feedback", row)
        found = await eventually(
            keel, lambda o: o["look"] and sum(a["units"] for a in o["look"]["arms"]) == 4
        )
        seen = [(arm["units"], arm["metrics"]["feedback"]["estimate"]) for arm in found["look"]["arms"]]
        assert sum(units * (estimate or 0) for units, estimate in seen) == pytest.approx(3)


async def test_a_wrong_experiment_file_shows_until_it_is_mended(trying: Trying, tmp_path: Path) -> None:
    async with trying() as keel:
        path = tmp_path / "experiments" / "test.yaml"
        good = path.read_text()
        for text, standing in ((good + "armz: []\n", "0.0"), (good, "1.0")):
            path.write_text(text)
            await keel.gateway.house.reload()
            page = (await keel.get("/metrics", ADMIN))[1].decode()
            assert f"keel_policy_last_reload_successful {standing}" in page
            listed = json.loads((await keel.get("/admin/v1/experiments", ADMIN))[1])
            assert ["armz: unknown key" in error for error in listed["errors"]] == [True] * (text != good)
