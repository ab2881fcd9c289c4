"""A request leaves nothing behind for the garbage collector, however it ends.

What hangs in a cycle is kept, with the request's body, until the collector comes; and while it is at that,
nobody is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from service.http import Call
from tests.fakes import upstream as fake
from tests.service.conftest import Running, Serve, until

MANY = 25
AT_WORK = (
    3  # a connection keeps the call that it answered last, and the fake upstream is a peer in this process
)

POLICIES = {
    "plain": "",
    "guarded": (
        "input:\n  - {guard: patterns, patterns: ['forbidden'], action: block}\n"
        "output:\n  - {guard: patterns, patterns: ['zephyr'], action: redact}\n"
    ),
}


async def chat(keel: Running) -> None:
    assert (await keel.chat(model="guarded"))[0] == 200


async def stream(keel: Running) -> None:
    await keel.stream(model="guarded")


async def blocked(keel: Running) -> None:
    assert (await keel.chat("forbidden", model="guarded"))[0] == 400


async def no_json(keel: Running) -> None:
    assert (await keel.post("/v1/chat/completions", b"{"))[0] == 400


async def unknown_model(keel: Running) -> None:
    assert (await keel.chat(model="nobody"))[0] == 404


async def upstream_fails(keel: Running) -> None:
    keel.upstream.default = fake.status(500)
    assert (await keel.chat())[0] >= 500


async def checked(keel: Running) -> None:
    assert (await keel.post("/v1/checks", {"model": "guarded", "input": "forbidden"}))[0] == 200


async def listed(keel: Running) -> None:
    assert (await keel.get("/v1/models"))[0] == 200


@contextlib.asynccontextmanager
async def without_collections() -> AsyncIterator[Callable[[], int]]:
    """No collections for now; gives a function that counts the calls that are still there."""
    gc.collect()
    gc.disable()
    before = {id(thing) for thing in gc.get_objects() if type(thing) is Call}
    try:
        yield lambda: sum(type(x) is Call and id(x) not in before for x in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "ask",
    [chat, stream, blocked, no_json, unknown_model, upstream_fails, checked, listed],
    ids=lambda f: f.__name__,
)
async def test_a_request_is_gone_when_it_was_answered(
    serve: Serve, ask: Callable[[Running], Awaitable[None]]
) -> None:
    async with serve(POLICIES) as keel:
        await ask(keel)
        async with without_collections() as left:
            for _ in range(MANY):
                await ask(keel)
            assert left() <= AT_WORK


async def test_so_is_one_that_was_refused_for_too_much_load(serve: Serve) -> None:
    body: dict[str, Any] = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}]}
    async with serve(engine={"max_in_flight": 1, "max_waiting": 0}) as keel:
        keel.upstream.default = fake.stall_before_headers()
        stuck = asyncio.create_task(keel.chat())
        await until(lambda: keel.upstream.requests)
        async with without_collections() as left:
            for _ in range(MANY):
                assert (await keel.post("/v1/chat/completions", body))[0] == 503
            assert left() <= AT_WORK
        stuck.cancel()
