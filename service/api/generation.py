"""`/v1/chat/completions` and `/v1/completions`: read, understand, answer, record."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from guardrails.guard import JobRunner
from service import passthrough
from service.admission import Admission
from service.alignment.constraint_probe import ConstraintProbes
from service.alignment.strategy import Payload, Strategy, StreamingStrategy
from service.alignment.waiting import waiting
from service.audit import AuditLog, actor_of
from service.catalog import Catalog, Served
from service.experiments.assignment import Assignment
from service.experiments.live import Experiments
from service.experiments.shadows import nowhere
from service.generation import STREAMING, Generation, Kind
from service.http import Call, Receive, Scope, Send, Watch, header, parse_json, read_body
from service.limits import Limiter
from service.openai.errors import ApiError, BadRequest
from service.openai.types import ChatRequest, CompletionRequest
from service.openai.validation import explain
from service.outcomes import Outcomes
from service.records import Records
from service.release import Releasing, read_object, refuse
from service.report import Report
from service.request import Examined, Refusal, beside_engine, examine_input
from service.settings import Limits
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing
from service.transcript import Transcript

FORWARDED = (b"traceparent", b"tracestate")


class GenerationEndpoint:
    """One of the two, as a raw ASGI endpoint."""

    def __init__(
        self,
        kind: Kind,
        catalog: Catalog,
        runner: JobRunner,
        metrics: Metrics,
        limiter: Limiter,
        limits: Limits,
        audit: AuditLog,
        outcomes: Outcomes,
        tracing: Tracing | None,
        admission: Admission,
        experiments: Experiments,
        records: Records,
    ) -> None:
        self._kind: Kind = kind
        self._catalog = catalog
        self._runner = runner
        self._metrics = metrics
        self._limiter = limiter
        self._limits = limits
        self._audit = audit
        self._outcomes = outcomes
        self._tracing = tracing
        self._admission = admission
        self._experiments = experiments
        self._probes = ConstraintProbes()
        self._records = records
        self._adapter: TypeAdapter[Any] = TypeAdapter(ChatRequest if kind == "chat" else CompletionRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["keel"]
        body = await read_body(
            scope, receive, max_bytes=self._limits.max_body_bytes, timeout=self._limits.body_timeout_s
        )
        while self._catalog.held is not None:  # another swap may have begun before this one's end is noticed
            await self._catalog.held.wait()
        generation = self._understand(scope, call, body)
        try:
            with Watch(scope, receive):
                await self._live(generation, send)
        finally:
            generation.record(self._metrics)
            if call.caller is not None and call.caller.limited:
                await self._limiter.charge(call.caller, generation.usage.input + generation.usage.output)
            if generation.assignment is not None and call.state in ("finished", "blocked"):
                self._cast_shadows(generation, generation.assignment, body)

    async def _live(self, generation: Generation, send: Send) -> None:
        """From the first guard to the outcome."""
        call, served = generation.call, generation.served
        served.enter()
        self._outcomes.begin(generation)
        assignment = generation.assignment
        if served.spec.keeps_text or (assignment is not None and assignment.scorer is not None):
            generation.transcript = Transcript()
        trace = self._tracing.begin(generation) if self._tracing is not None else None
        try:
            await self._answer(generation, send)
        except asyncio.CancelledError:
            call.state = "aborted"  # by the client, or by the end of the gateway
            raise
        except ApiError as error:
            call.state = "blocked" if error.code == "content_filter" else "failed"
            call.error = error.code or error.type
            raise
        except Exception:
            call.state, call.error = "failed", "internal_error"
            raise
        finally:
            served.leave()
            self._outcomes.end(generation)
            self._records.end(generation)
            if assignment is not None and assignment.scorer is not None:
                self._experiments.scoring.offer(generation)
            if trace is not None:
                trace.finish(generation)

    def _understand(self, scope: Scope, call: Call, body: bytes) -> Generation:
        payload = parse_json(body)
        try:
            request = self._adapter.validate_python(payload)
        except ValidationError as error:
            raise explain(error) from None
        assignment = None
        if request.model in self._experiments.live:
            assignment = self._experiments.assign(request, call, self._kind)
        served = assignment.served if assignment else self._catalog.get(request.model, call.caller)
        call.stream = bool(request.stream)
        try:
            _check_policy(request, served)
            self._admission.check(served)
        except ApiError as error:
            if assignment is not None:
                refused = Generation(self._kind, call, served, request, payload, {}, assignment=assignment)
                self._note_refusal(refused, error)
            raise
        call.policy = served.name
        headers = {"x-request-id": _engines_id(call)}
        for name in FORWARDED:
            value = header(scope, name)
            if value is not None:
                headers[name.decode()] = value.decode("latin-1")
        return Generation(self._kind, call, served, request, payload, headers, assignment=assignment)

    def _note_refusal(self, generation: Generation, error: ApiError) -> None:
        """An arm that turns requests away fails them, or a ramp would go on while its callers get nothing."""
        generation.call.state, generation.call.error = "failed", error.code or error.type
        self._outcomes.begin(generation)
        self._outcomes.end(generation)

    def _cast_shadows(self, generation: Generation, assignment: Assignment, body: bytes) -> None:
        """Have other policies answer the same request, to nobody; the caller has had the reply."""
        for shadow in assignment.shadows:
            self._experiments.shadows.start(shadow, partial(self._shadow, generation, shadow, body))

    async def _shadow(self, generation: Generation, shadow: Assignment, body: bytes) -> str:
        """The copy's life; how it ended."""
        payload = {name: value for name, value in parse_json(body).items() if name not in STREAMING}
        request = self._adapter.validate_python(payload)
        _check_policy(request, shadow.served)
        self._admission.check(shadow.served)
        call = Call(f"shadow-{generation.call.id}"[:128])
        call.policy, call.caller = shadow.served.name, generation.call.caller
        headers = {**generation.upstream_headers, "x-request-id": _unique(call.id)}
        copy = Generation(self._kind, call, shadow.served, request, payload, headers, assignment=shadow)
        self._experiments.expose(shadow, stream=False, kind=self._kind)
        await self._live(copy, nowhere)
        return call.state

    async def _answer(self, generation: Generation, send: Send) -> None:
        served, stream = generation.served, generation.call.stream
        if served.constraints:
            await self._probes.require(served.target.engine, served.target.model, served.name)
        if not served.guarded and served.strategy is None:
            await (passthrough.stream if stream else passthrough.complete)(generation, send)
            return
        examined = Examined()
        if served.spec.model.mixed == "allow":
            generation.successor = partial(self._catalog.successor, served)
            examined.report.answered = generation.answered
        if generation.tally is not None:
            generation.tally.report = examined.report
        if generation.assignment is not None:
            examined.report.experiment = generation.assignment.label()
        if generation.transcript is not None:
            generation.transcript.examined = examined
        try:
            with self._admission.on_the_way(served):
                await examine_input(generation, examined, self._metrics)
            releasing = Releasing(generation, examined, self._runner, self._metrics, send)
            if served.strategy is not None:
                await self._align(served.strategy, generation, examined, releasing)
                return
            engine, path, headers = served.target.engine, generation.path, generation.upstream_headers
            body = generation.upstream_body()
            if stream:
                asking = engine.open_stream(path, body, headers)
                await releasing.stream(await beside_engine(generation, examined, self._metrics, asking))
            else:
                asked = engine.complete(path, body, headers)
                reply = await beside_engine(generation, examined, self._metrics, asked)
                await releasing.reply(read_object(reply.body))
        except Refusal:
            await refuse(generation, examined.report, send)
        finally:
            shadow = generation.assignment is not None and generation.assignment.shadow
            if examined.report.action.withholds and not shadow:  # a copy has withheld nothing from anybody
                self._record_block(generation, examined.report)

    def _record_block(self, generation: Generation, report: Report) -> None:
        call, served = generation.call, generation.served
        self._audit.record(
            f"guard.{report.action.name.lower()}",
            actor=actor_of(call.caller),
            subject=served.name,
            details={"request_id": call.id, "policy": served.policy.digest, **report.tally()},
        )

    async def _align(
        self, strategy: Strategy, generation: Generation, examined: Examined, releasing: Releasing
    ) -> None:
        """A reply that a strategy makes; who streams hears comments while it is made."""
        every = self._limits.comment_every_s
        if generation.call.stream and isinstance(strategy, StreamingStrategy):
            async with aclosing(strategy.blocks(generation, examined)) as chunks:
                first = beside_engine(generation, examined, self._metrics, _next(chunks))
                begun = await waiting(first, releasing.comment, every)
                await releasing.stream_chunks(_all(begun, chunks, generation.call))
            return
        work = beside_engine(generation, examined, self._metrics, strategy.answer(generation, examined))
        if not generation.call.stream:
            aligned = await work
            examined.report.summary.update(aligned.summary)
            await releasing.reply(aligned.payload)
            return
        aligned = await waiting(work, releasing.comment, every)
        examined.report.summary.update(aligned.summary)
        await releasing.stream_chunks(_alone(aligned.payload))


