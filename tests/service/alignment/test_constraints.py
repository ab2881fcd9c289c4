"""Constraints go to the engine with each request of their policy, and only from the policy.

Before that the engine must have shown that it applies them.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from policies.constraints import XARG
from service.alignment import constraint_probe
from service.alignment.constraint_probe import IMPOSSIBLE, REFUSED
from tests.fakes.upstream import FakeUpstream, status
from tests.service.conftest import Running, Serve

POLICY = """
constraints:
  - {ban: ["project zephyr"]}
  - {phrases: [damn], bias: -4, half_life: 64, category: profanity}
"""
APPLIES = status(400, f"{REFUSED}: 1 validation error for Constraint")


def asked_rules(keel: Running) -> list[str]:
    """The rules of each request that reached the upstream."""
    return [request.json["vllm_xargs"][XARG] for request in keel.upstream.requests]


async def test_a_policys_constraints_reach_the_engine(serve: Serve) -> None:
    async with serve({"bound": POLICY}) as keel:
        keel.upstream.script(APPLIES)
        await keel.chat(model="bound")
        await keel.stream(model="bound", vllm_xargs={"mine": 1})
        whole, streamed = (request.json["vllm_xargs"] for request in keel.upstream.requests[1:])
        assert json.loads(whole[XARG]) == [
            {"ban": ["project zephyr"]},
            {"bias": -4.0, "category": "profanity", "half_life": 64, "phrases": ["damn"]},
        ]
        assert streamed == {**whole, "mine": 1}


async def test_a_caller_cannot_set_or_change_them(serve: Serve) -> None:
    theirs = {XARG: "[]", "mine": 1}
    async with serve({"bound": POLICY}) as keel:
        await keel.chat(vllm_xargs=theirs)
        keel.upstream.script(APPLIES)
        await keel.chat(model="bound", vllm_xargs=theirs)
        plain, _, bound = (request.json["vllm_xargs"] for request in keel.upstream.requests)
        assert plain == {"mine": 1}
        assert "zephyr" in bound[XARG]


async def test_an_engine_that_ignores_constraints_gives_no_reply(serve: Serve) -> None:
    """It answers the question that no processor lets pass, as vLLM does without one."""
    async with serve({"bound": POLICY}) as keel:
        for _ in range(2):  # asked again each time: it may have been mended
            code, answer = await keel.chat(model="bound")
            assert (code, answer["error"]["code"]) == (502, "constraints_unsupported")
            assert "--logits-processors" in answer["error"]["message"]
        assert asked_rules(keel) == [IMPOSSIBLE] * 2
        keel.upstream.script(APPLIES)
        code, _ = await keel.chat(model="bound")
        assert code == 200


@pytest.mark.parametrize("refusal", [status(400, "vllm_xargs: unknown field"), status(404, "no")])
async def test_a_server_that_knows_no_constraints_at_all_gives_no_reply(
    serve: Serve, refusal: object
) -> None:
    async with serve({"bound": POLICY}) as keel:
        keel.upstream.script(refusal)  # type: ignore[arg-type]
        code, answer = await keel.chat(model="bound")
        assert (code, answer["error"]["code"]) == (502, "constraints_unsupported")


async def test_an_engine_that_has_shown_it_is_asked_once_and_again_later(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve({"bound": POLICY}) as keel:
        keel.upstream.script(APPLIES)
        await keel.chat(model="bound")
        await asyncio.gather(*(keel.chat(model="bound") for _ in range(5)))
        assert asked_rules(keel).count(IMPOSSIBLE) == 1
    monkeypatch.setattr(constraint_probe, "TRUSTED_S", 0.0)
    async with serve({"bound": POLICY}) as keel:
        keel.upstream.script(APPLIES)
        assert (await keel.chat(model="bound"))[0] == 200
        assert (await keel.chat(model="bound"))[0] == 502  # restarted without it meanwhile


async def test_of_several_upstreams_one_that_ignores_constraints_is_enough(serve: Serve) -> None:
    async with FakeUpstream() as one, FakeUpstream() as other:
        places = ", ".join(f'{{base_url: "{up.base_url}/v1", model: m}}' for up in (one, other))
        async with serve({"bound": f"model: {{upstreams: [{places}]}}\n{POLICY}"}) as keel:
            one.script(APPLIES)
            code, answer = await keel.chat(model="bound")
            assert (code, answer["error"]["code"]) == (502, "constraints_unsupported")
            one.script(APPLIES)
            await other.stop()  # who doesn't answer takes no request either
            assert (await keel.chat(model="bound"))[0] == 200
