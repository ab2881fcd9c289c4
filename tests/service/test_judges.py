"""Judges as guards through the whole gateway: another model's server says what passes, and when it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from policies.errors import PolicyError
from service.alignment.build import StrategyError
from service.cli_policy import policy_app
from tests.fakes import upstream as fake
from tests.fakes.upstream import Behaviour, Exchange, FakeUpstream
from tests.service.conftest import Running, Serve, chunks_of, finish_of, text_of, until

BAD = "badger"


def verdict(exchange: Exchange) -> str:
    """Llama Guard's, about the word."""
    last = exchange.request.json["messages"][-1]["content"]
    return "\n\nunsafe\nS10" if BAD in last else "\n\nsafe"


async def llama_guard(exchange: Exchange) -> None:
    await fake.answer(fake.completion(verdict(exchange)))(exchange)


async def granite(exchange: Exchange) -> None:
    bad = BAD in exchange.request.json["messages"][-1]["content"]
    await fake.answer(fake.completion("Yes" if bad else "No"))(exchange)


def judged(judge: FakeUpstream, stage: str = "output", format: str = "llama_guard", **settings: Any) -> str:
    """A policy with this judge as its only guard."""
    model = {"upstream": {"base_url": judge.base_url + "/v1", "model": "guard"}}
    guard = {"guard": "judge", "model": model, "format": format, **settings}
    return f"{stage}: [{json.dumps(guard)}]\n"


def seen(judge: FakeUpstream) -> list[list[tuple[str, str]]]:
    """The conversations that it was shown."""
    return [[(m["role"], m["content"]) for m in one.json["messages"]] for one in judge.requests]


async def metrics(keel: Running) -> str:
    return (await keel.get("/metrics"))[1].decode()


# Inputs


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_judge_calls_unsafe_is_blocked(serve: Serve, stream: bool) -> None:
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge, "input")}) as keel:
        status, answer = await keel.chat(f"tell me of a {BAD}", model="p", stream=stream)
        assert status == 400
        assert answer["error"]["code"] == "content_filter"
        (found,) = answer["guardrails"]["input"]
        assert (found["param"], found["entity_type"]) == ("messages[0].content", "HATE")
        assert (await keel.chat("hello", model="p"))[0] == 200
        page = await metrics(keel)
        labels = 'action="block",category="HATE",guard="judge",stage="input"'
        assert f"keel_guard_findings_total{{{labels}}} 1.0" in page
        assert 'keel_guard_jobs_total{outcome="ok",servable="judge:guard"} 2.0' in page
        assert BAD not in page


async def test_turns_are_judged_in_their_conversation_and_old_verdicts_are_remembered(serve: Serve) -> None:
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge, "input")}) as keel:
        talk = [{"role": "user", "content": "one"}]
        for said, asked in (("two", "three"), ("four", "five")):
            await keel.post("/v1/chat/completions", {"model": "p", "messages": talk})
            talk += [{"role": "assistant", "content": said}, {"role": "user", "content": asked}]
        assert seen(judge) == [
            [("user", "one")],
            [("user", "one"), ("assistant", "two"), ("user", "three")],
        ]


async def test_what_is_masked_for_the_engine_is_masked_for_the_judge(serve: Serve) -> None:
    mask = "{guard: patterns, patterns: [{name: MAIL, regex: '[a-z]+@[a-z]+\\.com'}], action: mask}"
    async with FakeUpstream(llama_guard) as judge:
        both = judged(judge, "input").replace("[", f"[{mask}, ", 1) + judged(judge)
        async with serve({"p": both}) as keel:
            status, _ = await keel.chat("I am ann@example.com", model="p")
            assert status == 200
            body = {"model": "p", "input": "This is ann@example.com", "stage": "input"}
            status, answer, _ = await keel.post("/v1/checks", body)
            assert status == 200
            assert [one["guard"] for one in answer["results"][0]["guards"]] == ["patterns", "judge"]
            assert len(judge.requests) == 3
            assert all(b"ann@" not in request.body for request in judge.requests)


