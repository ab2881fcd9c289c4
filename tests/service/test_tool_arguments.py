"""What escapes hide in a tool call's arguments, through the gateway: streamed or not, whatever the chunks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import upstream as fake
from tests.service.conftest import Running, Serve, chunks_of

GUARDED = r"""
output:
  - {guard: patterns, label: mail, builtin: [EMAIL], action: redact}
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\b\d{9}\b'}], action: redact}
  - {guard: patterns, label: word, patterns: ['(?i)project zephyr'], action: block}
"""
MAIL = r'{"to": "ann\u0040example.com", "cc": ["\u0062ob@example.org"], "note": "Dear \u00c4nn,\n"}'
MAIL_OUT = '{"to": "[EMAIL_ADDRESS]", "cc": ["[EMAIL_ADDRESS]"], "note": "Dear \\u00c4nn,\\n"}'
NUMBER = '{"ssn": 123456789, "n": 12, "ann@example.com": true}'
NUMBER_OUT = '{"ssn": "[SSN]", "n": 12, "[EMAIL_ADDRESS]": true}'
WORD = r'{"q": "about \u0050roject\u0020zephyr", "x": 1}'
WORD_OUT = '{"q": "about '

# By choice and call: what the engine says, and what goes out. -1 is the older API's `function_call`.
Calls = dict[tuple[int, int], str]
SAID: Calls = {(0, 0): MAIL, (0, 1): NUMBER, (1, 0): NUMBER, (2, -1): MAIL, (3, 0): NUMBER, (3, 1): WORD}
OUT: Calls = {**SAID, (0, 0): MAIL_OUT, (0, 1): NUMBER_OUT, (1, 0): NUMBER_OUT, (2, -1): MAIL_OUT}
OUT |= {(3, 0): NUMBER_OUT, (3, 1): WORD_OUT}


def piece(key: tuple[int, int], arguments: str, first: bool, whole: bool = False) -> dict[str, Any]:
    """A `delta` or `message` with some of a call's arguments."""
    function: dict[str, Any] = {"arguments": arguments, **({"name": "send"} if first else {})}
    if key[1] < 0:
        return {"function_call": function}
    head = {"id": f"call_{key[1]}", "type": "function"} if first else {}
    return {"tool_calls": [{**({} if whole else {"index": key[1]}), **head, "function": function}]}


def events(size: int) -> Iterator[bytes]:
    """All calls of all choices, mixed, in pieces of `size` characters."""
    for at in itertools.count(0, size):
        left = [(key, text[at : at + size]) for key, text in SAID.items() if at < len(text)]
        if not left:
            break
        for key, text in left:
            choice = {"index": key[0], "delta": piece(key, text, at == 0), "finish_reason": None}
            yield fake.event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})
    for choice in range(4):
        yield fake.token("", "tool_calls", choice)
    yield fake.DONE


def whole() -> dict[str, Any]:
    choices = []
    for index in range(4):
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for key, text in SAID.items():
            if key[0] == index:
                for name, value in piece(key, text, True, whole=True).items():
                    message[name] = message.get(name, []) + value if isinstance(value, list) else value
        choices.append({"index": index, "message": message, "finish_reason": "tool_calls"})
    return {"id": "c", "model": "fake", "choices": choices}


def collect(said: dict[str, Any], choice: int, out: Calls) -> None:
    """Add a `delta` or `message` to what went out."""
    calls = [(call.get("index", i), call) for i, call in enumerate(said.get("tool_calls", ()))]
    calls += [(-1, {"function": said["function_call"]})] if said.get("function_call") else []
    for number, call in calls:
        out[choice, number] = out.get((choice, number), "") + call["function"]["arguments"]


async def streamed(keel: Running, size: int) -> tuple[Calls, dict[int, str]]:
    keel.upstream.script(fake.raw_stream(b"".join(events(size)), cut=fake.every(97)))
    out: Calls = {}
    finish: dict[int, str] = {}
    for chunk in await chunks_of(keel, model="guarded", n=4):
        for choice in chunk["choices"]:
            collect(choice["delta"], choice["index"], out)
            if choice["finish_reason"]:
                finish[choice["index"]] = choice["finish_reason"]
    return out, finish


async def at_once(keel: Running) -> tuple[Calls, dict[int, str]]:
    keel.upstream.script(fake.answer(whole()))
    status, answer = await keel.chat(model="guarded", n=4)
    assert status == 200, answer
    out: Calls = {}
    for choice in answer["choices"]:
        collect(choice["message"], choice["index"], out)
    return out, {choice["index"]: choice["finish_reason"] for choice in answer["choices"]}


@pytest.mark.parametrize("size", [0, 1, 4, 7, 500])
async def test_escapes_hide_nothing_in_any_call_of_any_choice(serve: Serve, size: int) -> None:
    """A size of 0: not streamed."""
    async with serve({"guarded": GUARDED}) as keel:
        out, finish = await (streamed(keel, size) if size else at_once(keel))
    assert finish == {0: "tool_calls", 1: "tool_calls", 2: "tool_calls", 3: "content_filter"}
    withheld = {key: out.pop(key, "") for key in [(3, 0), (3, 1)]}
    assert out == {key: text for key, text in OUT.items() if key[0] < 3}
    for key, text in withheld.items():
        assert OUT[key].startswith(text), "a choice that is withheld ends where its first cut became sure"
    for text in out.values():
        json.loads(text)


async def test_reasoning_is_complete_before_the_call_that_follows(serve: Serve) -> None:
    """The last word needs no look-ahead any more once the upstream has moved on."""
    deltas = [{"reasoning_content": "I mail ann"}, piece((0, 0), "{", True), piece((0, 0), "}", False)]
    raw = b"".join(fake.event({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas)
    async with serve({"guarded": GUARDED}) as keel:
        keel.upstream.script(fake.raw_stream(raw + fake.token("", "tool_calls") + fake.DONE))
        sent = [chunk["choices"][0]["delta"] for chunk in await chunks_of(keel, model="guarded")]
    before = list(itertools.takewhile(lambda delta: "tool_calls" not in delta, sent))
    assert "".join(delta.get("reasoning_content", "") for delta in before) == "I mail ann"
