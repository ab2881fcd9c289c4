"""Guards around generation, through the whole gateway: what is masked, withheld, put back and told."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from tests.fakes import upstream as fake
from tests.fakes.upstream import Exchange
from tests.service.conftest import Serve, chunks_of, finish_of, text_of, until

MASKING = r"""
input:
  - {guard: patterns, label: mail, patterns: [{name: EMAIL, regex: '[a-z]+@[a-z]+\.com'}], action: mask}
"""
BLOCKING = r"""
input:
  - {guard: patterns, label: in, patterns: ['(?i)\bzephyr\b'], action: block}
output:
  - {guard: patterns, label: out, patterns: ['(?i)\bproject zephyr\b'], action: block}
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\b\d{3}-\d{2}-\d{4}\b'}], action: redact}
"""


# Input


@pytest.mark.parametrize("stream", [False, True])
async def test_input_block_is_an_error_and_never_reaches_the_engine(serve: Serve, stream: bool) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        status, answer = await keel.chat("tell me of Zephyr", model="strict", stream=stream)
        assert status == 400
        assert answer["error"]["code"] == "content_filter"
        assert answer["guardrails"]["status"] == "blocked"
        assert answer["guardrails"]["input"][0]["param"] == "messages[0].content"
        await keel.chat("hello", model="strict")
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_verdicts_total{model="strict",stage="input",status="blocked"} 1.0' in page
        assert 'keel_verdicts_total{model="strict",stage="input",status="passed"} 1.0' in page
        assert 'keel_verdicts_total{model="strict",stage="output",status="passed"} 1.0' in page
        assert "ephyr" not in json.dumps(answer)
        assert len(keel.upstream.requests) == 1


async def test_input_block_as_a_refusal(serve: Serve) -> None:
    policy = BLOCKING + "on_input_block: refuse\nrefusal: No, thank you.\n"
    async with serve({"strict": policy}) as keel:
        status, answer = await keel.chat("Zephyr?", model="strict", n=2)
        assert status == 200
        assert [c["message"]["content"] for c in answer["choices"]] == ["No, thank you."] * 2
        assert {c["finish_reason"] for c in answer["choices"]} == {"content_filter"}
        chunks = await chunks_of(keel, text="Zephyr?", model="strict", stream_options={"include_usage": True})
        assert text_of(chunks) == "No, thank you."
        assert finish_of(chunks) == ["content_filter"]
        assert chunks[-1]["usage"]["total_tokens"] == 0
        assert keel.upstream.requests == []


async def test_roles_that_the_policy_does_not_name_are_not_examined(serve: Serve) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        messages = [{"role": "system", "content": "zephyr"}, {"role": "user", "content": "hi"}]
        status, _, _ = await keel.post("/v1/chat/completions", {"model": "strict", "messages": messages})
        assert status == 200


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "ok"}, {"type": "text", "text": "zephyr"}]},
        {"role": "tool", "tool_call_id": "1", "content": "zephyr"},
        {"role": "function", "name": "f", "content": "zephyr"},
        {"role": "user", "content": [{"type": "invented", "text": "zephyr"}]},
        {"role": "user", "name": "zephyr", "content": "hi"},
    ],
)
async def test_every_text_of_a_message_is_examined(serve: Serve, message: dict[str, Any]) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        body = {"model": "strict", "messages": [message]}
        status, answer, _ = await keel.post("/v1/chat/completions", body)
        assert (status, answer["error"]["code"]) == (400, "content_filter")


async def test_images_pass_and_documents_are_examined(serve: Serve) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {
        "model": "strict",
        "messages": [{"role": "user", "content": [image, {"type": "text", "text": "x"}]}],
    }
    async with serve({"strict": BLOCKING}) as keel:
        status, _, _ = await keel.post("/v1/chat/completions", body)
        assert status == 200
        assert keel.upstream.requests[0].json["messages"] == body["messages"]
        status, _, _ = await keel.post(
            "/v1/chat/completions", {**body, "documents": [{"t": ["a", "zephyr"]}]}
        )
        assert status == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 1000])
async def test_masks_are_put_back(serve: Serve, stream: bool, cut: int) -> None:
    async def echo(exchange: Exchange) -> None:
        said = exchange.request.json["messages"][0]["content"]
        assert "ann@" not in said
        if exchange.request.json.get("stream"):
            await fake.stream([said[i : i + cut] for i in range(0, len(said), cut)])(exchange)
        else:
            await fake.answer(fake.completion(said))(exchange)

    text = "From ann@example.com to bob@example.com, and ann@example.com <EMAIL_7>."
    async with serve({"masked": MASKING}) as keel:
        keel.upstream.default = echo
        if stream:
            assert text_of(await chunks_of(keel, text=text, model="masked")) == text
        else:
            _, answer = await keel.chat(text, model="masked")
            assert answer["choices"][0]["message"]["content"] == text
            assert answer["guardrails"]["status"] == "modified"
        asked = keel.upstream.requests[0].json["messages"][0]["content"]
        assert asked == "From <EMAIL_1> to <EMAIL_2>, and <EMAIL_1> <EMAIL_7>."


async def test_concurrent_requests_keep_their_own_masks(serve: Serve) -> None:
    async def echo(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await fake.answer(fake.completion(exchange.request.json["messages"][0]["content"]))(exchange)

    names = [chr(97 + i) * 4 for i in range(20)]
    async with serve({"masked": MASKING}) as keel:
        keel.upstream.default = echo
        answers = await asyncio.gather(*(keel.chat(f"{name}@example.com", model="masked") for name in names))
        assert [a["choices"][0]["message"]["content"] for _, a in answers] == [
            f"{n}@example.com" for n in names
        ]


async def test_token_ids_cannot_be_examined(serve: Serve) -> None:
    async with serve({"masked": MASKING}) as keel:
        for prompt in ([1, 2], [[1], [2]]):
            status, answer, _ = await keel.post("/v1/completions", {"model": "masked", "prompt": prompt})
            assert (status, answer["error"]["param"]) == (400, "prompt")


# Output


async def test_output_block_of_a_reply(serve: Serve) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(fake.answer(fake.completion("It is called Project Zephyr, you know.")))
        status, answer = await keel.chat(model="strict")
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "content_filter"
        assert answer["choices"][0]["message"]["content"] == "It is called "
        assert answer["usage"]["completion_tokens"] == 7
        found = answer["guardrails"]["output"]
        assert [(f["guard"], f["start"], f["end"]) for f in found] == [("out", 13, 27)]


async def test_output_block_in_mid_stream(serve: Serve) -> None:
    words = ["It ", "is ", "Pro", "ject", " Zep", "hyr", ", you", " know"]
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(fake.stream(words, delay=0.02, stall_after=8))
        chunks = await chunks_of(keel, model="strict", stream_options={"include_usage": True})
        assert text_of(chunks) == "It is "
        assert finish_of(chunks) == ["content_filter"]
        assert chunks[-2]["guardrails"]["status"] == "blocked"
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        await asyncio.wait_for(keel.upstream.aborted.wait(), 1)


async def test_other_choices_go_on(serve: Serve) -> None:
    stream = b"".join(
        [
            fake.token("project", index=0),
            fake.token("fine ", index=1),
            fake.token(" zephyr", index=0),
            fake.token(".", index=0),
            fake.token("indeed", index=1),
            fake.token("!", index=0),
            fake.token("", "stop", index=0),
            fake.token("", "stop", index=1),
        ]
    )
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(fake.raw_stream(stream + fake.DONE))
        chunks = await chunks_of(keel, model="strict", n=2)
        assert text_of(chunks, 0) == ""
        assert text_of(chunks, 1) == "fine indeed"
        assert finish_of(chunks, 0) == ["content_filter"]
        assert finish_of(chunks, 1) == ["stop"]
        assert "guardrails" in chunks[-1]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
async def test_stream_and_reply_say_the_same(serve: Serve, size: int) -> None:
    text = "My number is 123-45-6789, not 12-34; and 987-65-4321."
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(
            fake.answer(fake.completion(text)),
            fake.stream([text[i : i + size] for i in range(0, len(text), size)]),
        )
        _, answer = await keel.chat(model="strict")
        assert answer["choices"][0]["message"]["content"] == "My number is [SSN], not 12-34; and [SSN]."
        assert text_of(await chunks_of(keel, model="strict")) == answer["choices"][0]["message"]["content"]


async def test_ordinary_words_are_not_held_back(serve: Serve) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(fake.stream(["Good ", "day ", "to ", "you "], stall_after=4))
        body = {"model": "strict", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
            seen = ""
            async with asyncio.timeout(2):
                async for line in response.content:
                    if line.startswith(b"data: "):
                        seen += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    if seen.strip() == "Good day to you":
                        break


async def test_upstream_dies_under_guards(serve: Serve) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(fake.stream(["one ", "pro", "ject"], die_after=3))
        data = await keel.stream(model="strict")
        assert text_of([json.loads(item) for item in data[:-2]]) == "one "
        assert json.loads(data[-2])["error"]["code"] == "upstream_error"
        assert data[-1] == b"[DONE]"


async def test_unreadable_chunks_are_not_passed_on(serve: Serve) -> None:
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(fake.raw_stream(fake.token("fine ") + b"data: {broken\n\n" + fake.DONE))
        data = await keel.stream(model="strict")
        assert json.loads(data[-2])["error"]["code"] == "upstream_error"


async def test_completions_with_several_prompts(serve: Serve) -> None:
    choices = [{"index": i, "text": f"{i}: 123-45-6789", "finish_reason": "stop"} for i in range(2)]
    async with serve({"strict": BLOCKING}) as keel:
        keel.upstream.script(
            fake.answer({"id": "c", "object": "text_completion", "model": "fake", "choices": choices})
        )
        status, answer, _ = await keel.post(
            "/v1/completions", {"model": "strict", "prompt": ["a", "b"], "echo": True}
        )
        assert status == 200
        assert [c["text"] for c in answer["choices"]] == ["0: [SSN]", "1: [SSN]"]


@pytest.mark.parametrize(("expose", "keys"), [("none", None), ("summary", 5), ("findings", 8)])
async def test_how_much_is_exposed(serve: Serve, expose: str, keys: int | None) -> None:
    async with serve({"strict": BLOCKING + f"expose: {expose}\n"}) as keel:
        _, answer = await keel.chat(model="strict")
        assert len(answer.get("guardrails") or ()) == (keys or 0)
        _, answer = await keel.chat("zephyr", model="strict")
        assert ("guard" in answer["error"]["message"]) == (expose != "none")


async def test_no_text_in_logs_and_metrics(serve: Serve, log_text: Any) -> None:
    marker = "XYZZYMARK"
    async with serve({"strict": BLOCKING, "masked": MASKING}) as keel:
        keel.upstream.default = fake.well_behaved(f"{marker} Project Zephyr 123-45-6789")
        for model in ("plain", "strict", "masked"):
            for stream in (False, True):
                body = {"model": model, "stream": stream, "user": marker}
                for text in (marker, f"{marker} zephyr"):
                    messages = [{"role": "user", "content": text}]
                    async with keel.session.post(
                        keel.url + "/v1/chat/completions", json={**body, "messages": messages}
                    ) as response:
                        await response.read()
        await keel.post("/v1/checks", {"model": "strict", "input": f"{marker} zephyr"})
        await keel.post("/v1/completions", {"model": "strict", "prompt": marker})
        await keel.post("/v1/chat/completions", f'{{"{marker}'.encode())
        await keel.post(
            "/v1/chat/completions", {"model": marker, "messages": [{"role": "user", "content": marker}]}
        )
        page = (await keel.get("/metrics"))[1].decode()
        assert "keel_guard_findings_total" in page
        assert marker not in page
        await until(lambda: log_text.getvalue().count('"event":"request"') >= 10)
    assert marker not in log_text.getvalue()


@pytest.mark.parametrize("guards", ["", BLOCKING])
async def test_buffered_replies_go_out_whole(serve: Serve, guards: str) -> None:
    """Nothing of a reply is sent before its end, with guards or without; an unfinished one shows nothing."""
    async with serve({"whole": guards + "streaming: buffer\n", "flowing": guards}) as keel:
        for model, shown in (("flowing", "One word after "), ("whole", "")):
            keel.upstream.script(fake.stream(["One ", "word ", "after ", "another."], die_after=3))
            data = await keel.stream(model=model)
            assert data[-1] == b"[DONE]"
            chunks = [json.loads(item) for item in data[:-1]]
            said = [choice["delta"].get("content", "") for c in chunks for choice in c.get("choices", ())]
            assert "".join(said).startswith(shown) and bool("".join(said)) == bool(shown)
            assert chunks[-1]["error"]["code"] == "upstream_error"
        keel.upstream.script(fake.stream(["One ", "word ", "after ", "another."]))
        chunks = await chunks_of(keel, model="whole")
        assert text_of(chunks) == "One word after another."
        assert finish_of(chunks) == ["stop"]


async def test_what_is_to_be_logged_is_logged_without_the_text(serve: Serve, log_text: io.StringIO) -> None:
    policy = "output: [{guard: patterns, label: watch, patterns: ['zephyr'], action: log}]\n"
    async with serve({"watching": policy}) as keel:
        keel.upstream.default = fake.answer(fake.completion("of zephyr"))
        status, answer = await keel.chat(model="watching")
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "of zephyr")
        assert answer["guardrails"]["status"] == "passed"
        assert [finding["action"] for finding in answer["guardrails"]["output"]] == ["allow"]
        await until(lambda: '"finding"' in log_text.getvalue())
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "finding"]
    assert (line["policy"], line["stage"], line["guard"], line["category"]) == (
        "watching",
        "output",
        "watch",
        "PATTERN",
    )
    assert "zephyr" not in log_text.getvalue()
