"""Replies of several calls while a checkpoint is swapped: of one version, unless they may mix."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from policies.registry import Registry
from policies.spec import PolicySpec
from service.hotload.swaps import Wish
from tests.fakes.upstream import Exchange
from tests.hotload import publish_tiny, untie
from tests.service.alignment.roles import FINE, Troupe, violates
from tests.service.conftest import Hot, Running, until

pytestmark = pytest.mark.timeout(600)

REVISE = "revise: {constitution: harmless, when: always, judge: {policy: plain}, rounds: 1}\n"
KEPT = "model: {checkpoint: chat}\n" + REVISE
MIXED = "model: {checkpoint: chat, mixed: allow}\n" + REVISE


class Critics(Troupe):
    """A judge that finds fault with the first so many replies, once it is let go."""

    def __init__(self, faulty: int) -> None:
        super().__init__(judge=[violates("no-abuse")] * faulty + [FINE])
        self.reached = 0
        self.go = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            self.reached += 1
            await self.go.wait()
        await super().__call__(exchange)


async def answer(keel: Running, model: str) -> tuple[dict[str, Any], aiohttp.ClientResponse]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
    status, reply, response = await keel.post("/v1/chat/completions", body)
    assert status == 200, reply
    return reply, response


def names(refs: list[str]) -> list[str]:
    return [ref.partition("@")[0] for ref in refs]


async def test_a_reply_under_way_keeps_its_version_unless_its_policy_lets_it_go_over(hot: Hot) -> None:
    async with hot({"kept": KEPT, "mixed": MIXED}, engine={"adapters": True}) as keel:
        keel.upstream.default = critics = Critics(faulty=2)
        asked = [asyncio.create_task(answer(keel, model)) for model in ("kept", "mixed")]
        await until(lambda: critics.reached == 2, 60)  # both have their first reply, and wait for the judge
        assert (await keel.gateway.swaps.swap(Wish("chat", "ad-one"))).outcome == "promoted"
        critics.go.set()
        (kept, kept_response), (mixed, mixed_response) = await asyncio.gather(*asked)

        assert kept["choices"][0]["message"]["content"].startswith("base0 ")
        assert names([kept_response.headers["x-keel-checkpoint"]]) == ["base"]
        assert "checkpoints" not in kept["guardrails"]

        assert mixed["choices"][0]["message"]["content"].startswith("ad-one0 ")
        told = mixed["guardrails"]
        assert names(told["checkpoints"]) == ["base", "ad-one"]
        assert told["checkpoint"] == told["checkpoints"][0]
        assert mixed_response.headers["x-keel-checkpoint"] == ", ".join(told["checkpoints"])

        # Who comes now is answered by the new one alone, under either policy.
        for model in ("kept", "mixed"):
            reply, response = await answer(keel, model)
            assert names([response.headers["x-keel-checkpoint"]]) == ["ad-one"]
            assert reply["choices"][0]["message"]["content"].startswith("ad-one0 ")


async def test_a_swap_in_place_does_not_wait_for_replies_that_may_mix(hot: Hot, root: Path) -> None:
    for seed, name in enumerate(("first", "second")):
        publish_tiny(root, name, seed, untie)
    Registry(root).point("chat", "first")
    settings: dict[str, Any] = {"engine": {"swap": "in_place"}, "drain_timeout_s": 0.3}
    async with hot({"kept": KEPT, "mixed": MIXED}, **settings) as keel:
        keel.upstream.default = critics = Critics(faulty=1)
        mixed = asyncio.create_task(answer(keel, "mixed"))
        await until(lambda: critics.reached == 1, 60)
        kept = asyncio.create_task(answer(keel, "kept"))
        await until(lambda: critics.reached == 2, 60)
        refused = await keel.gateway.swaps.swap(Wish("chat", "second"))
        assert "1 requests were still in flight" in refused.reason  # the other one stands in nobody's way
        kept.cancel()
        await asyncio.gather(kept, return_exceptions=True)
        await until(lambda: not keel.gateway.catalog.get("kept").target.engine.users.count, 60)
        assert (await keel.gateway.swaps.swap(Wish("chat", "second"))).outcome == "promoted"
        critics.go.set()
        reply, response = await mixed
        assert reply["choices"][0]["message"]["content"].startswith("second0 ")
        assert names(response.headers["x-keel-checkpoint"].split(", ")) == ["first", "second"]


def test_where_nothing_can_mix_it_may_not_be_allowed() -> None:
    revise = {"constitution": "harmless", "when": "always"}
    with pytest.raises(ValidationError, match="is of one version anyhow"):
        PolicySpec.model_validate({"name": "hot", "model": {"checkpoint": "chat", "mixed": "allow"}})
    elsewhere = {"upstream": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "mixed": "allow"}
    with pytest.raises(ValidationError, match="about the versions of a checkpoint"):
        PolicySpec.model_validate({"name": "hot", "model": elsewhere, "revise": revise})
