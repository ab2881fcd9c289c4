"""Swaps in a running gateway, where the model server is a stand-in and everything else is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from policies.registry import Registry
from service.hotload import memory
from service.hotload.swaps import SwapResult, Wish
from tests.hotload import publish_adapter, publish_tiny, spoil_json, untie
from tests.service.conftest import Hot, Running, events
from tests.service.conftest import until as until_within

pytestmark = pytest.mark.timeout(600)


async def until(condition: Callable[[], Any]) -> None:
    """Wait, on a machine that may be busy: model servers are started meanwhile."""
    await until_within(condition, 240)


async def asked(keel: Running, model: str = "hot") -> str:
    """Which folder answers; the header must say the same."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
    status, answer, response = await keel.post("/v1/chat/completions", body)
    assert status == 200, answer
    who = str(answer["choices"][0]["message"]["content"]).split("0 ")[0]
    assert response.headers["x-keel-checkpoint"].partition("@")[0] == who
    return who


async def promote(keel: Running, ref: str, **fields: Any) -> SwapResult:
    return await keel.gateway.swaps.swap(Wish("chat", ref, **fields))


def loaded(keel: Running) -> set[str]:
    """The adapters that the policy's engine holds."""
    adapters = keel.gateway.catalog.get("hot").target.engine.adapters.loaded
    return {name.partition("@")[0] for name in adapters}


async def one_stream(keel: Running) -> tuple[str, set[str]]:
    """A stream to its end: the checkpoint that the header names, and all that answered."""
    body = {"model": "hot", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
        assert response.status == 200
        raw = await response.read()
    *chunks, done = events(raw)
    assert done == b"[DONE]"
    text = "".join(choice["delta"].get("content", "") for c in chunks for choice in json.loads(c)["choices"])
    return response.headers["x-keel-checkpoint"].partition("@")[0], set(text.split())


@asynccontextmanager
async def load(keel: Running, callers: int = 8) -> AsyncIterator[list[tuple[str, set[str]]]]:
    """So many callers who ask one after the other while the block lasts; what they have seen so far."""
    seen: list[tuple[str, set[str]]] = []
    ended = asyncio.Event()

    async def one() -> None:
        while not ended.is_set():
            seen.append(await one_stream(keel))

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one())
        try:
            yield seen
        finally:
            ended.set()


async def test_a_second_server_takes_over_and_the_first_one_goes(hot: Hot, root: Path) -> None:
    async with hot() as keel:
        first = keel.gateway.catalog.get("hot").target.engine.child
        assert first is not None
        assert await asked(keel) == "base"
        async with load(keel) as seen:
            result = await promote(keel, "other")
            await until(lambda: ("other", {"other"}) in seen)
        assert result.outcome == "promoted"
        assert [step for step, _ in result.steps] == [
            "files", "weights", "layout", "tokenizer", "tokenizer", "chat template", "memory", "load",
            "canary", "alias", "switch",
        ]  # fmt: skip
        assert await asked(keel) == "other"
        assert all(texts == {name} for name, texts in seen)
        await until(lambda: first.state == "stopped")
        assert Registry(root).resolve("chat").name == "other"


async def test_adapters_come_and_go_under_load_and_no_reply_is_of_two(hot: Hot, root: Path) -> None:
    async with hot(engine={"adapters": True}) as keel:
        engine = keel.gateway.catalog.get("hot").target.engine
        async with load(keel) as seen:
            for ref in ("ad-one", "ad-two", "ad-three", "ad-one", "base"):
                assert (await promote(keel, ref)).outcome == "promoted"
                before = len(seen)
                await until(lambda ref=ref, before=before: ref in {name for name, _ in seen[before:]})
            assert (await keel.gateway.swaps.swap(Wish("chat", why="rollback"))).outcome == "rolled_back"
        assert all(texts == {name} for name, texts in seen)
        assert await asked(keel) == "ad-one"
        await until(lambda: loaded(keel) == {"ad-one"})
        assert keel.gateway.catalog.get("hot").target.engine is engine


async def test_a_rollback_goes_back_step_by_step_and_is_persisted(hot: Hot, root: Path) -> None:
    async with hot(engine={"adapters": True}) as keel:
        for ref in ("ad-one", "ad-two"):
            await promote(keel, ref)
        back = [await keel.gateway.swaps.swap(Wish("chat", why="rollback")) for _ in range(3)]
        assert [(one.outcome, one.ref.partition("@")[0]) for one in back] == [
            ("rolled_back", "ad-one"),
            ("rolled_back", "base"),
            ("refused", "base"),
        ]
        assert "no way back" in back[-1].reason
        assert [move.how for move in Registry(root).history("chat")] == [
            "point", "promote", "promote", "rollback", "rollback",
        ]  # fmt: skip


BAD = {
    "other-broken": "shapes do not match",
    "other-mute": "100% of the replies are empty (at most 0%)",
    "other-loop": "replies go in circles",
    "other-unsure": "8.50 nats a token less sure than the former's",
    "other-nan": "canary",
}


