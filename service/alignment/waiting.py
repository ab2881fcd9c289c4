"""A streaming caller who has to wait is told so: comments keep the connection, and the client, alive.

An event stream's comments (a line that begins with a colon; WHATWG HTML, section 9.2) reach no handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

COMMENT = b": keep-alive\n\n"


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results in order. The first error ends the others, and is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def waiting(work: Coroutine[Any, Any, T], tell: Callable[[bytes], Awaitable[None]], every: float) -> T:
    """The result of `work`; until it is there, `tell(COMMENT)` every so many seconds.

    The first comes after as long a time, so that a quick failure can still have a status of its own.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            done, _ = await asyncio.wait({task}, timeout=every)
            if not done:
                await tell(COMMENT)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
