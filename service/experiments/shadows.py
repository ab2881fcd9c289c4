"""Copies of requests for policies that nobody hears: they begin when the caller has had the reply.

At most so many run at once for an experiment; what comes beyond is left out, never queued. What goes wrong
with a copy is counted, and is nobody's error.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from service.experiments.assignment import Assignment
from service.http import MessageDict
from service.openai.errors import ApiError
from service.telemetry.metrics import Metrics, child


class Shadows:
    """Those of one endpoint."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, shadow: Assignment, work: Callable[[], Awaitable[str]]) -> None:
        """Do `work`, which says how it ended, unless as many of the experiment's as may be are under way."""
        if self._running[shadow.experiment] >= shadow.room:
            child(self._metrics.experiment_shadows, shadow.experiment, shadow.arm, "skipped").inc()
            return
        self._running[shadow.experiment] += 1
        task = asyncio.create_task(self._run(shadow, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, shadow: Assignment, work: Callable[[], Awaitable[str]]) -> None:
        outcome = "failed"
        try:
            outcome = await work()
        except ApiError as error:
            outcome = "blocked" if error.code == "content_filter" else "failed"
        except Exception:
            outcome = "failed"
        finally:
            self._running[shadow.experiment] -= 1
            child(self._metrics.experiment_shadows, shadow.experiment, shadow.arm, outcome).inc()

    async def aclose(self) -> None:
        """Cancel what runs, and see it end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def nowhere(message: MessageDict) -> None:
    """A client that nobody is."""
