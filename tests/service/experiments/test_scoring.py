"""Rewards for arms that don't rerank, and for shadows: behind the requests, bounded, by an own scorer."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select

from policies.experiment import ExperimentSpec
from policies.registry import Registry
from service.experiments.scoring import scorer_problems
from service.settings import HOME
from service.store.completions import completions
from service.store.database import Database
from service.store.exposures import exposures, settle
from service.store.rewards import rewards
from service.store.writer import insert_rows
from tests.fakes import upstream as fake
from tests.fakes.upstream import Behaviour, Exchange, FakeUpstream
from tests.service.alignment.reward_server import scoring
from tests.service.conftest import Running
from tests.service.experiments.conftest import TWO, Trying, ask, eventually

GOOD = ("Hello! ", "I am happy to help you with that. What would you like to know?")
POOR = ("No. ", "Go away, you fool.")
GUARD = "output: [{guard: patterns, patterns: ['there|fool'], action: redact, replacement: dear}]\n"
SHIPPED = Registry(HOME / "checkpoints")


def saying(*parts: str) -> Behaviour:
    """One reply, whole or in these parts, under an id of its own."""
    numbers = itertools.count()

    async def say(exchange: Exchange) -> None:
        name = f"chatcmpl-{parts[0].strip('! .')}-{next(numbers)}"
        if exchange.request.json.get("stream"):
            chunks = fake.token(parts[0]) + fake.token("".join(parts[1:]), "stop")
            await fake.raw_stream(chunks.replace(b"chatcmpl-fake", name.encode()) + fake.DONE)(exchange)
        else:
            await fake.answer({**fake.completion("".join(parts)), "id": name})(exchange)

    return say


async def counted(keel: Running) -> dict[str, int]:
    """How replies for the scorer ended."""
    ends: dict[str, int] = {}
    for line in (await keel.get("/metrics"))[1].decode().splitlines():
        if line.startswith("keel_experiment_scores_total{"):
            outcome = line.split('outcome="')[1].split('"')[0]
            ends[outcome] = ends.get(outcome, 0) + int(float(line.rsplit(" ", 1)[1]))
    return ends


async def until_counted(keel: Running, number: int) -> dict[str, int]:
    async with asyncio.timeout(60):
        while sum((ends := await counted(keel)).values()) < number:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
    return ends


async def test_the_shipped_reward_model_scores_every_arm_and_the_shadow(
    trying: Trying, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [3_600.0]  # nothing is settled before all rewards are there
    monkeypatch.setattr("service.experiments.control.lateness", lambda scorer: late[0])
    text = TWO + (
        "shadows: [{name: next, policy: other, share: 1.0}]\nshadow_concurrency: 64\n"
        "scorer: {model: demo-reward}\n"
    )
    async with FakeUpstream(saying(*POOR)) as second:
        other = f'model: {{upstream: {{base_url: "{second.base_url}/v1", model: fake}}}}\n{GUARD}'
        async with trying(text, other=other) as keel:
            keel.upstream.default = saying(*GOOD)
            for number in range(12):
                messages = [{"role": "user", "content": "Hi"}]
                body = {"model": "test", "messages": messages, "stream": bool(number % 2)}
                status = await post(keel, body, str(number))
                assert status == 200
            assert await until_counted(keel, 24) == {"scored": 24}
            await keel.gateway.writer.flush()
            late[0] = 0.0
            found = await eventually(
                keel,
                lambda o: (
                    o["look"]
                    and sum(arm["units"] for arm in o["look"]["arms"]) == 12
                    and o["look"]["shadows"][0]["units"] == 12
                ),
            )
            kept = await stored(keel)
    assert found["scorer"]["model"] == "demo-reward"
    good, poor = ({value for name, value in kept.items() if word in name} for word in ("Hello", "No"))
    assert (len(good), len(poor)) == (1, 1)  # the same words, streamed or whole, to a client or to nobody
    shown = (*found["look"]["arms"], *found["look"]["shadows"])
    estimates = {arm["name"]: arm["metrics"]["reward"]["estimate"] for arm in shown}
    expected = {"control": good.pop(), "new": max(poor), "next": max(poor)}
    assert estimates == pytest.approx(expected, abs=1e-6)
    assert estimates["control"] > estimates["new"]


async def stored(keel: Running) -> dict[str, float]:
    """The rewards by completion."""
    await keel.gateway.writer.flush()
    async with keel.gateway.database.read() as connection:
        rows = await connection.execute(select(rewards.c.completion_id, rewards.c.reward))
        return {name: round(score, 9) for name, score in rows}


async def post(keel: Running, body: Any, session: str) -> int:
    path, headers = f"{keel.url}/v1/chat/completions", {"x-session-id": session}
    async with keel.session.post(path, json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_scorer_that_hangs_or_fails_costs_scores_and_never_a_reply(
    trying: Trying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.experiments.scoring.QUEUE", 4)
    monkeypatch.setattr("service.experiments.scoring.AT_ONCE", 1)
    scorer = "scorer: {{model: {{upstream: {{base_url: '{url}', model: r}}}}, deadline_ms: 60000}}\n"
    stalled = FakeUpstream(fake.stall_before_headers())
    async with stalled, trying(TWO + scorer.format(url=stalled.base_url)) as keel:
        for number in range(12):
            await ask(keel, str(number))
        # One is being scored, four wait.
        assert await counted(keel) == {"dropped": 7}
    broken = FakeUpstream(fake.status(500))
    async with broken, trying(TWO + scorer.format(url=broken.base_url)) as keel:
        await ask(keel, "a")
        assert await until_counted(keel, 1) == {"failed": 1}


async def test_a_server_scores_what_went_out_and_what_has_no_text_is_unfit(trying: Trying) -> None:
    scorer = "scorer: {{model: {{upstream: {{base_url: '{url}', model: r}}}}}}\n"
    server = FakeUpstream(scoring(lambda text: [float(len(text))]))
    async with server, trying(TWO + scorer.format(url=server.base_url), other=GUARD) as keel:
        arms = [await ask(keel, str(number)) for number in range(8)]
        keel.upstream.default = fake.answer({**fake.completion(""), "id": "empty"})
        await ask(keel, "b")
        assert await until_counted(keel, 9) == {"scored": 8, "unfit": 1}
        kept = await stored(keel)
    said = {"control": "<user>Hi<assistant>Hello there", "new": "<user>Hi<assistant>Hello dear"}
    assert kept == {answer["id"]: len(said[arm]) for arm, answer in arms}
    assert {arm for arm, _ in arms} == set(said)


async def test_with_a_scorer_only_its_rewards_count(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/keel.db")

    async def add(table: Table, **values: Any) -> None:
        blank = {"String": "x", "Integer": 0, "Double": 0.0, "JSON": []}
        row = {c.name: blank[type(c.type).__name__] for c in table.c if not c.nullable}
        async with database.change() as connection:
            await insert_rows(connection, table, [row | values])

    place = {"experiment": "test", "epoch": 1, "arm": "new"}
    for unit, scores in (("u", [1.0, 3.0]), ("v", [None])):
        for scored in (True, False):
            name = f"{unit}{scored}"
            await add(exposures, id=name, unit=name, **(place | {"epoch": 1 + scored}))
            for number, score in enumerate(scores):
                completion = f"{name}-{number}"
                own = place | {"epoch": 1 + scored}
                await add(completions, completion_id=completion, unit=name, reward=9.0, **own)
                if score is not None:
                    await add(rewards, completion_id=completion, reward=score)
    async with database.change() as connection:
        for scored in (True, False):
            where = {"now": 100.0, "window_s": 1.0, "grace_s": 1.0, "scored": scored}
            assert await settle(connection, "test", 1 + scored, **where) == 2
        columns = select(exposures.c.id, exposures.c.reward_sum, exposures.c.reward_n)
        found = {row[0]: (row[1], row[2]) for row in await connection.execute(columns)}
    assert found == {"uTrue": (4.0, 2), "vTrue": (0.0, 0), "uFalse": (18.0, 2), "vFalse": (9.0, 1)}
    await database.close()


def test_scorers_are_checkpoints_of_their_kind(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED.root / "demo-reward", tmp_path / "demo-reward")
    aliased = Registry(tmp_path)
    aliased.point("best", "demo-reward")
    assert said_of("demo-reward", SHIPPED) == ""
    assert "nothing" in said_of("nothing", SHIPPED)
    assert "what scores replies is of kind 'reward'" in said_of("keel-guard", SHIPPED)
    assert "'best' is an alias, which may come to mean another model" in said_of("best", aliased)


def said_of(model: str, registry: Registry) -> str:
    """What is wrong with it as a scorer."""
    arms = [{"name": "a", "policy": "p"}, {"name": "b", "policy": "q"}]
    spec = ExperimentSpec.model_validate({"name": "test", "arms": arms, "scorer": {"model": model}})
    problems = list(scorer_problems(spec, registry))
    assert all(problem.loc == ("scorer", "model") for problem in problems)
    return "; ".join(problem.message for problem in problems)
