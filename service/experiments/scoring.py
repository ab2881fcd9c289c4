"""Rewards for every arm's replies, by the experiment's own scorer, behind the requests and off their path.

What is to be scored waits in a queue of bounded length; where that is full, or a reply has waited too long to
count, it is left out and counted. The models run in a guard worker of their own, so that no guard ever waits
for one of them. What goes wrong here is nobody's error: a reply without a score is one reward less.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from guardrails import reward
from guardrails.runtime import Runtime
from guardrails.servable import ServableError
from policies.errors import Problem
from policies.experiment import ExperimentSpec, Scorer
from policies.registry import Registry, RegistryError
from service.alignment.rewards import ROLES, Conversation, Reward, RewardError, make_reward
from service.engine.errors import UpstreamError
from service.engine.observer import NullObserver
from service.engines import Engines
from service.settings import Settings
from service.store.writer import Writer
from service.telemetry.metrics import Metrics, child
from service.transcript import conversation

if TYPE_CHECKING:
    from service.generation import Generation

QUEUE = 512
AT_ONCE = 8
WAIT_SECONDS = 10.0
"""How long a reply may wait for its turn."""

_draws = random.Random()  # noqa: S311 - samples, not secrets


@dataclass(frozen=True, slots=True)
class _Job:
    """Replies to one request. `at`: when they were done, on the loop's clock."""

    scorer: Scorer
    experiment: str
    arm: str
    completion_id: str
    conversation: Conversation
    replies: Sequence[str]
    at: float


class Scoring:
    """One gateway's. Without a scorer in any experiment it has no worker and no task."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        writer: Writer,
        metrics: Metrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._metrics = metrics
        self._log = log
        self._runtime = Runtime(workers=1, max_batch=settings.guards.max_batch, max_queue=QUEUE)
        self._engines = Engines(settings, registry, NullObserver())
        self._wanted: list[Scorer] = []
        self._rewards: list[tuple[Scorer, Reward]] = []
        self._loading: asyncio.Task[None] | None = None
        self._queue: deque[_Job] = deque()
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def problems(self, spec: ExperimentSpec) -> Iterable[Problem]:
        """What is wrong with an experiment's scorer; reads files, loads no model."""
        return scorer_problems(spec, self._registry)

    def use(self, specs: Iterable[ExperimentSpec]) -> None:
        """Load what these experiments score with, behind, and let go of the rest."""
        wanted: list[Scorer] = []
        for spec in specs:
            if spec.scorer is not None and spec.scorer not in wanted:
                wanted.append(spec.scorer)
        if wanted != self._wanted:
            self._wanted = wanted
            self._loading = asyncio.create_task(self._load(self._loading))
            if not self._tasks:
                self._tasks = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]

    async def loaded(self) -> None:
        """Whatever is to be used is loaded, or can't be."""
        if self._loading is not None:
            await asyncio.shield(self._loading)

    async def _load(self, former: asyncio.Task[None] | None) -> None:
        if former is not None:
            await former
        rewards = [(scorer, made) for scorer in self._wanted if (made := await self._made(scorer))]
        servables = {name: one for _, made in rewards for name, one in made.servables.items()}
        try:
            await self._runtime.ensure(servables)
            await self._engines.start()
        except (ServableError, UpstreamError) as error:
            self._log.error("scorer_not_loaded", error=str(error))
            rewards = [one for one in self._rewards if one[0] in self._wanted]
        self._rewards = rewards
        self._engines.retire([engine for _, made in rewards for engine in made.engines], [])

    async def _made(self, scorer: Scorer) -> Reward | None:
        if (known := self._reward(scorer)) is not None:
            return known
        try:
            return await asyncio.to_thread(make_reward, scorer, self._registry, self._runtime, self._engines)
        except RegistryError as error:
            self._log.error("scorer_not_loaded", error=str(error))
            return None

    def _reward(self, scorer: Scorer) -> Reward | None:
        return next((made for one, made in self._rewards if one == scorer), None)

    def offer(self, generation: Generation) -> None:
        """A generation has ended: score its replies, if its experiment wants that. Returns at once."""
        assignment, tally, transcript = generation.assignment, generation.tally, generation.transcript
        if assignment is None or assignment.scorer is None or tally is None or transcript is None:
            return
        if assignment.epoch is None or assignment.chosen or generation.call.state != "finished":
            return
        scorer = assignment.scorer
        if scorer.share < 1 and _draws.random() >= scorer.share:
            return
        turns, replies = conversation(generation), [text for text in transcript.replies() if text]
        if not (turns and replies and tally.completion_id):
            self._count(assignment.experiment, assignment.arm, "unfit")
            return
        if len(self._queue) >= QUEUE:
            self._count(assignment.experiment, assignment.arm, "dropped")
            return
        said = tuple((ROLES.get(turn["role"], "user"), turn["content"]) for turn in turns)
        where = (assignment.experiment, assignment.arm, tally.completion_id)
        self._queue.append(_Job(scorer, *where, said, replies, time.monotonic()))
        self._some.set()

    async def aclose(self) -> None:
        """Stop; what waits is not scored."""
        tasks = [*self._tasks, *([self._loading] if self._loading is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runtime.aclose()
        await self._engines.stop()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._some.clear()
                await self._some.wait()
            job = self._queue.popleft()
            try:
                outcome = await self._score(job)
            except Exception as error:
                outcome = "failed"
                self._log.error("reply_not_scored", experiment=job.experiment, exc_info=error)
            self._count(job.experiment, job.arm, outcome)

    async def _score(self, job: _Job) -> str:
        """How it ended."""
        if self._reward(job.scorer) is None:
            await self.loaded()
        if time.monotonic() - job.at > WAIT_SECONDS:
            return "late"
        scoring = self._reward(job.scorer)
        if scoring is None:
            return "failed"
        try:
            scores = await scoring.score(job.conversation, job.replies)
        except RewardError as error:
            self._log.warning("reply_not_scored", experiment=job.experiment, reason=error.reason)
            return "failed"
        row = {
            "completion_id": job.completion_id,
            "experiment": job.experiment,
            "reward": sum(scores) / len(scores),
            "at": time.time(),
        }
        return "scored" if self._writer.put("rewards", row) else "dropped"

    def _count(self, experiment: str, arm: str, outcome: str) -> None:
        child(self._metrics.experiment_scores, experiment, arm, outcome).inc()


def scorer_problems(spec: ExperimentSpec, registry: Registry) -> Iterable[Problem]:
    """What is wrong with an experiment's scorer."""
    if spec.scorer is None:
        return
    aliases = registry.aliases() if registry.root.is_dir() else {}
    for model in spec.scorer.models:
        if isinstance(model, str) and model in aliases:
            message = (
                f"{model!r} is an alias, which may come to mean another model while rewards are compared"
            )
            yield Problem(("scorer", "model"), f"{message}; give {aliases[model]!r}")
    for problem in reward.problems(spec.scorer, registry):
        yield Problem(("scorer", *problem.loc), problem.message)


def lateness(scorer: Scorer | None) -> float:
    """Seconds that a reward may come after its reply."""
    return 0.0 if scorer is None else WAIT_SECONDS + scorer.deadline_ms / 1e3