async def _next(chunks: AsyncGenerator[Payload, None]) -> Payload:
    return await anext(chunks)


async def _all(first: Payload, others: AsyncGenerator[Payload, None], call: Call) -> AsyncIterator[Payload]:
    """Both, and the time until each of `others` as the engine's."""
    yield first
    began = time.perf_counter()
    async for chunk in others:
        call.upstream_s += time.perf_counter() - began
        yield chunk
        began = time.perf_counter()


async def _alone(payload: Payload) -> AsyncIterator[Payload]:
    yield payload


def _engines_id(call: Call) -> str:
    """What the engine calls the request, and names its reply by: no two have the same, or feedback on one
    would be another's. A caller's own id may come twice, such as when the caller tries again."""
    return _unique(call.id) if call.received.get(b"x-request-id") == call.id.encode() else call.id


def _unique(name: str) -> str:
    return f"{name[:119]}-{secrets.token_hex(4)}"


def _check_policy(request: ChatRequest | CompletionRequest, served: Served) -> None:
    if (request.n or 1) > served.spec.max_n:
        raise BadRequest(f"the policy {served.name!r} gives at most {served.spec.max_n} choices", param="n")
    if request.stream and served.spec.streaming == "refuse":
        raise BadRequest(f"the policy {served.name!r} does not stream: ask without 'stream'", param="stream")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("'stream_options' is only for requests with 'stream': true", param="stream_options")
