"""`/v1/moderations` by the shipped classifier, in a real worker."""

from __future__ import annotations

from openai import AsyncOpenAI

from tests.service.conftest import Serve

SCORING = "output: [{guard: toxicity, threshold: 0.7, action: block}]\n"


async def test_what_the_guard_would_block_is_flagged(serve: Serve) -> None:
    async with serve({"judge": SCORING}, default_policy="judge") as keel:
        client = AsyncOpenAI(base_url=f"{keel.url}/v1", api_key="none")
        async with client:
            answer = await client.moderations.create(
                input=["I will kill you, you worthless idiot.", "The train leaves at noon."]
            )
    threat, plain = answer.results
    assert threat.flagged
    assert threat.categories.harassment
    assert threat.category_scores.harassment >= 0.7
    assert not plain.flagged
    assert not any(plain.categories.model_dump().values())
    assert plain.category_scores.harassment < 0.7
