"""One time limit for many tasks, watched by one timer.

`asyncio.timeout` makes and cancels a timer for each use, which on uvloop costs more than half of what it
does. Tasks under a limit of the same length expire in the order in which they began, so that a single
timer, which sleeps until the oldest could expire, is enough for all of them.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Deadlines:
    """Makes contexts that raise `TimeoutError` where their body takes longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: dict[Deadline, None] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> Deadline:
        """A context for the current task, used once. Its time begins when it is entered."""
        return Deadline(self)

    def close(self) -> None:
        """Watch no longer; to be called when nothing runs any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _began(self, deadline: Deadline) -> None:
        loop = asyncio.get_running_loop()
        deadline.expires_at = loop.time() + self.seconds
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(deadline.expires_at, self._look)

    def _ended(self, deadline: Deadline) -> None:
        self._running.pop(deadline, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        while self._running:
            oldest = next(iter(self._running))
            if oldest.expires_at > now:
                self._timer = loop.call_at(oldest.expires_at, self._look)
                return
            del self._running[oldest]
            oldest.expire()


class Deadline:
    """One task's stay under a limit: entered, then left in time, or cancelled and left by `TimeoutError`.

    A cancellation that comes from elsewhere passes through, also where it meets the limit's own.
    """

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_task", "expires_at")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._expired = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self.expires_at = 0.0

    def expire(self) -> None:
        """Cancel what runs under the limit."""
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._task is None:
            raise RuntimeError("a time limit needs a task that it can cancel")
        self._cancelling = self._task.cancelling()
        self._deadlines._began(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines._ended(self)
        task, self._task = self._task, None
        if not self._expired or task is None:
            return
        ours = task.uncancel() <= self._cancelling
        if ours and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error
