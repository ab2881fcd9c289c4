"""The worker processes of `guardrails.runtime`: as many as there should be, each replaced when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from guardrails.servable import ServableError, ServableSpec
from guardrails.worker_process import Job, Observer, Pace, PoolSettings, Worker, WorkerInfo


class Pool:
    """`settings.workers` processes that all hold the same servables, each replaced when it dies."""

    def __init__(
        self,
        specs: Mapping[str, ServableSpec],
        settings: PoolSettings,
        observer: Observer,
        ended: Callable[[Job], None],
        wake: Callable[[], None],
        pace: Pace,
    ) -> None:
        self._specs = dict(specs)
        self._settings = settings
        self._observer = observer
        self._pace = pace
        self._ended = ended
        self._wake = wake
        self._slots: list[Worker | None] = [None] * settings.workers
        self._tasks: list[asyncio.Task[None]] = []
        self._retiring = False

    async def start(self) -> dict[str, Any]:
        """Start all workers; what the servables describe. Raises `ServableError`; then `close` the pool."""
        loop = asyncio.get_running_loop()
        first: list[asyncio.Future[dict[str, Any]]] = [loop.create_future() for _ in self._slots]
        self._tasks = [loop.create_task(self._keep(slot, future)) for slot, future in enumerate(first)]
        try:
            return (await asyncio.gather(*first))[0]
        finally:
            for future in first:
                future.cancel()

    async def _keep(self, slot: int, first: asyncio.Future[dict[str, Any]]) -> None:
        """Keep a worker in `slot`; what becomes of the first one is told through `first`."""
        shortest, longest = self._settings.backoff
        pause = shortest
        while not self._retiring:
            worker = self._slots[slot] = Worker(
                self._settings, self._observer, self._ended, self._wake, self._pace
            )
            began = asyncio.get_running_loop().time()
            try:
                try:
                    descriptions = await worker.start(list(self._specs.values()))
                    self._observer.on_worker("ready", worker.pid, "")
                    if not first.done():
                        first.set_result(descriptions)
                    self._wake()
                    await worker.lost.wait()
                finally:
                    # Shielded: a process that is cancelled away unreaped would stay as a zombie.
                    ending = await asyncio.shield(worker.reap())
                if not self._retiring:
                    self._observer.on_worker("died", worker.pid, ending)
            except (ServableError, OSError) as error:
                self._observer.on_worker("failed", worker.pid, str(error))
                if not first.done():
                    first.set_exception(error)
                    return
            if asyncio.get_running_loop().time() - began > 10 * longest:
                pause = shortest
            if not self._retiring:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
        self._slots[slot] = None

    def _workers(self) -> list[Worker]:
        return [worker for worker in self._slots if worker is not None]

    def idle(self) -> list[Worker]:
        """Workers that can take a batch now, in a fixed order, so that a quiet pool keeps one cache warm."""
        return [worker for worker in self._workers() if worker.idle]

    @property
    def ready(self) -> int:
        """How many workers can take batches now or after the one they are at."""
        return sum(worker.state in ("idle", "busy") for worker in self._workers())

    def info(self) -> list[WorkerInfo]:
        return [worker.info() for worker in self._workers()]

    def unload(self, name: str) -> None:
        """Let the workers forget a servable."""
        self._specs.pop(name, None)
        for worker in self._workers():
            worker.unload([name])

    def retire(self) -> None:
        """Take no more jobs, replace nobody; workers end as they become idle."""
        self._retiring = True
        for worker in self._workers():
            worker.retire()

    @property
    def ended(self) -> bool:
        return all(task.done() for task in self._tasks)

    async def close(self) -> None:
        """End everything now."""
        self._retiring = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
