"""Moderating a whole reply as it arrives: several choices, each with several channels of text.

Upstream deltas go in, released pieces come out, in order within each channel. As long as no guard hands
out a job there are no tasks and no queues: each batch of deltas is examined and released in place. With
the first job the upstream is read on beside the jobs, up to a bound, and whatever comes first, a chunk or
an answer, releases what it can.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from guardrails.guard import Channel, JobError, JobRunner
from guardrails.stream import Moderator, PendingJob, Release
from guardrails.verdict import Failure, Finding

READ_AHEAD = 64
"""Batches that are read from the upstream and not yet examined."""

HELD_CHARACTERS = 65_536
"""With so many characters waiting for answers, nothing more is examined until some have come."""


class ChannelKey(NamedTuple):
    """One text of a reply: a choice's content, reasoning or refusal, or one tool call's arguments."""

    choice: int = 0
    channel: Channel = "content"
    tool_call: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of one channel. `attachment` (log-probabilities, a tool call's head) goes out with it, but
    only if all of its text goes out unchanged; with an empty text it goes out at its place."""

    key: ChannelKey
    text: str
    attachment: Any = None


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """The upstream has finished a choice; `reason` is passed through."""

    choice: int = 0
    reason: Any = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may go out, and the attachments of the deltas that it completes."""

    key: ChannelKey
    text: str
    attachments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    """Nothing more of this choice comes: it is finished (`reason` is the upstream's, None if the upstream
    gave none), or a guard `withheld` the rest."""

    choice: int
    reason: Any = None
    withheld: Finding | Failure | None = None


OpenChannel = Callable[[ChannelKey], Moderator]


async def moderate(
    deltas: AsyncIterator[Sequence[Delta | ChoiceEnd]],
    open_channel: OpenChannel,
    runner: JobRunner,
    *,
    choices: int = 1,
) -> AsyncGenerator[list[Piece | ChoiceEnded], None]:
    """Batches of what may go out, as soon as it may.

    open_channel: called once for each channel when its first delta arrives; the caller may keep the
        moderators for their reports.
    choices: how many choices the reply has. When all have ended, and a guard ended one before the upstream
        did, the upstream is not read to its end: the caller should cancel it.

    An upstream that ends without ending a choice has finished it. An exception of the upstream is raised
    once what was read before it has been released as far as that is possible without waiting.

    Closing the generator cancels the jobs. The upstream is not closed: it belongs to the caller.
    """
    desk = _Desk(open_channel, choices)
    async for events in deltas:
        jobs = desk.take(events)
        if jobs:
            async with aclosing(_beside_jobs(desk, deltas, runner, jobs)) as batches:
                async for batch in batches:
                    yield batch
            return
        if batch := desk.collect():
            yield batch
        if desk.cut_off:
            return
    jobs = desk.finish()
    if jobs:
        async with aclosing(_beside_jobs(desk, _nothing(), runner, jobs)) as batches:
            async for batch in batches:
                yield batch
    elif batch := desk.collect():
        yield batch


async def _nothing() -> AsyncIterator[Sequence[Delta | ChoiceEnd]]:
    none: tuple[Sequence[Delta | ChoiceEnd], ...] = ()
    for events in none:
        yield events


@dataclass(slots=True, eq=False)
class _Channel:
    key: ChannelKey
    moderator: Moderator
    length: int = 0
    marks: deque[tuple[int, int, Any]] = field(default_factory=deque)
    replaced: list[tuple[int, int]] = field(default_factory=list)

    def take(self, delta: Delta) -> list[PendingJob]:
        start = self.length
        self.length += len(delta.text)
        if delta.attachment is not None:
            self.marks.append((start, self.length, delta.attachment))
        return self.moderator.feed(delta.text)

    def attachments(self, release: Release) -> tuple[Any, ...]:
        """Those whose text has gone out with this release; those whose text was changed are dropped."""
        self.replaced += release.replaced
        passed = []
        while self.marks:
            start, end, attachment = self.marks[0]
            if end > release.end or (release.withheld and start >= release.end):
                break
            self.marks.popleft()
            if not any(a < end and start < b for a, b in self.replaced):
                passed.append(attachment)
        self.replaced = [span for span in self.replaced if self.marks and span[1] > self.marks[0][0]]
        return tuple(passed)


@dataclass(slots=True, eq=False)
class _Choice:
    """`thinking`: the reasoning that goes on."""

    index: int
    channels: dict[ChannelKey, _Channel] = field(default_factory=dict)
    thinking: _Channel | None = None
    end: ChoiceEnd | None = None
    ended: bool = False


class _Desk:
    """All channels of a reply: takes deltas and answers, gives out what may go. Synchronous."""

    def __init__(self, open_channel: OpenChannel, choices: int) -> None:
        self._open_channel = open_channel
        self._expected = choices
        self._choices: dict[int, _Choice] = {}
        self._touched: dict[int, _Choice] = {}

    @property
    def cut_off(self) -> bool:
        """Whether all choices have ended, and the upstream still works on one of them in vain."""
        choices = self._choices.values()
        return (
            len(choices) >= self._expected
            and all(choice.ended for choice in choices)
            and any(choice.end is None for choice in choices)
        )

    @property
    def held(self) -> int:
        """Characters that wait, in the channels of choices that go on."""
        return sum(
            channel.moderator.held
            for choice in self._choices.values()
            if not choice.ended
            for channel in choice.channels.values()
        )

    def take(self, events: Iterable[Delta | ChoiceEnd]) -> list[tuple[_Choice, PendingJob]]:
        """Examine what has arrived; the jobs that it gives rise to."""
        jobs: list[tuple[_Choice, PendingJob]] = []
        for event in events:
            choice = self._choice(event.choice if isinstance(event, ChoiceEnd) else event.key.choice)
            self._touched[choice.index] = choice
            if isinstance(event, ChoiceEnd):
                jobs += self._end(choice, event)
            elif not choice.ended:
                channel = choice.channels.get(event.key)
                if channel is None:
                    channel = _Channel(event.key, self._open_channel(event.key))
                    choice.channels[event.key] = channel
                if choice.thinking is not channel:
                    jobs += self._turn(choice, channel)
                new = channel.take(event)
                if new:
                    jobs += [(choice, job) for job in new]
        return jobs

    def finish(self) -> list[tuple[_Choice, PendingJob]]:
        """The upstream has ended, and so have its choices."""
        return self.take([ChoiceEnd(c.index) for c in self._choices.values() if c.end is None])

    def resolve(self, choice: _Choice, job: PendingJob, result: Any) -> None:
        """Take a job's result, or the `JobError` in its place."""
        job.moderator.resolve(job, result)
        self._touched[choice.index] = choice

    def collect(self) -> list[Piece | ChoiceEnded]:
        """What may go out, of the choices that something happened to."""
        out: list[Piece | ChoiceEnded] = []
        for choice in self._touched.values():
            if not choice.ended:
                self._collect(choice, out)
        self._touched.clear()
        return out

    def _collect(self, choice: _Choice, out: list[Piece | ChoiceEnded]) -> None:
        all_ended = True
        for channel in choice.channels.values():
            release = channel.moderator.release()
            attachments = channel.attachments(release) if channel.marks or release.replaced else ()
            if release.text or attachments:
                out.append(Piece(channel.key, release.text, attachments))
            if release.withheld is not None:
                choice.ended = True
                out.append(ChoiceEnded(choice.index, None, release.withheld))
                return
            all_ended = all_ended and release.ended
        if choice.end is not None and all_ended:
            choice.ended = True
            out.append(ChoiceEnded(choice.index, choice.end.reason))

    def _turn(self, choice: _Choice, channel: _Channel) -> list[tuple[_Choice, PendingJob]]:
        """The upstream moves on to `channel`: reasoning that went on until now has come to its end."""
        thinking = choice.thinking
        choice.thinking = channel if channel.key.channel == "reasoning" else None
        return [(choice, job) for job in thinking.moderator.pause()] if thinking else []

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index)
        return choice

    def _end(self, choice: _Choice, end: ChoiceEnd) -> list[tuple[_Choice, PendingJob]]:
        if choice.end is not None:
            return []
        choice.end = end
        if choice.ended:
            return []
        channels = choice.channels.values()
        return [(choice, job) for channel in channels for job in channel.moderator.feed("", final=True)]


