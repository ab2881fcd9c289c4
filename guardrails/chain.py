"""The guards over whole texts: what comes in, and what `/v1/checks` is asked about.

Every guard examines the text as it was received; their verdicts are merged and applied together. Guards
that run here in the gateway come first, those that need a worker after them; a withholding verdict ends
what still runs. What follows a guard that fails or is late is that guard's `on_error`, never "passed".

Verdicts are remembered by content, so that a long conversation costs only its new turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from guardrails.apply import apply
from guardrails.apply_json import apply_json
from guardrails.guard import Answer, AsksJudge, Guard, Job, JobError, JobRunner, Step
from guardrails.in_json import examination
from guardrails.masking import Vault
from guardrails.parts import ChainResult, GuardReport, Part, PartResult, State
from guardrails.verdict import Action, Failure, Finding, Verdict
from guardrails.verdict_cache import Seen, VerdictCache, content_key

logger = structlog.get_logger(__name__)

LOOP_CHARACTERS = 2_500
"""Characters times guards that are scanned on the event loop in one go; more than that goes to a thread."""

HASH_CHARACTERS = 200_000
"""Characters that are hashed on the event loop in one go."""


class InputChain:
    """A policy's input guards, in two phases.

    `transform` runs every guard that needs no worker, and those that may change the text: the engine needs
    its result. `judge` runs the others, which can only withhold: beside the engine, whose first token waits
    for the verdict. Both examine the text as it was received. With `reads_turns` some guard of the second
    reads the conversation too, as the first has left it.
    """

    def __init__(
        self,
        guards: Sequence[Guard],
        runner: JobRunner,
        cache: VerdictCache | None = None,
        *,
        policy_digest: str,
        roles: Collection[str] = ("user", "tool"),
    ) -> None:
        here = [guard for guard in guards if not guard.servables]
        changing = [guard for guard in guards if guard.servables and guard.changes_text]
        self._transforming = [stage for stage in (here, changing) if stage]
        self._judging = [guard for guard in guards if guard.servables and not guard.changes_text]
        self._bench = _Bench(runner, cache, policy_digest)
        self._roles = frozenset(roles)
        self.reads_turns = any(isinstance(guard, AsksJudge) for guard in guards)

    @property
    def has_judges(self) -> bool:
        """Whether `judge` has anything to do."""
        return bool(self._judging)

    async def transform(self, parts: Sequence[Part], vault: Vault) -> ChainResult:
        """Phase 1. Masks go into `vault`, which must have been made from all of the request's texts."""
        return await self._run(parts, self._transforming, vault)

    async def judge(self, parts: Sequence[Part]) -> ChainResult:
        """Phase 2, over the same parts as phase 1. The texts come back as they are, or cut where withheld."""
        return await self._run(parts, [self._judging] if self._judging else [], Vault())

    async def _run(
        self, parts: Sequence[Part], stages: Sequence[Sequence[Guard]], vault: Vault
    ) -> ChainResult:
        examined = [part for part in parts if part.role in self._roles]
        looks = iter(await self._bench.run(examined, stages, early_exit=True))
        return ChainResult(
            tuple(_conclude(part, next(looks) if part.role in self._roles else (), vault) for part in parts)
        )


async def check_texts(
    guards: Sequence[Guard],
    parts: Sequence[Part],
    runner: JobRunner,
    cache: VerdictCache | None = None,
    *,
    policy_digest: str,
    vault: Vault | None = None,
) -> ChainResult:
    """Every guard's full report on every part, whatever the others say: for whoever chooses thresholds.

    As when a request is served, a judge reads an input without what the others replace in it.
    """
    vault = vault if vault is not None else Vault(part.text for part in parts)
    bench = _Bench(runner, cache, policy_digest)
    judges = [guard for guard in guards if isinstance(guard, AsksJudge)]
    others = [guard for guard in guards if guard not in judges]
    looks = await bench.run(parts, [others], early_exit=False)
    if judges:
        shown = [_as_engine_reads(part, own, vault) for part, own in zip(parts, looks, strict=True)]
        judged = await bench.run(shown, [judges], early_exit=False)
        looks = [_in_order(guards, [*a, *b]) for a, b in zip(looks, judged, strict=True)]
    return ChainResult(tuple(_conclude(part, own, vault) for part, own in zip(parts, looks, strict=True)))


