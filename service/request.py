"""The input side of a request: its texts are examined, and the engine starts beside the last verdicts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from guardrails.chain import InputChain
from guardrails.guard import Turn
from guardrails.masking import Vault
from guardrails.parts import ChainResult, Part
from service.conversation import (
    Place,
    chat_places,
    completion_places,
    parts_of,
    replace_texts,
    turns_of,
)
from service.engine.errors import UpstreamError
from service.generation import Generation
from service.openai.errors import BadRequest, ContentFiltered, Unavailable, from_engine
from service.report import Report, count, count_scores, count_times
from service.telemetry.metrics import Metrics, child
from service.telemetry.tracing import span

T = TypeVar("T")


class Refusal(Exception):
    """An input guard blocked the request, and the policy answers with a refusal instead of an error."""


@dataclass(slots=True)
class Examined:
    """A request whose text will change no more, though it may still be blocked."""

    places: list[Place] = field(default_factory=list)
    vault: Vault = field(default_factory=Vault)
    report: Report = field(default_factory=Report)
    turns: tuple[Turn, ...] = ()  # as the engine is given them; empty where no judge asks for them

    @property
    def prompt(self) -> str:
        """What the reply answers: the last text that a user wrote."""
        return next((place.part.text for place in reversed(self.places) if place.part.role == "user"), "")


async def examine_input(generation: Generation, examined: Examined, metrics: Metrics) -> None:
    """Run the guards that may change the text, and put what they made of it into the request.

    Raises `ContentFiltered` or `Refusal` where they withhold it.
    """
    served, payload = generation.served, generation.payload
    if not served.guards.input:
        if served.guards.reads_prompt:
            examined.places = _readable_places(generation)
            _note_turns(generation, examined)
        return
    places = chat_places(payload) if generation.kind == "chat" else completion_places(payload)
    examined.places = places
    examined.vault = Vault(place.part.text for place in places)
    with span("guards input") as trace:
        result = await served.chain.transform([place.part for place in places], examined.vault)
        if trace is not None:
            trace.guards(report for part in result.parts for report in part.reports)
    _conclude(generation, examined, result, metrics)
    replace_texts(places, result.parts)
    _note_turns(generation, examined)
    generation.call.state = "input_checked"


def _readable_places(generation: Generation) -> list[Place]:
    """The request's texts, for who judges the reply; none where they are token ids."""
    if generation.kind == "chat":
        return chat_places(generation.payload)
    try:
        return completion_places(generation.payload)
    except BadRequest:
        return []


def _note_turns(generation: Generation, examined: Examined) -> None:
    if generation.served.guards.judges:
        examined.turns = turns_of(examined.places)


async def beside_engine(
    generation: Generation, examined: Examined, metrics: Metrics, asking: Coroutine[Any, Any, T]
) -> T:
    """What the engine gives, once the guards that can only withhold have let the request pass.

    Both run side by side. A block, like whatever else ends this request, cancels the engine. Raises
    `ContentFiltered` or `Refusal`, and as an `ApiError` what an engine's failure means to the client.
    """
    generation.call.state = "generating"
    judges = examined.places and generation.served.chain.has_judges
    engine = asyncio.ensure_future(_timed(generation, asking))
    judging: asyncio.Task[ChainResult] | None = None
    try:
        if judges:
            chain = generation.served.chain
            parts = parts_of(examined.places, with_turns=chain.reads_turns)
            judging = asyncio.create_task(_judged(chain, parts))
            await asyncio.wait({engine, judging}, return_when=asyncio.FIRST_COMPLETED)
            if judging.done() or engine.exception() is None:
                _conclude(generation, examined, await judging, metrics)
        if generation.served.guards.input:
            child(metrics.verdicts, generation.served.name, "input", examined.report.status).inc()
        return await engine
    except UpstreamError as error:
        raise from_engine(error) from error
    except BaseException:
        _close(engine)
        raise
    finally:
        await _end(engine, judging)


async def _judged(chain: InputChain, parts: Sequence[Part]) -> ChainResult:
    with span("guards input beside the engine") as trace:
        result = await chain.judge(parts)
        if trace is not None:
            trace.guards(report for part in result.parts for report in part.reports)
        return result


async def _timed(generation: Generation, asking: Coroutine[Any, Any, T]) -> T:
    """Count the time until the engine's answer as the engine's."""
    began = time.perf_counter()
    result = await asking
    generation.call.upstream_s += time.perf_counter() - began
    return result


def _close(engine: asyncio.Future[Any]) -> None:
    """Close a stream that came and is not wanted."""
    if engine.done() and not engine.cancelled() and engine.exception() is None:
        close = getattr(engine.result(), "close", None)
        if close is not None:
            close()


async def _end(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel what still runs, and see it end."""
    running = [task for task in tasks if task is not None and not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.gather(*running, return_exceptions=True)


def _conclude(generation: Generation, examined: Examined, result: ChainResult, metrics: Metrics) -> None:
    """Record a phase; raises where it withholds."""
    served, report = generation.served, examined.report
    report.add_input(examined.places, result)
    for part in result.parts:
        count(metrics, "input", part.verdict, generation.call)
        count_times(metrics, "input", part.reports)
        count_scores(metrics, "input", served.name, part.reports)
    if not result.action.withholds:
        return
    child(metrics.verdicts, served.name, "input", "blocked").inc()
    if not any(finding.action.withholds for finding in result.verdict.findings):
        # Withheld all the same, but nothing was found: the caller may try again.
        raise Unavailable("a guard could not examine the request", code="guard_failed")
    if served.spec.on_input_block == "refuse":
        raise Refusal
    detail = f" by the guard {report.culprit()!r}" if served.spec.expose != "none" else ""
    rendered = report.render(served)
    raise ContentFiltered(
        f"the request was blocked{detail}",
        extra={"guardrails": rendered} if rendered else None,
    )
