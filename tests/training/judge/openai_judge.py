"""A judge behind real HTTP: any `Judge` in this process, served as OpenAI's chat completions.

It reads the questions of `training.judge.critique`, answers them as a model with structured output would, and
can be told to lean to the first reply, to keep its log-probabilities to itself, or to fail in given ways.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web

from policies.constitution import Constitution
from policies.critique import Critique, Violation
from training.data.preferences import as_prompt
from training.judge.protocol import Judge


@dataclass
class Behaviour:
    """`faults` are what the first requests meet, one each; `answer`, if given, is all that is ever said."""

    judge: Judge
    constitution: Constitution
    lean: float = 0.0  # added to the log-odds of the reply shown first
    logprobs: bool = True
    faults: list[int | str] = field(default_factory=list)
    answer: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    now: int = 0
    most: int = 0


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; yields the base URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", partial(_answer, behaviour))
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, int(runner.addresses[0][1])

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _answer(behaviour: Behaviour, request: web.Request) -> web.StreamResponse:
    body = await request.json()
    behaviour.bodies.append(body)
    behaviour.headers.append(dict(request.headers))
    behaviour.now += 1
    behaviour.most = max(behaviour.most, behaviour.now)
    try:
        await asyncio.sleep(0.01)  # long enough for others to arrive meanwhile
        if behaviour.faults:
            fault = behaviour.faults.pop(0)
            if fault == "drop":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if fault == "slow":
                await asyncio.sleep(30)
            if isinstance(fault, int):
                error = {"error": {"message": f"fault {fault}", "type": "x", "param": None, "code": None}}
                return web.json_response(error, status=fault, headers={"Retry-After": "0"})
        return web.json_response(_completion(body, behaviour))
    finally:
        behaviour.now -= 1


def _completion(body: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    case = json.loads(body["messages"][-1]["content"])
    prompt = as_prompt(case["conversation"])
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    logprobs = None
    if "verdict" in fields:
        p = behaviour.judge.compare(prompt, case["reply_a"], case["reply_b"])
        z = math.log(p / (1 - p)) + behaviour.lean
        text, logprobs = _verdict(1 / (1 + math.exp(-z)), body)
    elif "violations" in fields:
        critique = behaviour.judge.critique(prompt, case["reply"]["content"], behaviour.constitution)
        rows = [
            {"principle": v.principle, "evidence": v.evidence, "severity": v.severity}
            for v in critique.violations
        ]
        text = json.dumps({"violations": rows})
    else:
        named = [
            p
            for p in behaviour.constitution.principles
            if p.revision_request in body["messages"][0]["content"]
        ]
        critique = Critique(tuple(Violation(p.id, "", p.severity) for p in named))
        revision = behaviour.judge.revise(prompt, case["reply"]["content"], behaviour.constitution, critique)
        text = json.dumps({"revision": revision})
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text if behaviour.answer is None else behaviour.answer},
        "finish_reason": "stop",
    }
    if behaviour.logprobs and logprobs and behaviour.answer is None:
        choice["logprobs"] = {"content": logprobs}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


def _verdict(p: float, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """At temperature 0 the likelier letter, else one drawn with the request's seed; and its tokens."""
    drawn = random.Random(body.get("seed")).random() < p if body["temperature"] else p >= 0.5
    letter = "A" if drawn else "B"
    tokens = ['{"ver', 'dict": ', f'"{letter}', '"}']
    content = [{"token": t, "bytes": list(t.encode()), "logprob": -0.01, "top_logprobs": []} for t in tokens]
    alternatives = {'"A': p, '"B': 1 - p, "x": 1e-6}
    content[2]["logprob"] = math.log(alternatives[f'"{letter}'])
    content[2]["top_logprobs"] = [
        {"token": t, "bytes": list(t.encode()), "logprob": math.log(q)} for t, q in alternatives.items()
    ]
    return "".join(tokens), content