@pytest.mark.parametrize("name", BAD)
async def test_what_does_not_answer_well_is_refused_and_the_first_answers_on(
    hot: Hot, root: Path, name: str
) -> None:
    publish_tiny(root, name, 3)
    async with hot() as keel:
        child = keel.gateway.catalog.get("hot").target.engine.child
        assert child is not None
        pid = child.pid
        result = await promote(keel, name)
        assert (result.outcome, result.ref.partition("@")[0]) == ("refused", "base")
        assert BAD[name] in result.reason
        assert await asked(keel) == "base"
        assert (child.state, child.pid) == ("ready", pid)
        assert Registry(root).resolve("chat").name == "base"
        assert 'keel_checkpoint_swaps_total{alias="chat",outcome="refused"} 1.0' in str(
            (await keel.get("/metrics"))[1]
        ).replace("\\n", "\n")


async def test_an_adapter_that_the_server_refuses_changes_nothing(hot: Hot, root: Path) -> None:
    publish_adapter(root, "ad-broken", Registry(root).resolve("base"))
    async with hot(engine={"adapters": True}) as keel:
        result = await promote(keel, "ad-broken")
        assert result.outcome == "refused"
        assert await asked(keel) == "base"
        assert loaded(keel) == set()


async def test_an_alias_that_was_moved_is_followed_and_a_bad_one_is_not(hot: Hot, root: Path) -> None:
    publish_tiny(root, "spoilt", 3, spoil_json("config.json", hidden_size=32))
    async with hot(engine={"adapters": True}, hotload={"watch": True, "poll_s": 0.1}) as keel:
        Registry(root).point("chat", "ad-two")
        await until(lambda: keel.gateway.catalog.get("hot").target.checkpoint.startswith("ad-two@"))
        assert await asked(keel) == "ad-two"
        Registry(root).point("chat", "spoilt")
        await until(lambda: keel.gateway.swaps.refused)
        assert await asked(keel) == "ad-two"
        ref, reason = keel.gateway.swaps.refused["chat"]
        assert ref.startswith("spoilt@")
        assert "the config says" in reason
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_checkpoint_alias_behind{alias="chat"} 1.0' in page
        Registry(root).point("chat", "ad-one")
        await until(lambda: keel.gateway.catalog.get("hot").target.checkpoint.startswith("ad-one@"))
        await until(lambda: not keel.gateway.swaps.refused)


async def test_a_policy_reload_takes_over_no_alias_unseen(hot: Hot, root: Path) -> None:
    publish_tiny(root, "spoilt", 3, spoil_json("config.json", hidden_size=32))
    async with hot() as keel:
        Registry(root).point("chat", "spoilt")
        result = await keel.gateway.reload_policies()
        assert not result.ok
        assert "the config says" in result.errors[0]
        assert await asked(keel) == "base"


async def test_who_starts_with_an_alias_that_was_refused_serves_what_served_last(
    hot: Hot, root: Path
) -> None:
    publish_tiny(root, "other-mute", 3)
    async with hot() as keel:
        assert await asked(keel) == "base"
    Registry(root).point("chat", "other-mute")  # while nobody looked
    async with hot() as keel:
        assert await asked(keel) == "base"
        assert "are empty" in keel.gateway.swaps.refused["chat"][1]
    Registry(root).point("chat", "other")
    async with hot() as keel:
        assert await asked(keel) == "other"
        assert keel.gateway.swaps.refused == {}


async def test_a_restarted_server_has_its_adapters_again(hot: Hot) -> None:
    async with hot(engine={"adapters": True}) as keel:
        await promote(keel, "ad-one")
        child = keel.gateway.catalog.get("hot").target.engine.child
        assert child is not None
        assert child._process is not None
        child._process.kill()
        await until(lambda: child.restarts == 1 and child.ready)
        assert await asked(keel) == "ad-one"


async def test_a_dry_run_changes_nothing(hot: Hot, root: Path) -> None:
    async with hot() as keel:
        result = await promote(keel, "other", dry=True)
        assert result.outcome == "checked"
        assert result.steps[-1] == ("plan", "hot would go over to it, beside")
        assert await asked(keel) == "base"
        assert Registry(root).resolve("chat").name == "base"


