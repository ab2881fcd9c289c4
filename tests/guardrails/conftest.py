"""Real guard workers for the tests: Presidio and the embedded checkpoint, started once for all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from guardrails.build import GuardEnvironment
from guardrails.guard import Guard, JobError
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

    def resolve(self, moderator: Moderator, pending: PendingJob) -> None:
        moderator.resolve(pending, self.run(pending.job.servable, pending.job.payload))

    def moderate(self, moderator: Moderator, text: str) -> str:
        """Feed a whole text, run its jobs, return what is released."""
        for pending in moderator.feed(text, final=True):
            self.resolve(moderator, pending)
        return moderator.release().text

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


def servables_of(guards: list[Guard]) -> set[str]:
    return {name for guard in guards for name in guard.servables}
