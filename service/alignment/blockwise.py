"""Blockwise best of n: a reply grows by the best of n continuations at a time, and each is sent at once.

Where the other methods have the caller wait for the choice among whole replies, here the first text comes
after one block (controlled decoding's blockwise form, Mudgal et al. 2024, arXiv:2310.17022, with a reward
model that reads beginnings in place of a value function). What was sent stands: no later block can mend it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from service.alignment.candidates import Candidate, Group, Work
from service.alignment.partial import begin, divisible, go_on, plain
from service.alignment.rerank import Rerank, bodies_of
from service.alignment.strategy import Aligned, Payload
from service.alignment.waiting import together
from service.generation import Generation
from service.request import Examined


class _OnlyWhole(Exception):
    """These replies can't be continued; nothing of them has been given away yet."""


@dataclass(slots=True, eq=False)
class Line:
    """One choice of the caller's as it grows. `sent` counts characters, `entries` log probabilities.

    `held` characters at its end may still be the beginning of a stop string that the next block completes.
    """

    body: Payload
    work: Work
    held: int
    said: Candidate | None = None
    sent: int = 0
    entries: int = 0

    @property
    def done(self) -> bool:
        return self.said is not None and self.said.done

    def fresh(self, index: int) -> dict[str, Any]:
        """What has come since this was last asked, as a chunk's choice."""
        if self.said is None:
            raise RuntimeError("nothing has been said yet")
        text, choice = self.said.text, self.said.choice
        end = len(text) if self.done else max(self.sent, len(text) - self.held)
        piece, self.sent = text[self.sent : end], max(self.sent, end)
        logprobs = self._fresh_entries(choice.get("logprobs"))
        finish = choice.get("finish_reason") if self.done else None
        stop = {"stop_reason": choice["stop_reason"]} if self.done and "stop_reason" in choice else {}
        said = {"delta": {"role": "assistant", "content": piece}} if "message" in choice else {"text": piece}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish, **stop}

    def _fresh_entries(self, logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
        lists = {name: values for name, values in (logprobs or {}).items() if isinstance(values, list)}
        if not lists:
            return None
        known, self.entries = self.entries, max(map(len, lists.values()))
        return {name: values[known:] for name, values in lists.items()}


class Blockwise(Rerank):
    """The strategy of a policy with the method `blockwise`."""

    async def answer(self, generation: Generation, examined: Examined) -> Aligned:
        """See `Strategy.answer`."""
        lines = self._lines(generation)
        try:
            async for _ in self._grow(lines, generation, examined):
                pass
        except _OnlyWhole:
            return await super().answer(generation, examined)
        works = [line.work for line in lines]
        chosen = [line.said for line in lines]
        self._count(generation.served.name, works, chosen)
        return Aligned(self._payload(generation, works, chosen), {"rerank": self._told(works, chosen)})

    async def blocks(self, generation: Generation, examined: Examined) -> AsyncGenerator[Payload, None]:
        """The reply as chunks in the engine's shape, one after each block.

        The report's summary is kept up to date with them. Raises what `answer` does.
        """
        lines = self._lines(generation)
        works = [line.work for line in lines]
        ended: set[int] = set()
        try:
            async for _ in self._grow(lines, generation, examined):
                chosen = [line.said for line in lines]
                examined.report.summary["rerank"] = self._told(works, chosen)
                chunk = self._payload(generation, works, chosen)
                chunk["choices"] = [
                    line.fresh(index) for index, line in enumerate(lines) if index not in ended
                ]
                ended |= {index for index, line in enumerate(lines) if line.done}
                yield chunk
        except _OnlyWhole:
            aligned = await super().answer(generation, examined)
            examined.report.summary.update(aligned.summary)
            yield aligned.payload
            return
        finally:
            if all(line.said for line in lines):
                self._count(generation.served.name, works, [line.said for line in lines])

    def _lines(self, generation: Generation) -> list[Line]:
        stop = generation.request.stop
        stops = [stop] if isinstance(stop, str) else stop or []
        held = max((len(word) - 1 for word in stops), default=0)
        temperature = self._spec.temperature
        lines = []
        for body in bodies_of(generation):
            if temperature is not None and body.get("temperature") != 0:
                body = {**body, "temperature": temperature}
            for _ in range(generation.request.n or 1):
                lines.append(Line(body, Work([Group()], self._spec.method), max(held, 0)))
        return lines

    async def _grow(
        self, lines: Sequence[Line], generation: Generation, examined: Examined
    ) -> AsyncIterator[None]:
        """One block more of every line that isn't done, again and again."""
        if not all(divisible(line.body) for line in lines) or lines[0].body.get("temperature") == 0:
            raise _OnlyWhole
        while running := [line for line in lines if not line.done]:
            await together(*(self._step(line, generation, examined, lines.index(line)) for line in running))
            yield None

    async def _step(self, line: Line, generation: Generation, examined: Examined, index: int) -> None:
        spec, work = self._spec, line.work
        began = time.perf_counter()
        # Every candidate of every line has a seed of its own.
        done = (index << 20) + len(work.candidates)
        if line.said is None:
            batch = await begin(generation, line.body, spec.block_tokens, spec.n, done)
            if not all(plain(one.choice) for one in batch.candidates if not one.done):
                raise _OnlyWhole
        else:
            blind = work.error is not None  # without scores there is nothing to choose by
            tokens, count = (None, 1) if blind else (spec.block_tokens, spec.n)
            batch = await go_on(generation, line.body, line.said, tokens, count, done)
        work.add(batch)
        work.generating_s += time.perf_counter() - began
        work.groups[0].candidates += batch.candidates
        if work.error is None:
            await self._weigh(generation, examined, line.body, work, batch.candidates)
        fit = [one for one in batch.candidates if not one.blocked]
        if not fit:  # the guards will end the reply here
            fit = batch.candidates[:1]
            fit[0].done = True
        scored = [one for one in fit if one.score is not None]
        line.said = max(scored, key=lambda one: one.score or 0.0) if scored else fit[0]