async def test_without_room_for_a_second_server_it_is_refused(
    hot: Hot, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hot() as keel:
        monkeypatch.setattr(memory, "available", lambda: 100 << 20)
        result = await promote(keel, "other")
        assert result.outcome == "refused"
        assert "100 MiB are free" in result.reason


async def test_the_admin_api_promotes_and_tells_every_step(hot: Hot) -> None:
    key = {"authorization": "Bearer admin-key-0123456789"}
    where = "/admin/v1/checkpoints"
    async with hot(engine={"adapters": True}, admin_key="admin-key-0123456789") as keel:
        assert (await keel.post(f"{where}/promote", {"ref": "ad-one", "alias": "chat"}))[0] == 401
        status, answer, _ = await keel.post(f"{where}/promote", {"ref": "ad-one", "alias": "chat"}, key)
        assert (status, answer["outcome"], answer["ref"].partition("@")[0]) == (200, "promoted", "ad-one")
        told = {"accept": "application/x-ndjson", **key}
        async with keel.session.post(
            keel.url + where + "/promote", json={"ref": "ad-two", "alias": "chat"}, headers=told
        ) as response:
            lines = [json.loads(line) for line in (await response.text()).splitlines()]
        assert [line["step"] for line in lines[:-1]][-3:] == ["canary", "alias", "switch"]
        assert lines[-1]["outcome"] == "promoted"
        status, answer, _ = await keel.post(f"{where}/promote", {"ref": "nothing", "alias": "chat"}, key)
        assert (status, answer["outcome"]) == (409, "refused")
        assert "there is no checkpoint 'nothing'" in answer["reason"]
        status, answer, _ = await keel.post(f"{where}/rollback", {"alias": "chat"}, key)
        assert (status, answer["outcome"]) == (200, "rolled_back")
        (about,) = json.loads((await keel.get(f"{where}/aliases", key))[1])["aliases"]
        assert about["served"] == about["ref"]
        assert about["ref"].startswith("ad-one@")
        assert about["policies"] == ["hot"]
        assert [move["how"] for move in about["history"]] == ["point", "promote", "promote", "rollback"]
        await keel.gateway.audit.flush()
        records = (keel.gateway.settings.state_dir / "audit").glob("*.jsonl")
        told = [json.loads(line) for file in records for line in file.read_text().splitlines()]
        swaps = [entry for entry in told if entry["action"].startswith("checkpoint.")]
        assert [(entry["action"], entry["details"]["outcome"], entry["actor"]) for entry in swaps] == [
            ("checkpoint.promote", "promoted", "admin:settings-admin"),
            ("checkpoint.promote", "promoted", "admin:settings-admin"),
            ("checkpoint.promote", "refused", "admin:settings-admin"),
            ("checkpoint.rollback", "rolled_back", "admin:settings-admin"),
        ]


# ---- in place ----------------------------------------------------------------------------------------------

IN_PLACE: dict[str, Any] = {"engine": {"swap": "in_place"}, "drain_timeout_s": 120.0}


@pytest.fixture
def untied(root: Path) -> Path:
    """Models that can be read in place, the alias on the first."""
    for seed, name in enumerate(("first", "second", "second-mute", "third")):
        publish_tiny(root, name, seed, untie)
    Registry(root).point("chat", "first")
    return root


async def test_in_place_one_server_reads_other_weights_and_nobody_sees_both(hot: Hot, untied: Path) -> None:
    async with hot(**IN_PLACE) as keel:
        child = keel.gateway.catalog.get("hot").target.engine.child
        assert child is not None
        pid = child.pid
        async with load(keel) as seen:
            for ref in ("second", "third", "first"):
                result = await promote(keel, ref)
                assert (result.outcome, result.reason) == ("promoted", "")
                assert [step for step, _ in result.steps][-5:] == [
                    "hold",
                    "load",
                    "canary",
                    "alias",
                    "switch",
                ]
                before = len(seen)
                await until(lambda ref=ref, before=before: ref in {name for name, _ in seen[before:]})
            assert (await keel.gateway.swaps.swap(Wish("chat", why="rollback"))).ref.startswith("third@")
        assert all(texts == {name} for name, texts in seen)
        assert await asked(keel) == "third"
        assert (child.pid, child.restarts) == (pid, 0)
        child.renew()
        await until(lambda: child.restarts == 1 and child.ready)
        assert await asked(keel) == "third"  # it is started from what it had read


async def test_in_place_a_refused_checkpoint_leaves_the_former_weights(hot: Hot, untied: Path) -> None:
    async with hot(**IN_PLACE) as keel:
        result = await promote(keel, "second-mute")
        assert result.outcome == "refused"
        assert "are empty" in result.reason
        assert await asked(keel) == "first"
        assert Registry(untied).resolve("chat").name == "first"
        assert (await promote(keel, "second")).outcome == "promoted"
        assert await asked(keel) == "second"


async def test_in_place_a_request_that_does_not_end_leaves_things_as_they_are(
    hot: Hot, untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_WORDS", "60")
    async with hot(**IN_PLACE | {"drain_timeout_s": 0.2}) as keel:
        stream = asyncio.create_task(one_stream(keel))
        await until(lambda: keel.gateway.catalog.get("hot").target.engine.users.count)
        result = await promote(keel, "second")
        assert result.outcome == "refused"
        assert "1 requests were still in flight after 0.2 s" in result.reason
        assert await stream == ("first", {"first"})
        assert await asked(keel) == "first"


async def test_what_can_not_be_read_in_place_is_loaded_beside(hot: Hot, untied: Path) -> None:
    async with hot(**IN_PLACE) as keel:
        result = await promote(keel, "other")
        assert result.outcome == "promoted"
        (why,) = (seen for step, seen in result.steps if step == "beside")
        assert "a packed copy of tied embeddings" in why
        assert await asked(keel) == "other"
