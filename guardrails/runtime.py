"""Guard workers, seen from the gateway: jobs go in, results or a `JobError` come out, and nothing hangs.

Jobs wait in the gateway, first come first served, until a worker is idle; it then takes all jobs that wait
for the same servable, up to `max_batch`, without waiting for more. Equal jobs (same servable, same payload)
are computed once, whether they wait or already run. A job whose callers have all gone, by deadline or by
cancellation, never reaches a worker.

A worker that dies is replaced with back-off; the jobs it was at fail at once. A worker that is still at a
batch when every caller has given up and `hang_limit` has passed is killed. When servables are added, new
workers load the whole new set while the old ones keep answering, and take over when all of them are ready.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from guardrails import wire
from guardrails.guard import JobError
from guardrails.pool import Pool
from guardrails.servable import Servable, ServableError, ServableSpec
from guardrails.worker_process import Job, Observer, Pace, PoolSettings, WorkerInfo

__all__ = ["Observer", "Runtime", "Servable", "ServableError", "ServableSpec", "WorkerInfo"]

Servables = Mapping[str, ServableSpec] | Iterable[ServableSpec]
Key = tuple[str, bytes]


class Runtime:
    """A pool of guard workers. Belongs to one event loop; `guardrails.guard.JobRunner` for the guards.

    `max_queue` bounds waiting jobs, `max_queue_bytes` their payloads; beyond either, a job is refused with
    `overloaded`. `cache_entries` bounds the recent results kept, without their texts, for servables that
    allow it. Times are in seconds.
    """

    def __init__(
        self,
        workers: int = 1,
        max_batch: int = 16,
        max_queue: int = 1024,
        *,
        max_queue_bytes: int = 64 << 20,
        cache_entries: int = 4096,
        hang_limit: float = 10.0,
        start_limit: float = 120.0,
        backoff: tuple[float, float] = (0.2, 10.0),
        linger: float = 600.0,
        observer: Observer | None = None,
    ) -> None:
        if min(workers, max_batch, max_queue) < 1:
            raise ValueError("workers, max_batch and max_queue must be at least 1")
        self._settings = PoolSettings(workers, hang_limit, start_limit, backoff)
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self.cache_entries = cache_entries
        self.linger = linger
        self.observer = observer or Observer()
        self._specs: dict[str, ServableSpec] = {}
        self._descriptions: dict[str, Any] = {}
        self._unneeded: dict[str, asyncio.TimerHandle] = {}
        self._pool: Pool | None = None
        self._retired: list[Pool] = []
        self._queues: dict[str, dict[bytes, Job]] = {}
        self._queued = 0
        self._queued_bytes = 0
        self._pending: dict[Key, Job] = {}
        self._recent: OrderedDict[tuple[str, bytes], Any] = OrderedDict()
        self._dispatching = False
        self._pace = Pace()
        self._changing = asyncio.Lock()
        self._closed = False

    # -- what is loaded

    async def start(self, servables: Servables) -> None:
        """Start the workers. Raises `ServableError` when one of `servables` can't be loaded."""
        await self.ensure(servables)

    async def ensure(self, servables: Servables) -> None:
        """Make exactly `servables` available. On `ServableError` everything stays as it was.

        What is no longer needed stays loaded for `linger` seconds, for requests that began with it. Without
        any servable there are no workers.
        """
        specs = servables.values() if isinstance(servables, Mapping) else servables
        wanted = {spec.name: spec for spec in specs}
        async with self._changing:
            if self._closed:
                raise RuntimeError("the guard runtime is closed")
            for name in wanted.keys() & self._unneeded.keys():
                self._unneeded.pop(name).cancel()
            if any(self._specs.get(name) != spec for name, spec in wanted.items()):
                await self._replace_pool({**self._specs, **wanted})
            loop = asyncio.get_running_loop()
            for name in self._specs.keys() - wanted.keys() - self._unneeded.keys():
                self._unneeded[name] = loop.call_later(self.linger, self._unload, name)

    async def _replace_pool(self, specs: dict[str, ServableSpec]) -> None:
        pool = Pool(specs, self._settings, self.observer, self._ended, self._soon, self._pace)
        try:
            descriptions = await pool.start()
        except BaseException:
            await pool.close()
            raise
        old, self._pool = self._pool, pool
        self._specs, self._descriptions = specs, descriptions
        self._soon()
        self._retired = [retired for retired in self._retired if not retired.ended]
        if old is not None:
            old.retire()
            self._retired.append(old)

    def _unload(self, name: str) -> None:
        self._unneeded.pop(name, None)
        self._specs.pop(name, None)
        self._descriptions.pop(name, None)
        if self._pool is not None:
            self._pool.unload(name)

    def describe(self, name: str) -> Any:
        """What the servable says of itself. Raises `ServableError` when it isn't loaded."""
        if name not in self._specs:
            raise ServableError(name, "it isn't loaded")
        return self._descriptions.get(name)

    @property
    def healthy(self) -> bool:
        """Whether jobs can be answered now: every servable is held by a live worker, or none is needed."""
        return not self._closed and (not self._specs or (self._pool is not None and self._pool.ready > 0))

    @property
    def queue_depth(self) -> int:
        """Jobs that wait for a worker."""
        return self._queued

    def expected_wait(self, coming: int = 0) -> float:
        """Seconds that a job which comes now would wait for a worker.

        `coming` are callers whose jobs are about to come: where they are more than the jobs that wait, they
        count, as one each.
        """
        return max(self._queued, coming) * self._pace.seconds_per_job / self._settings.workers

    def workers(self) -> list[WorkerInfo]:
        """The workers as they are now."""
        return self._pool.info() if self._pool is not None else []

    # -- jobs

    async def run(self, servable: str, payload: Any, timeout: float) -> Any:  # `JobRunner`
        """The servable's result for `payload`, which is shared by all who asked for it: don't change it.

        Raises `JobError`: "timeout" after `timeout` seconds, waiting included, "worker_died", "failed" when
        the servable raised or isn't loaded, "overloaded" at once when too much waits already.
        """
        spec = self._specs.get(servable)
        if self._closed or spec is None:
            raise JobError("failed", f"guard model {servable!r} isn't loaded")
        data = wire.dump(payload)
        if not spec.cache:
            return await self._compute(servable, data, timeout)
        key = (servable, hashlib.blake2b(data, digest_size=16).digest())  # a digest: no text stays here
        if key in self._recent:
            self._recent.move_to_end(key)
            self.observer.on_job(servable, "cached", 0.0)
            return self._recent[key]
        result = self._recent[key] = await self._compute(servable, data, timeout)
        if len(self._recent) > self.cache_entries:
            self._recent.popitem(last=False)
        return result

    async def _compute(self, servable: str, payload: bytes, timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        job = self._admit(servable, payload, began + timeout)
        future: asyncio.Future[Any] = loop.create_future()
        job.waiters.add(future)
        timer = loop.call_later(timeout, _time_out, future, timeout)
        outcome = "cancelled"
        try:
            result = await future
            outcome = "ok"
            return result
        except JobError as error:
            outcome = error.reason
            raise
        finally:
            timer.cancel()
            job.waiters.discard(future)
            if not job.waiters and self._dequeue(job):
                self._ended(job)
            self.observer.on_job(servable, outcome, loop.time() - began)

    def _admit(self, servable: str, payload: bytes, deadline: float) -> Job:
        """The job for `payload`: the equal one that is already waiting or running, or a new one."""
        job = self._pending.get((servable, payload))
        if job is not None:
            job.deadline = max(job.deadline, deadline)
            return job
        if self._queued >= self.max_queue or self._queued_bytes + len(payload) > self.max_queue_bytes:
            self.observer.on_job(servable, "overloaded", 0.0)
            raise JobError("overloaded", f"{self._queued} jobs wait")
        job = self._pending[servable, payload] = Job(servable, payload, deadline)
        self._queues.setdefault(servable, {})[payload] = job
        self._queued += 1
        self._queued_bytes += len(payload)
        self._soon()
        return job

    def _dequeue(self, job: Job) -> bool:
        """Take `job` out of its queue; False when it isn't there, because it runs or has ended."""
        queue = self._queues.get(job.servable, {})
        if queue.get(job.payload) is not job:
            return False
        del queue[job.payload]
        if not queue:
            del self._queues[job.servable]
        self._queued -= 1
        self._queued_bytes -= len(job.payload)
        return True

    def _ended(self, job: Job) -> None:
        """No one can join `job` any more."""
        if self._pending.get((job.servable, job.payload)) is job:
            del self._pending[job.servable, job.payload]

    def _soon(self) -> None:
        """Dispatch once per turn of the loop, so that what was asked in one turn shares a batch."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        idle = self._pool.idle() if self._pool is not None else []
        for taken, worker in enumerate(idle):
            if not self._queues:
                return
            servable, queue = next(iter(self._queues.items()))
            share = -(-len(queue) // (len(idle) - taken))
            batch = list(islice(queue.values(), min(self.max_batch, share)))
            for job in batch:
                self._dequeue(job)
            if servable in self._queues:  # to the end of the line: no servable starves another
                self._queues[servable] = self._queues.pop(servable)
            worker.run(servable, batch)

    async def aclose(self) -> None:
        """End all workers; whoever still waits gets a `JobError`."""
        self._closed = True
        for timer in self._unneeded.values():
            timer.cancel()
        self._unneeded.clear()
        async with self._changing:
            pools = [*self._retired, *([self._pool] if self._pool is not None else [])]
            await asyncio.gather(*(pool.close() for pool in pools))
            self._pool, self._retired = None, []
        for job in list(self._pending.values()):
            self._dequeue(job)
            self._ended(job)
            job.fail("failed", "the gateway is stopping")


def _time_out(future: asyncio.Future[Any], seconds: float) -> None:
    if not future.done():
        future.set_exception(JobError("timeout", f"not answered within {seconds:g} s"))