async def _beside_jobs(
    desk: _Desk,
    deltas: AsyncIterator[Sequence[Delta | ChoiceEnd]],
    runner: JobRunner,
    jobs: list[tuple[_Choice, PendingJob]],
) -> AsyncGenerator[list[Piece | ChoiceEnded], None]:
    """The rest of a reply, read and released beside its jobs."""
    works = _Works(deltas, runner)
    try:
        works.start(jobs)
        while True:
            if batch := desk.collect():
                yield batch
            if desk.cut_off:
                return
            if works.exhausted:
                if works.error is not None:
                    raise works.error
                works.start(desk.finish())
                if not works.unanswered:
                    if batch := desk.collect():
                        yield batch
                    return
            await works.something()
            for choice, job, result in works.answers():
                desk.resolve(choice, job, result)
            while works.inbox and (not works.unanswered or desk.held < HELD_CHARACTERS):
                works.start(desk.take(works.next_events()))
    finally:
        await works.stop()


class _Works:
    """What runs beside a reply: the reader of the upstream, and the jobs."""

    def __init__(self, deltas: AsyncIterator[Sequence[Delta | ChoiceEnd]], runner: JobRunner) -> None:
        self.inbox: deque[Sequence[Delta | ChoiceEnd]] = deque()
        self.unanswered = 0
        self.error: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answers: list[tuple[_Choice, PendingJob, Any]] = []
        self._runner = runner
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._reader = asyncio.create_task(self._read(deltas))
        self._reader.add_done_callback(lambda _: self._news.set())

    @property
    def exhausted(self) -> bool:
        """Whether the upstream has ended, and all that it gave has been taken."""
        return self._reader.done() and not self.inbox

    def start(self, jobs: Iterable[tuple[_Choice, PendingJob]]) -> None:
        """Run `jobs`; each will be among the answers by its deadline."""
        for choice, job in jobs:
            task = asyncio.create_task(self._answer(choice, job))
            self.unanswered += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def next_events(self) -> Sequence[Delta | ChoiceEnd]:
        """The next batch of the inbox."""
        self._room.set()
        return self.inbox.popleft()

    def answers(self) -> list[tuple[_Choice, PendingJob, Any]]:
        """Those that have come since this was last asked."""
        answers, self._answers = self._answers, []
        self.unanswered -= len(answers)
        return answers

    async def something(self) -> None:
        """Wait for a batch, an answer or the upstream's end."""
        await self._news.wait()
        self._news.clear()

    async def stop(self) -> None:
        """Cancel whatever still runs, and wait for it."""
        tasks = [self._reader, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, deltas: AsyncIterator[Sequence[Delta | ChoiceEnd]]) -> None:
        try:
            async for events in deltas:
                self.inbox.append(events)
                self._news.set()
                while len(self.inbox) >= READ_AHEAD:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self.error = error

    async def _answer(self, choice: _Choice, pending: PendingJob) -> None:
        job, deadline = pending.job, pending.deadline
        result: Any
        try:
            async with asyncio.timeout(deadline):
                result = await self._runner.run(job.servable, job.payload, deadline)
        except TimeoutError:
            result = JobError("timeout")
        except JobError as error:
            result = error
        except Exception as error:
            result = JobError("failed", type(error).__name__)
        self._answers.append((choice, pending, result))
        self._news.set()