@dataclass(slots=True, eq=False)
class _Look:
    """One guard at one text."""

    guard: Guard
    part: Part
    key: bytes | None
    findings: list[Finding] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    state: State = "skipped"
    failure: str | None = None
    cached: bool = False
    ms: float = 0.0

    @property
    def action(self) -> Action:
        action = max((finding.action for finding in self.findings), default=Action.ALLOW)
        return max(action, self.guard.on_error) if self.failure else action

    @property
    def cache_name(self) -> str:
        """The guard and what runs for it: an alias may move, but a servable's name holds a digest."""
        return "|".join([self.guard.name, *sorted(self.guard.servables)])

    def recall(self, seen: Seen) -> None:
        self.findings, self.scores = list(seen.findings), dict(seen.scores)
        self.state, self.cached = "finished", True

    def scan(self) -> None:
        """What runs in the gateway: may be called in a thread."""
        started = time.perf_counter()
        try:
            self.add(examination(self.guard, self.part.context).advance(self.part.text, True))
        except JobError as error:
            self.fail(error.reason, error)
        except Exception as error:
            self.fail("failed", error)
        else:
            self.state = "skipped" if self.jobs else "finished"
        self.ms = (time.perf_counter() - started) * 1000

    def add(self, answer: Answer | Step) -> None:
        self.findings += answer.findings
        if isinstance(answer, Step):
            self.jobs += answer.jobs
        for category, score in answer.scores.items():
            self.scores[category] = max(score, self.scores.get(category, 0.0))

    def fail(self, reason: str, error: BaseException) -> None:
        # The type only: an exception's message may quote the text that it stumbled over.
        logger.warning("guard_failed", guard=self.guard.name, reason=reason, error=type(error).__name__)
        self.state, self.failure, self.jobs = "failed", reason, []

    def report(self) -> GuardReport:
        scores = [*self.scores.values(), *(finding.score for finding in self.findings)]
        return GuardReport(
            guard=self.guard.name,
            state="finished" if self.state == "skipped" and self.action.withholds else self.state,
            action=self.action,
            score=max(scores, default=0.0),
            categories=self.scores,
            findings=tuple(sorted(self.findings, key=lambda f: (f.start, f.end, f.entity_type))),
            ms=round(self.ms, 3),
            failure=self.failure,
            cached=self.cached,
        )

    def verdict(self) -> Verdict:
        failures = [Failure(self.guard.name, self.failure, self.guard.on_error)] if self.failure else []
        return Verdict.of(self.findings, failures)


