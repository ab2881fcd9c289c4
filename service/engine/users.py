"""Who still needs something that is on its way out: requests are counted in and out of what they use.

A request is bound for its whole life, from the moment that its policy was looked up: before its first call to
an engine its input is examined, and between two calls a strategy thinks. An engine's own count of what is in
flight sees neither.
"""

from __future__ import annotations

import asyncio
import contextlib


class Users:
    """The requests bound to one engine or one adapter. Belongs to one event loop."""

    __slots__ = ("_gone", "count")

    def __init__(self) -> None:
        self.count = 0
        self._gone: asyncio.Event | None = None  # made when somebody waits: most are never waited for

    def enter(self) -> None:
        self.count += 1

    def leave(self) -> None:
        self.count -= 1
        if not self.count and self._gone is not None:
            self._gone.set()

    async def gone(self, seconds: float) -> bool:
        """Wait until nobody is left, `seconds` at most; whether nobody is."""
        if self.count:
            self._gone = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while self.count:
                        self._gone.clear()
                        await self._gone.wait()
        return not self.count
