"""Which version of its model a request's next call goes to.

A request keeps the checkpoint that it began with, to its end, whatever takes that one's place meanwhile.
Where the policy says `mixed: allow`, each call goes to what the policy's checkpoint means by then. So the
former is free between two calls: a swap in place, or the end of a second vLLM, waits for the longest call
instead of the longest request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.engines import Target
from service.generation import Generation


@asynccontextmanager
async def answering(generation: Generation) -> AsyncIterator[Target]:
    """What the next call is to be sent to; within the block it is not closed."""
    if generation.successor is None:
        yield generation.served.target
        return
    target = (await generation.successor()).target
    generation.answered[target.checkpoint] = None
    with target.used():
        yield target
