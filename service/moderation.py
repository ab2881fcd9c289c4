"""All texts of one reply under moderation: every channel of every choice, with its guards' jobs.

Synchronous but for the jobs, which run as tasks: `feed` and `finish` give what may go out now, `collect`
what answered jobs have freed since. Who drives it waits on `jobs` while there are any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails.guard import Context, Guard, JobError, JobRunner
from guardrails.masking import Unmasker, Vault
from guardrails.stream import Moderator, PendingJob, Release
from service.openai.channels import Key, Piece
from service.openai.logprobs import Entry
from service.report import Report, count, count_times
from service.telemetry.metrics import Metrics


@dataclass(slots=True, eq=False)
class _Text:
    """One channel of one choice."""

    choice: int
    key: Key
    moderator: Moderator
    unmasker: Unmasker | None
    length: int = 0  # characters fed
    entries: list[tuple[int, int, Entry]] = field(default_factory=list)  # by their characters, in order
    replaced_to: int = 0  # up to where something was replaced
    final: bool = False
    ended: bool = False
    spoke: bool = False  # something, be it empty, went out


class Moderation:
    """One reply. `prompt` is what it answers, for guards that look at both."""

    def __init__(
        self,
        guards: Sequence[Guard],
        runner: JobRunner,
        report: Report,
        metrics: Metrics,
        *,
        vault: Vault | None = None,
        prompt: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._guards = guards
        self._runner = runner
        self._report = report
        self._metrics = metrics
        self._vault = vault if vault else None
        self._prompt = prompt
        self._tools = tools
        self._texts: dict[tuple[int, Key], _Text] = {}
        self._jobs: dict[asyncio.Task[Any], tuple[_Text, PendingJob]] = {}
        self._withheld: set[int] = set()
        self._concluded = False

    @property
    def jobs(self) -> set[asyncio.Task[Any]]:
        """Unanswered jobs: when one of them is done, `collect`."""
        return set(self._jobs)

    @property
    def held(self) -> int:
        """Characters that have arrived and not gone out."""
        return sum(text.moderator.held for text in self._texts.values())

    def withheld(self, choice: int) -> bool:
        """Whether this choice ends here because of what it says."""
        return choice in self._withheld

    def settled(self, choice: int) -> bool:
        """Whether all that this choice will ever show has gone out."""
        return choice in self._withheld or all(
            text.ended for text in self._texts.values() if text.choice == choice
        )

    def feed(self, piece: Piece, tool_name: str | None = None) -> list[Piece]:
        """Take the next piece of a channel; returns what may go out of it."""
        if piece.choice in self._withheld:
            return []
        text = self._texts.get((piece.choice, piece.key))
        if text is None or text.final:
            text = self._open(piece, tool_name)
        start, text.length = text.length, text.length + len(piece.text)
        text.entries += [(start, text.length, entry) for entry in piece.entries]
        self._run(text, text.moderator.feed(piece.text))
        return self._release(text)

    def finish(self, choice: int, key: Key | None = None) -> list[Piece]:
        """Nothing follows in this channel of a choice, or in any of them."""
        released: list[Piece] = []
        for text in list(self._texts.values()):
            if text.choice == choice and not text.final and key in (None, text.key):
                text.final = True
                self._run(text, text.moderator.feed("", final=True))
                released += self._release(text)
        return released

    def collect(self) -> list[Piece]:
        """Take the answers of jobs that are done; returns what that frees."""
        touched: dict[int, _Text] = {}
        for task in [task for task in self._jobs if task.done()]:
            text, pending = self._jobs.pop(task)
            text.moderator.resolve(pending, task.result())
            touched[id(text)] = text
        return [piece for text in touched.values() for piece in self._release(text)]

    async def cancel(self) -> None:
        """Nobody waits for the jobs any more."""
        for task in self._jobs:
            task.cancel()
        if self._jobs:
            await asyncio.gather(*self._jobs, return_exceptions=True)
        self._jobs.clear()

    def conclude(self) -> None:
        """Bring what was found into the report and the metrics; what comes later is not told."""
        if self._concluded:
            return
        self._concluded = True
        for text in self._texts.values():
            verdict = text.moderator.verdict
            self._report.add_output(text.choice, text.key.channel, verdict)
            count(self._metrics, "output", verdict)
            count_times(self._metrics, "output", text.moderator.reports())

    def _open(self, piece: Piece, tool_name: str | None) -> _Text:
        channel = piece.key.channel
        context = Context("output", "assistant", channel, self._prompt, tool_name, self._tools)
        unmasker = None
        if self._vault is not None:
            unmasker = Unmasker(self._vault, json_strings=channel == "tool_arguments")
        text = _Text(piece.choice, piece.key, Moderator(self._guards, context), unmasker)
        former = self._texts.pop((piece.choice, piece.key), None)
        if former is not None:
            # A channel that was closed speaks again: what it said before is kept for the report.
            self._texts[(piece.choice, Key(channel, ~len(self._texts)))] = former
        self._texts[(piece.choice, piece.key)] = text
        return text

    def _run(self, text: _Text, jobs: Sequence[PendingJob]) -> None:
        for pending in jobs:
            self._jobs[asyncio.create_task(self._answer(pending))] = (text, pending)

    async def _answer(self, pending: PendingJob) -> Any:
        try:
            async with asyncio.timeout(pending.deadline):
                return await self._runner.run(pending.job.servable, pending.job.payload, pending.deadline)
        except JobError as error:
            return error
        except TimeoutError:
            return JobError("timeout")
        except Exception as error:
            return JobError("failed", type(error).__name__)

    def _release(self, text: _Text) -> list[Piece]:
        if text.ended or text.choice in self._withheld:
            return []
        release = text.moderator.release()
        text.ended = release.ended
        if release.withheld is not None:
            self._withheld.add(text.choice)
        entries = _entries_within(text, release)
        shown = release.text
        if text.unmasker is not None:
            shown = text.unmasker.feed(release.text, final=release.ended)
            if shown != release.text:
                entries = ()
        # The first that goes out may be empty: it carries a tool call's name, once nothing is against it.
        first = not text.spoke and (release.ended or release.end > 0) and release.withheld is None
        if not shown and not entries and not first:
            return []
        text.spoke = True
        return [Piece(text.choice, text.key, shown, entries)]


def _entries_within(text: _Text, release: Release) -> tuple[Entry, ...]:
    """Log probabilities of what goes out unchanged; those of what was replaced are dropped."""
    if not text.entries:
        return ()
    kept: list[Entry] = []
    done = 0
    for start, end, entry in text.entries:
        if end > release.end:
            break
        done += 1
        if start >= text.replaced_to and not any(start < b and a < end for a, b in release.replaced):
            kept.append(entry)
    del text.entries[:done]
    text.replaced_to = max([text.replaced_to, *(b for _, b in release.replaced)])
    return tuple(kept)