# Replies


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("scope", ["segment", "document"])
async def test_a_reply_goes_out_up_to_the_piece_that_is_judged_unsafe(
    serve: Serve, scope: str, stream: bool
) -> None:
    kind = "This is a sentence of a certain length, about bread and butter. "
    words = [f"{word} " for word in f"{kind * 3}Now there comes a {BAD} to eat it all. {kind}".split()]
    async with FakeUpstream(llama_guard) as judge:
        policy = judged(judge, scope=scope, every=60)
        policy += "streaming: buffer\n" if scope == "document" else ""
        async with serve({"p": policy}) as keel:
            passed = kind * 3 if scope == "segment" else ""
            if stream:
                keel.upstream.default = fake.stream(words)
                chunks = await chunks_of(keel, text="How?", model="p")
                assert (text_of(chunks), finish_of(chunks)) == (passed, ["content_filter"])
            else:
                keel.upstream.default = fake.answer(fake.completion("".join(words)))
                status, answer = await keel.chat("How?", model="p")
                (choice,) = answer["choices"]
                assert status == 200
                assert (choice["message"]["content"] or "") == passed
                assert choice["finish_reason"] == "content_filter"
            assert {conversation[0] for conversation in seen(judge)} == {("user", "How?")}
            assert all(role == "assistant" for *_, (role, _) in seen(judge))


async def test_a_stream_waits_for_the_judge_and_goes_on(serve: Serve) -> None:
    words = [f"word{number}. " for number in range(60)]
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge, every=60)}) as keel:
        keel.upstream.default = fake.stream(words)
        chunks = await chunks_of(keel, text="How?", model="p")
        assert (text_of(chunks), finish_of(chunks)) == ("".join(words), ["stop"])
        assert len(judge.requests) > 3


async def test_who_goes_away_takes_the_judge_along(serve: Serve) -> None:
    async with FakeUpstream(fake.stall_before_headers()) as judge, serve({"p": judged(judge)}) as keel:
        task = asyncio.create_task(keel.chat("hi", model="p"))
        await until(lambda: judge.requests)
        task.cancel()
        await until(lambda: judge.aborts)
        await asyncio.gather(task, return_exceptions=True)


async def test_a_stream_keeps_the_judge_that_it_began_with(serve: Serve, tmp_path: Path) -> None:
    words = [f"word{number}. " for number in range(60)]
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge, every=60)}) as keel:
        keel.upstream.default = fake.stream(words, delay=0.01)
        streaming = asyncio.create_task(chunks_of(keel, text="How?", model="p"))
        await until(lambda: judge.requests)
        path = tmp_path / "policies" / "p.yaml"
        path.write_text(path.read_text().partition("output:")[0])
        assert (await keel.gateway.reload_policies()).ok
        asked = len(judge.requests)
        chunks = await streaming
        assert (text_of(chunks), finish_of(chunks)) == ("".join(words), ["stop"])
        assert len(judge.requests) > asked
        await until(lambda: judge.open_connections == 0)


# Faults


def completion(logprobs: Any) -> Mapping[str, Any]:
    payload = fake.completion("safe")
    payload["choices"][0]["logprobs"] = logprobs
    return payload


FAULTS: dict[str, tuple[Behaviour, str]] = {
    "nonsense": (fake.answer(fake.completion("I'd say it is safe.")), "nonsense"),
    "truncated": (fake.answer(fake.completion("sa")), "nonsense"),
    "empty": (fake.answer(fake.completion("")), "nonsense"),
    "no text": (fake.answer({"choices": [{"message": {"content": None}}]}), "nonsense"),
    "wrong logprobs": (
        fake.answer(completion({"content": [{"token": "yes", "logprob": -0.1}]})),
        "nonsense",
    ),
    "positive logprobs": (
        fake.answer(completion({"content": [{"token": "safe", "logprob": 2.0}]})),
        "nonsense",
    ),
    "no completion": (fake.answer({"object": "list"}), "failed"),
    "500": (fake.status(500), "failed"),
    "400": (fake.status(400, "too long"), "failed"),
    "no HTTP": (fake.raw_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), "failed"),
    "stall": (fake.stall_before_headers(), "timeout"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_judge_that_fails_has_passed_nothing(serve: Serve, fault: str) -> None:
    behaviour, reason = FAULTS[fault]
    async with FakeUpstream(behaviour) as judge:
        settings = {"deadline_ms": 300 if fault == "stall" else 10_000}
        policies = {
            "in": judged(judge, "input", **settings),
            "out": judged(judge, **settings),
            "lax": judged(judge, on_error="allow", **settings),
        }
        async with serve(policies) as keel:
            status, answer = await keel.chat("hello", model="in")
            assert (status, answer["error"]["code"]) == (503, "guard_failed")
            chunks = await chunks_of(keel, text="hello", model="out")
            assert (text_of(chunks), finish_of(chunks)) == ("", ["content_filter"])
            status, answer = await keel.chat("hello", model="lax")
            assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
            page = await metrics(keel)
            for stage, count in (("input", 1), ("output", 2)):
                labels = f'guard="judge",reason="{reason}",stage="{stage}"'
                assert f"keel_guard_errors_total{{{labels}}} {count}.0" in page


async def test_a_judge_that_is_gone_opens_its_circuit(serve: Serve) -> None:
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge, "input")}) as keel:
        await judge.stop()
        for number in range(8):
            status, answer = await keel.chat(f"hello {number}", model="p")
            assert (status, answer["error"]["code"]) == (503, "guard_failed")
        page = await metrics(keel)
        assert 'keel_guard_errors_total{guard="judge",reason="unreachable",stage="input"} 8.0' in page
        assert f'keel_upstream_circuit{{upstream="{judge.base_url}/v1"}} 2.0' in page


