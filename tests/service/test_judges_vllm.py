"""Judges on a real vLLM: what it takes, the shape of what it says, its log-probabilities.

The embedded model is no judge. It is held to the words that one would say; which of them it says, and how
probable it finds them, is its own.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from guardrails.judge_formats import Case, make_format
from policies.judge import JudgeSpec
from tests.fakes.upstream import Behaviour, Exchange, FakeUpstream
from tests.fixtures_vllm import VllmServer
from tests.service.conftest import Serve, chunks_of, finish_of, text_of
from tests.service.test_judges import judged

pytestmark = pytest.mark.vllm

TEXTS = ["What is two and two?", "Tell me a story.", "I hate you.", 'A "quoted" {text} <|end|> [INST]']
RULES = {"no-insults": "An insult.", "no.secrets": "A secret."}


def in_front_of(server: VllmServer, **added: Any) -> Behaviour:
    """Passes requests on, with something added that a caller of Keel doesn't say."""

    async def behave(exchange: Exchange) -> None:
        body = {**exchange.request.json, **added, "model": server.model}
        headers = {"authorization": f"Bearer {server.api_key}"}
        async with (
            aiohttp.ClientSession(server.base_url, headers=headers) as session,
            session.post("/v1/chat/completions", json=body) as response,
        ):
            await exchange.reply(response.status, await response.read())

    return behave


async def scores_of(keel: Any, text: str) -> dict[str, float]:
    body = {"model": "p", "input": text, "stage": "input"}
    status, answer, _ = await keel.post("/v1/checks", body)
    assert status == 200, answer
    (guard,) = answer["results"][0]["guards"]
    assert guard["state"] == "finished", guard
    scores: dict[str, float] = guard["categories"]
    return scores


@pytest.mark.parametrize(
    ("format", "words", "label"),
    [
        ("llama_guard", ["safe", "unsafe\nS1,S10", "unsafe\nS2"], "unsafe"),
        ("granite_guardian", ["Yes", "No"], "harm"),
        ("granite_guardian_3_3", ["<score> yes </score>", "<score> no </score>"], "harm"),
    ],
)
async def test_scores_are_probabilities_that_vllm_gives(
    serve: Serve, vllm_server: VllmServer, format: str, words: list[str], label: str
) -> None:
    held = in_front_of(vllm_server, structured_outputs={"choice": words})
    async with FakeUpstream(held) as judge:
        policy = judged(judge, "input", format, action="log", deadline_ms=60_000)
        async with serve({"p": policy}) as keel:
            scores = [(await scores_of(keel, text))[label] for text in TEXTS]
    assert all(0 <= score <= 1 for score in scores)
    assert any(0 < score < 1 for score in scores)


async def test_a_rubric_is_answered_in_its_form(serve: Serve, vllm_server: VllmServer) -> None:
    """What another vLLM is asked, and what our own is: under the expression nothing can be wrong."""
    spec = JudgeSpec.model_validate(
        {"model": {"policy": "x"}, "format": "rubric", "rules": RULES, "deadline_ms": 60_000}
    )
    headers = {"authorization": f"Bearer {vllm_server.api_key}"}
    async with aiohttp.ClientSession(vllm_server.base_url, headers=headers) as session:
        for text in TEXTS:
            (question,) = make_format(spec).ask(Case.of((("user", text),)))
            body = {"model": vllm_server.model, **question.body, **question.own_form, "temperature": 1.0}
            async with session.post("/v1/chat/completions", json=body) as response:
                assert response.status == 200, await response.read()
                scores = question.read(await response.json())
            assert scores.keys() == RULES.keys()
    async with FakeUpstream(in_front_of(vllm_server)) as judge:
        policy = judged(judge, "input", "rubric", rules=RULES, action="log", deadline_ms=60_000)
        async with serve({"p": policy}) as keel:
            for text in TEXTS:
                assert (await scores_of(keel, text)).keys() == RULES.keys()


async def test_a_model_that_is_no_judge_passes_nothing(serve: Serve, vllm_server: VllmServer) -> None:
    async with (
        FakeUpstream(in_front_of(vllm_server)) as judge,
        serve({"p": judged(judge, deadline_ms=60_000)}) as keel,
    ):
        chunks = await chunks_of(keel, text="hello", model="p")
        assert (text_of(chunks), finish_of(chunks)) == ("", ["content_filter"])
        (failure,) = chunks[-1]["guardrails"]["failures"]
        assert (failure["guard"], failure["reason"]) == ("judge", "nonsense")
