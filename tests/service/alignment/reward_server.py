"""A reward model behind a fake vLLM, and an engine that gives several choices, over real HTTP."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.fakes.upstream import Behaviour, Exchange

Score = Callable[[str], Sequence[float]]
"""A rendered conversation's raw outputs."""


def render(messages: Sequence[dict[str, str]]) -> str:
    """What stands in for a chat template here."""
    return "".join(f"<{message['role']}>{message['content']}" for message in messages)


def scoring(score: Score, longest: int = 4096) -> Behaviour:
    """Answers `/tokenize` (a token is a code point) and `/classify` by what `score` says of the text."""

    async def behave(exchange: Exchange) -> None:
        asked = exchange.request.json
        if exchange.request.path == "/tokenize":
            ids = [ord(letter) for letter in render(asked["messages"])]
            answer: Any = {"count": len(ids), "max_model_len": longest, "tokens": ids}
        else:
            assert exchange.request.path == "/classify"
            assert asked["use_activation"] is False
            texts = ["".join(map(chr, ids)) for ids in asked["input"]]
            rows = [{"index": i, "label": None, "probs": list(score(text))} for i, text in enumerate(texts)]
            answer = {"object": "list", "model": asked["model"], "data": rows}
        await exchange.reply(200, json.dumps(answer).encode())

    return behave


def only(path: str, special: Behaviour, otherwise: Behaviour) -> Behaviour:
    """`special` for this path."""

    async def behave(exchange: Exchange) -> None:
        await (special if exchange.request.path == path else otherwise)(exchange)

    return behave


def said(text: str, index: int = 0, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """One choice of a chat completion."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, **message},
        "logprobs": None,
        "finish_reason": finish,
    }


def choosing(*texts: str | dict[str, Any], at_most: int = 1_000) -> Behaviour:
    """Gives the next of `texts`, over and over, for each choice asked for; a word is a token.

    `at_most` is how many choices it gives in one reply, whatever `n` says.
    """
    supply = itertools.cycle(texts)

    async def behave(exchange: Exchange) -> None:
        asked = exchange.request.json
        chat = "messages" in asked
        choices, words = [], 0
        for index in range(min(at_most, asked.get("n") or 1)):
            given = next(supply)
            choice = said(given, index) if isinstance(given, str) else {**given, "index": index}
            words += len((choice["message"]["content"] or "x").split())
            if not chat:
                choice["text"] = choice.pop("message")["content"]
            choices.append(choice)
        reply = {
            "id": "chatcmpl-fake",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": "fake",
            "choices": choices,
            "usage": {"prompt_tokens": 5, "completion_tokens": words, "total_tokens": 5 + words},
        }
        await exchange.reply(200, json.dumps(reply).encode())

    return behave


def writing(*texts: str) -> Behaviour:
    """Writes the next of `texts` for each choice, goes on where a request's last message ends, and stops at
    `max_tokens` words, like vLLM at its tokens."""
    supply = itertools.cycle(texts)

    async def behave(exchange: Exchange) -> None:
        asked = exchange.request.json
        going_on = bool(asked.get("continue_final_message"))
        assert going_on is (asked.get("add_generation_prompt") is False)
        begun = asked["messages"][-1]["content"]
        choices, words = [], 0
        for index in range(asked.get("n") or 1):
            if going_on:
                rest = next(text for text in texts if text.startswith(begun)).removeprefix(begun)
            else:
                rest = next(supply)
            pieces = [word + " " for word in rest.removesuffix(" ").split(" ")]
            pieces[-1] = pieces[-1].removesuffix(" ")
            given = pieces[: asked.get("max_tokens") or len(pieces)]
            words += len(given)
            finish = "stop" if len(given) == len(pieces) else "length"
            choices.append(said("".join(given), index, finish))
        usage = {"prompt_tokens": 5, "completion_tokens": words, "total_tokens": 5 + words}
        reply = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": "fake"}
        await exchange.reply(200, json.dumps({**reply, "choices": choices, "usage": usage}).encode())

    return behave