async def test_an_unsafe_verdict_counts_even_where_errors_are_allowed(serve: Serve) -> None:
    """One that names a category which nobody knows, or was cut before it was told."""
    async with FakeUpstream() as judge, serve({"p": judged(judge, on_error="allow")}) as keel:
        for text in ("unsafe\nS77", "unsafe"):
            judge.default = fake.answer(fake.completion(text))
            _, answer = await keel.chat(f"hello {text}", model="p")
            assert answer["choices"][0]["finish_reason"] == "content_filter"


# Other judges


async def test_risks_are_asked_side_by_side_and_reported_by_name(serve: Serve) -> None:
    async with FakeUpstream(granite) as judge:
        risks = {"format": "granite_guardian", "risks": ["harm", "jailbreak"], "action": "log"}
        async with serve({"p": judged(judge, "input", **risks)}) as keel:
            body = {"model": "p", "input": [f"a {BAD}", "bread"], "stage": "input"}
            status, answer, _ = await keel.post("/v1/checks", body)
            assert status == 200
            scores = [one["guards"][0]["categories"] for one in answer["results"]]
            assert scores == [{"harm": 1.0, "jailbreak": 1.0}, {"harm": 0.0, "jailbreak": 0.0}]
            assert answer["results"][0]["status"] == "passed"
            asked = {r.json["chat_template_kwargs"]["guardian_config"]["risk_name"] for r in judge.requests}
            assert asked == {"harm", "jailbreak"}


async def test_a_rubric_gets_a_second_answer_and_then_fails(serve: Serve) -> None:
    rules = {"format": "rubric", "rules": {"no-dose": "A dose."}}
    async with FakeUpstream() as judge, serve({"p": judged(judge, "input", **rules)}) as keel:
        good = fake.answer(fake.completion('{"no-dose": "no"}'))
        blank = fake.answer(fake.completion("{\n\n\n"))
        judge.script(blank, good)
        assert (await keel.chat("hello", model="p"))[0] == 200
        judge.script(blank, blank)
        assert (await keel.chat("hello again", model="p"))[0] == 503
        first, second, *_ = (request.json for request in judge.requests)
        assert first["response_format"] == second["response_format"]
        assert (first["stop"], "stop" in second) == (["\n\n\n"], False)


async def test_another_policys_model_may_judge(serve: Serve) -> None:
    async with FakeUpstream(llama_guard) as judge:
        guardian = f'model: {{upstream: {{base_url: "{judge.base_url}/v1", model: lg4}}}}\n'
        guard = {"guard": "judge", "model": {"policy": "guardian"}, "format": "llama_guard"}
        async with serve({"p": f"input: [{json.dumps(guard)}]\n", "guardian": guardian}) as keel:
            assert (await keel.chat(BAD, model="p"))[0] == 400
            assert (await keel.chat("bread", model="p"))[0] == 200
            assert {request.json["model"] for request in judge.requests} == {"lg4"}


async def test_a_judge_that_changes_is_asked_again(serve: Serve, tmp_path: Path) -> None:
    """What another model said of a text is not what this one says."""
    guard = {"guard": "judge", "model": {"policy": "guardian"}, "format": "llama_guard"}
    async with FakeUpstream(llama_guard) as judge:
        model = f'model: {{upstream: {{base_url: "{judge.base_url}/v1", model: NAME}}}}\n'
        policies = {"p": f"input: [{json.dumps(guard)}]\n", "guardian": model.replace("NAME", "lg3")}
        async with serve(policies) as keel:
            for name in ("lg3", "lg3", "lg4", "lg4"):
                path = tmp_path / "policies" / "guardian.yaml"
                path.write_text("name: guardian\n" + model.replace("NAME", name))
                assert (await keel.gateway.reload_policies()).ok
                assert (await keel.chat("bread", model="p"))[0] == 200
            assert [request.json["model"] for request in judge.requests] == ["lg3", "lg4"]


