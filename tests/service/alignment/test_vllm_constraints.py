"""Constraints in a real vLLM, against brute force over its whole vocabulary."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.constraints import XARG, Constraint, to_wire
from service.alignment.constraint_probe import REFUSED
from tests.fixtures_vllm import VllmServer, running_vllm
from tests.service.conftest import Serve

pytestmark = pytest.mark.vllm

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "demo-chat"
NEVER = -9999.0  # how vLLM writes minus infinity
PROMPTS = ["Hello! How are you?", "Tell me about your day.", "What do you like to eat?", "Where do you live?"]


@pytest.fixture(scope="module")
def server() -> Iterator[VllmServer]:
    arguments = (
        *("--logits-processors", "service.alignment.vllm_constraints:Constraints"),
        *("--max-logprobs", "-1", "--logprobs-mode", "processed_logprobs"),
    )
    with running_vllm(CHECKPOINT, arguments) as running:
        yield running


def ask(server: VllmServer, path: str, body: dict[str, Any], rules: list[Constraint]) -> Any:
    if rules:
        body = {**body, "vllm_xargs": {XARG: to_wire(rules)}}
    request = urllib.request.Request(  # noqa: S310  our own server
        server.base_url + path,
        json.dumps({"model": server.model, **body}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {server.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return json.load(answer)


def replies(server: VllmServer, rules: list[Constraint], **more: object) -> list[dict[str, Any]]:
    body = {"n": 8, "max_tokens": 48, "temperature": 1.0, "seed": 5, **more}
    return [
        choice
        for prompt in PROMPTS
        for choice in ask(
            server, "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}], **body}, rules
        )["choices"]
    ]


def texts(choices: list[dict[str, Any]]) -> str:
    return "\n".join(choice["message"]["content"] for choice in choices)


def test_banned_phrases_are_never_said(server: VllmServer) -> None:
    banned = ["I", "you", "the", "It's", "do you"]
    said = re.compile("|".join(rf"\b{re.escape(phrase)}\b" for phrase in banned), re.IGNORECASE)
    assert said.search(texts(replies(server, [])))
    bound = texts(replies(server, [Constraint(ban=tuple(banned))]))
    assert bound.strip() and not said.search(bound)


def test_every_token_of_the_vocabulary_is_judged_by_the_text_it_would_make(server: VllmServer) -> None:
    """Brute force: at each of 24 steps, each of the vocabulary's tokens is put behind the text so far."""
    vocabulary = vocabulary_of(server)
    phrases = ("you", "am", "it is", "a")
    said = re.compile("|".join(rf"\b{re.escape(phrase)}\b" for phrase in phrases), re.IGNORECASE)
    body = {"prompt": "Hello, how are", "max_tokens": 24, "logprobs": -1, "temperature": 1.0, "top_p": 1.0}
    body |= {"seed": 3, "ignore_eos": True, "return_tokens_as_token_ids": True}
    answer = ask(server, "/v1/completions", body, [Constraint(ban=phrases)])
    text, judged = b"", 0
    for chosen, top in steps(answer):
        for token, logprob in top.items():
            if token in vocabulary:
                whole = (text + vocabulary[token]).decode(errors="ignore")
                forbidden = said.search(whole) is not None
                assert (logprob <= NEVER) == forbidden, (whole, logprob)
                judged += forbidden
        text += vocabulary.get(chosen, b"")
    assert judged > 100


def test_what_is_not_forbidden_keeps_its_share(server: VllmServer) -> None:
    """One step's distribution under a ban is the free one without the forbidden tokens, made whole again."""
    body = {"prompt": "Hello, how are", "max_tokens": 1, "logprobs": -1, "temperature": 1.0, "top_p": 1.0}
    body["return_tokens_as_token_ids"] = True
    _, before = next(steps(ask(server, "/v1/completions", body, [])))
    _, after = next(steps(ask(server, "/v1/completions", body, [Constraint(ban=("you",))])))
    kept = [token for token in before if after[token] > NEVER]
    share = math.log(sum(math.exp(before[token]) for token in kept))
    assert len(kept) < len(before) and share < -0.01
    for token in kept:
        assert after[token] == pytest.approx(before[token] - share, abs=2e-2)


def vocabulary_of(server: VllmServer) -> dict[int, bytes]:
    """Each ordinary token's bytes, read off the tokenizer's file (byte-level BPE, Radford et al. 2019)."""
    content = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    special = {token["id"] for token in content["added_tokens"]}
    return {
        number: bytes(byte_of[character] for character in token)
        for token, number in content["model"]["vocab"].items()
        if number not in special
    }


def steps(answer: Any) -> Iterator[tuple[int, dict[int, float]]]:
    """(token chosen, log-probability of every token) at each step."""
    logprobs = answer["choices"][0]["logprobs"]
    for chosen, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        yield number(chosen), {number(name): logprob for name, logprob in top.items()}


def number(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def test_a_bias_makes_words_rarer_or_more_common(server: VllmServer) -> None:
    def count(bias: float) -> int:
        rules = [Constraint(phrases=("I",), bias=bias)] if bias else []
        return len(re.findall(r"\bI\b", texts(replies(server, rules))))

    rarer, free, more = count(-6), count(0), count(3)
    assert rarer < free / 3
    assert more > free


@pytest.mark.parametrize("limit", [12, 40])
def test_required_phrases_are_said_also_when_the_tokens_run_out(server: VllmServer, limit: int) -> None:
    rules = [Constraint(require=("no promises",))]
    for choice in replies(server, rules, max_tokens=limit):
        assert "no promises" in choice["message"]["content"]


def test_other_requests_of_the_same_batch_are_left_alone(server: VllmServer) -> None:
    """`n` choices share a batch with those of others; without rules the replies are those of any day."""
    before = texts(replies(server, []))
    replies(server, [Constraint(ban=("I", "you"))])
    assert texts(replies(server, [])) == before


def test_rules_that_cannot_be_read_are_refused(server: VllmServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "vllm_xargs": {XARG: '[{"ban": []}]'}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(server, "/v1/chat/completions", body, [])
    assert refused.value.code == 400
    assert REFUSED in refused.value.read().decode(), "what tells an engine that applies constraints"


async def test_the_gateway_sees_that_they_are_applied_and_they_are(
    server: VllmServer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_TEST_KEY", server.api_key)
    model = f'{{base_url: "{server.base_url}/v1", model: {server.model}, api_key_env: VLLM_TEST_KEY}}'
    policy = f"model: {{upstream: {model}}}\n"
    async with serve({"free": policy, "bound": policy + "constraints: [{ban: [you, I]}]\n"}) as keel:
        said = {name: await keel.chat(PROMPTS[0], name, temperature=0) for name in ("free", "bound")}
    texts_said = {name: answer["choices"][0]["message"]["content"] for name, (_, answer) in said.items()}
    assert re.search(r"\b(?:you|I)\b", texts_said["free"], re.IGNORECASE)
    assert not re.search(r"\b(?:you|I)\b", texts_said["bound"], re.IGNORECASE)


def test_under_a_grammar_that_leaves_nothing_else_a_ban_yields(server: VllmServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "structured_outputs": {"choice": ["you", "You"]}}
    answer = ask(server, "/v1/chat/completions", body, [Constraint(ban=("you",))])
    assert answer["choices"][0]["message"]["content"] in ("you", "You")
