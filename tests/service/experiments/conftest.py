"""A gateway with experiments, that looks often and waits for little."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import upstream as fake
from tests.fakes.upstream import Exchange
from tests.service.conftest import Running, Serve

ADMIN = {"authorization": "Bearer admin-key-0123456789"}
TWO = """
arms:
  - {name: control, policy: plain}
  - {name: new, policy: other}
"""
STRICT = "output: [{guard: patterns, patterns: ['there'], action: block}]\n"

Trying = Callable[..., AbstractAsyncContextManager[Running]]


async def say_hello(exchange: Exchange) -> None:
    """A reply under an id of its own, as engines give."""
    name = f"chatcmpl-{next(_numbers)}"
    if exchange.request.json.get("stream"):
        chunk = fake.token("Hello there", "stop").replace(b"chatcmpl-fake", name.encode())
        await fake.raw_stream(chunk + fake.DONE)(exchange)
    else:
        await fake.answer({**fake.completion("Hello there"), "id": name})(exchange)


_numbers = itertools.count()


@pytest.fixture
def trying(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trying:
    """`async with trying(yaml, other=policy) as keel:` the experiment `test`, and the policy of its arm."""
    monkeypatch.setattr("service.experiments.house.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("service.experiments.house.FOLLOW_SECONDS", 0.1)

    @contextlib.asynccontextmanager
    async def running(
        experiment: str = TWO, other: str = "", begun: bool = True, **settings: Any
    ) -> AsyncIterator[Running]:
        folder = tmp_path / "experiments"
        folder.mkdir(exist_ok=True)
        window = "" if "window_s" in experiment else "window_s: 0.1\n"
        head = f"name: test\nevery_s: 0.3\n{window}"
        (folder / "test.yaml").write_text(head + experiment)
        options = {"admin_key": ADMIN["authorization"][7:], "experiments": [folder], **settings}
        async with serve({"other": other}, **options) as keel:
            keel.upstream.default = say_hello
            if begun:
                async with asyncio.timeout(30):
                    while not keel.gateway.house.experiments.live["test"].known:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            yield keel

    return running


async def overview(keel: Running) -> dict[str, Any]:
    status, body, _ = await keel.get("/admin/v1/experiments/test", ADMIN)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


async def ask(keel: Running, session: str | None = None, **headers: str) -> tuple[str, Any]:
    """The arm that answered, and the answer."""
    body = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
    sent = {**({"x-session-id": session} if session else {}), **headers}
    status, answer, response = await keel.post("/v1/chat/completions", body, sent)
    assert status == 200, answer
    return response.headers["x-keel-experiment"].removeprefix("test/"), answer


async def eventually(keel: Running, holds: Callable[[dict[str, Any]], Any], seconds: float = 30) -> Any:
    """The overview, once it is as it should be."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(seconds):
            while not holds(found := await overview(keel)):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"it stayed as it was: {found}")
    return found