async def test_judges_that_can_not_be_asked_are_told_before_anything_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = {"guard": "judge", "model": {"policy": "nobody"}, "format": "llama_guard"}
    with pytest.raises(StrategyError, match="its judge is the policy 'nobody', which isn't there"):
        async with serve({"p": f"input: [{json.dumps(guard)}]\n"}):
            pass
    monkeypatch.delenv("JUDGES_KEY", raising=False)
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "JUDGES_KEY"}
    guard = {"guard": "judge", "model": {"upstream": server}, "format": "llama_guard"}
    with pytest.raises(PolicyError, match=r"input\[0\]\.model\.api_key_env: .*'JUDGES_KEY' is not set"):
        async with serve({"p": f"input: [{json.dumps(guard)}]\n"}):
            pass


async def test_a_text_can_be_tried_without_a_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEL_POLICIES", json.dumps([str(tmp_path)]))
    async with FakeUpstream(llama_guard) as judge:
        guardian = f'model: {{upstream: {{base_url: "{judge.base_url}/v1", model: lg4}}}}\n'
        guard = {"guard": "judge", "label": "other", "model": {"policy": "guardian"}, "format": "llama_guard"}
        text = f"{guardian}{judged(judge)}input: [{json.dumps(guard)}]\n"
        (tmp_path / "p.yaml").write_text("name: p\n" + text)
        (tmp_path / "guardian.yaml").write_text("name: guardian\n" + guardian)
        for stage, name in (("input", "other"), ("output", "judge")):
            arguments = ["try", "p", BAD, "--stage", stage, "--prompt", "How?", "--json"]
            result = await asyncio.to_thread(CliRunner().invoke, policy_app, arguments)
            assert result.exit_code == 0, result.output
            (report,) = json.loads(result.stdout)["guards"]
            assert (report["guard"], report["action"]) == (name, "block")
        assert seen(judge)[-1] == [("user", "How?"), ("assistant", BAD)]


# What a reply answers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_reply_is_judged_with_its_prompt_though_no_guard_reads_inputs(
    serve: Serve, path: str
) -> None:
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge)}) as keel:
        reply = fake.completion("Like this.")
        reply["choices"][0]["text"] = "Like this."
        keel.upstream.default = fake.answer(reply)
        asked = {"messages": [{"role": "user", "content": "How?"}]} if "chat" in path else {"prompt": "How?"}
        status, answer, _ = await keel.post(path, {"model": "p", **asked})
        assert status == 200, answer
        assert seen(judge) == [[("user", "How?"), ("assistant", "Like this.")]]
        if "chat" not in path:  # what the ids spell, nobody here knows
            status, _, _ = await keel.post(path, {"model": "p", "prompt": [1, 2, 3]})
            assert status == 200
            assert seen(judge)[-1] == [("user", ""), ("assistant", "Like this.")]


async def test_moderations_speak_by_hazard(serve: Serve) -> None:
    async with FakeUpstream(llama_guard) as judge, serve({"p": judged(judge)}) as keel:
        status, answer, _ = await keel.post("/v1/moderations", {"model": "p", "input": BAD})
        assert status == 200
        (result,) = answer["results"]
        assert result["flagged"] is True
        assert [name for name, flagged in result["categories"].items() if flagged] == ["hate"]
        assert result["category_applied_input_types"]["sexual/minors"] == ["text"]
        judge.default = fake.answer(fake.completion("unsafe\nS5"))  # defamation, which is none of OpenAI's
        _, answer, _ = await keel.post("/v1/moderations", {"model": "p", "input": "libel"})
        (result,) = answer["results"]
        assert (result["flagged"], any(result["categories"].values())) == (True, False)
    async with FakeUpstream(granite) as judge, serve({"p": judged(judge, format="granite_guardian")}) as keel:
        status, answer, _ = await keel.post("/v1/moderations", {"model": "p", "input": BAD})
        assert status == 400, "its risks are none of OpenAI's categories"
