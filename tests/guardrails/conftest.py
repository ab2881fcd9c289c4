"""Real guard workers for the tests: Presidio and the embedded checkpoint, started once for all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from guardrails.build import GuardEnvironment
from guardrails.guard import JobError
from guardrails.models import EMBEDDED, classifier
from guardrails.runtime import Runtime, ServableSpec
from guardrails.stream import Moderator, PendingJob
from policies.registry import Registry

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
PRESIDIO = ServableSpec("presidio:en", "guardrails.presidio:serve", {"language": "en"})


class Workers:
    """A runtime on an event loop of its own, for tests that are not asynchronous themselves."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.environment = GuardEnvironment(
            registry=Registry(CHECKPOINTS), hash_key=b"a key", describe=self._describe
        )
        self.runtime = self.wait(self._start())

    async def _start(self) -> Runtime:
        runtime = Runtime()
        await runtime.start([PRESIDIO, classifier(EMBEDDED, self.environment)])
        return runtime

    def _describe(self, name: str) -> Any:
        return self.runtime.describe(name)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(300)

    def run(self, servable: str, payload: Any) -> Any:
        """The worker's result, or the `JobError`."""
        try:
            return self.wait(self.runtime.run(servable, payload, 60))
        except JobError as error:
            return error

    def kill_at_work(self, moderator: Moderator, text: str) -> None:
        """Feed a text, and end the worker by `kill -9` while it has the text's jobs."""
        (worker,) = self.runtime.workers()
        os.kill(worker.pid, signal.SIGSTOP)
        jobs = moderator.feed(text, final=True)
        asked = [
            asyncio.run_coroutine_threadsafe(
                self.runtime.run(pending.job.servable, pending.job.payload, 60), self._loop
            )
            for pending in jobs
        ]
        try:
            for _ in range(1000):
                if self.runtime.workers()[0].state == "busy":
                    break
                time.sleep(0.01)
            else:
                raise AssertionError("the worker was given nothing to do")
        finally:
            os.kill(worker.pid, signal.SIGKILL)
        for pending, answer in zip(jobs, asked, strict=True):
            moderator.resolve(pending, answer.exception(60))

    def resolve(self, moderator: Moderator, pending: PendingJob) -> None:
        moderator.resolve(pending, self.run(pending.job.servable, pending.job.payload))

    def moderate(self, moderator: Moderator, text: str) -> str:
        """Feed a whole text, run its jobs, return what is released."""
        for pending in moderator.feed(text, final=True):
            self.resolve(moderator, pending)
        return moderator.release().text

    def released(
        self, moderator: Moderator, text: str, fractions: Iterable[float], random: Random
    ) -> Iterator[str]:
        """Feed a text cut at `fractions` of it, answer its jobs at random times and in random order; what has
        been released after each step."""
        so_far, pending = "", []
        cuts = sorted({round(fraction * len(text)) for fraction in fractions} - {0, len(text)})
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            pending += moderator.feed(text[start:end], final=end == len(text))
            while pending and random.random() < 0.6:
                self.resolve(moderator, pending.pop(random.randrange(len(pending))))
            so_far += moderator.release().text
            yield so_far
        while pending:
            self.resolve(moderator, pending.pop())
        yield so_far + moderator.release().text

    def close(self) -> None:
        self.wait(self.runtime.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Tests that use it belong to the group "guard-workers", so that they share one process."""
    started = Workers()
    yield started
    started.close()
