"""Constraints go to the engine with each request of their policy, and only from the policy."""

from __future__ import annotations

import json

from policies.constraints import XARG
from tests.service.conftest import Serve

POLICY = """
constraints:
  - {ban: ["project zephyr"]}
  - {phrases: [damn], bias: -4, half_life: 64, category: profanity}
"""


async def test_a_policys_constraints_reach_the_engine(serve: Serve) -> None:
    async with serve({"bound": POLICY}) as keel:
        await keel.chat(model="bound")
        await keel.stream(model="bound", vllm_xargs={"mine": 1})
        whole, streamed = (request.json["vllm_xargs"] for request in keel.upstream.requests)
        assert json.loads(whole[XARG]) == [
            {"ban": ["project zephyr"]},
            {"bias": -4.0, "category": "profanity", "half_life": 64, "phrases": ["damn"]},
        ]
        assert streamed == {**whole, "mine": 1}


async def test_a_caller_cannot_set_or_change_them(serve: Serve) -> None:
    theirs = {XARG: "[]", "mine": 1}
    async with serve({"bound": POLICY}) as keel:
        await keel.chat(vllm_xargs=theirs)
        await keel.chat(model="bound", vllm_xargs=theirs)
        plain, bound = (request.json["vllm_xargs"] for request in keel.upstream.requests)
        assert plain == {"mine": 1}
        assert "zephyr" in bound[XARG]