class _Bench:
    """Runs guards over texts, stage by stage, through the cache and the workers."""

    def __init__(self, runner: JobRunner, cache: VerdictCache | None, policy_digest: str) -> None:
        self._runner, self._cache, self._policy_digest = runner, cache, policy_digest

    async def run(
        self, parts: Sequence[Part], stages: Sequence[Sequence[Guard]], *, early_exit: bool
    ) -> list[list[_Look]]:
        """The looks at each part, in the order of stages and guards."""
        keys = await self._keys(parts)
        by_part: list[list[_Look]] = [[] for _ in parts]
        sure = False
        for guards in stages:
            stage = []
            for part, key, own in zip(parts, keys, by_part, strict=True):
                fresh = [_Look(guard, part, key) for guard in guards]
                own += fresh
                stage += fresh
            if not (sure and early_exit):
                sure = await self._run_stage(stage, early_exit) or sure
        return by_part

    async def _keys(self, parts: Sequence[Part]) -> list[bytes | None]:
        if self._cache is None:
            return [None] * len(parts)
        if sum(len(part.text) + len(part.prompt) for part in parts) > HASH_CHARACTERS:
            return await asyncio.to_thread(self._hash, parts)
        return self._hash(parts)

    def _hash(self, parts: Iterable[Part]) -> list[bytes | None]:
        # A request's own tools take part in the answer and in no key: such parts are always examined.
        return [None if p.tools else content_key(self._policy_digest, p.context, p.text) for p in parts]

    async def _run_stage(self, looks: Sequence[_Look], early_exit: bool) -> bool:
        """Whether something is withheld."""
        cache = self._cache
        for look in looks:
            seen = None if cache is None or look.key is None else cache.get(look.key, look.cache_name)
            if seen is not None:
                look.recall(seen)
        fresh = [look for look in looks if not look.cached]
        sure = any(look.action.withholds for look in looks)
        if not (sure and early_exit):
            sure = await self._scan(fresh, early_exit) or sure
        if not (sure and early_exit):
            sure = await self._run_jobs(fresh, early_exit) or sure
        for look in fresh:
            if cache is not None and look.key is not None and look.state == "finished":
                cache.put(look.key, look.cache_name, Seen(tuple(look.findings), dict(look.scores)))
        return sure

    async def _scan(self, looks: Sequence[_Look], early_exit: bool) -> bool:
        if sum(len(look.part.text) for look in looks) > LOOP_CHARACTERS:
            return await asyncio.to_thread(_scan_all, looks, early_exit)
        return _scan_all(looks, early_exit)

    async def _run_jobs(self, looks: Sequence[_Look], early_exit: bool) -> bool:
        """Runs all jobs side by side; with `early_exit`, a withholding answer cancels those still running."""
        started = time.perf_counter()
        tasks = {
            asyncio.ensure_future(self._answer(look.guard, job)): look for look in looks for job in look.jobs
        }
        open_jobs = {id(look): len(look.jobs) for look in looks if look.jobs}
        sure = False
        waiting = set(tasks)
        try:
            while waiting and not (sure and early_exit):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    look = tasks[task]
                    _take(look, task)
                    open_jobs[id(look)] -= 1
                    if not open_jobs[id(look)]:
                        look.ms += (time.perf_counter() - started) * 1000
                        look.state = "failed" if look.failure else "finished"
                    sure = sure or look.action.withholds
        finally:
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.gather(*waiting, return_exceptions=True)
        return sure

    async def _answer(self, guard: Guard, job: Job) -> Answer:
        async with asyncio.timeout(guard.deadline):
            return job.read(await self._runner.run(job.servable, job.payload, guard.deadline))


def _scan_all(looks: Sequence[_Look], early_exit: bool) -> bool:
    sure = False
    for look in looks:
        look.scan()
        sure = sure or look.action.withholds
        if sure and early_exit:
            break
    return sure


def _take(look: _Look, task: asyncio.Future[Answer]) -> None:
    try:
        look.add(task.result())
    except JobError as error:
        look.fail(error.reason, error)
    except TimeoutError as error:
        look.fail("timeout", error)
    except (Exception, asyncio.CancelledError) as error:
        look.fail("failed", error)


def _as_engine_reads(part: Part, looks: Iterable[_Look], vault: Vault) -> Part:
    """A user's text for a judge: without what is masked or replaced."""
    if part.stage == "output" or part.channel == "tool_arguments":
        return part
    found = [finding for look in looks for finding in look.findings if not finding.action.withholds]
    return replace(part, turns=((part.role, apply(part.text, Verdict.of(found), vault.placeholder)),))


def _in_order(guards: Sequence[Guard], looks: Sequence[_Look]) -> list[_Look]:
    return sorted(looks, key=lambda look: guards.index(look.guard))


def _conclude(part: Part, looks: Iterable[_Look], vault: Vault) -> PartResult:
    verdict, reports = Verdict(), []
    for look in looks:
        verdict = verdict.merge(look.verdict())
        reports.append(look.report())
    text = part.text
    if verdict.action > Action.ALLOW:
        change = apply_json if part.channel == "tool_arguments" else apply
        text = change(text, verdict, vault.placeholder)
    return PartResult(part, verdict, text, tuple(reports))
