"""OpenTelemetry traces of generations, off unless `tracing.endpoint` is set.

    chat POLICY                         the request, under the caller's `traceparent` where there is one
    ├─ guards input                     each guard is an event: what it did, how long it took
    ├─ rerank, revise                   with their summaries; what they ask the engine for is below them
    │  └─ chat MODEL                    one request to an engine, which is told its `traceparent`
    └─ guards output

Names are those of the GenAI semantic conventions, `keel.*` for the rest. No text of a prompt or a reply, no
exception's message and no key is in a span. Spans are sent by a thread of their own (OTLP over HTTP,
protobuf); where the receiver can't keep up they are dropped, never waited for.

While it is off there are no span objects, and no part of OpenTelemetry is loaded: a look at a context
variable is what is left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:  # loaded when tracing is on
    from collections.abc import Iterator

    from opentelemetry.trace import Span, SpanKind

    from guardrails.parts import GuardReport
    from service.alignment.strategy import Aligned
    from service.engine.event_stream import EventStream
    from service.generation import Generation

Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])
Value = str | bool | int | float | list[str]

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
MODEL = re.compile(rb'"model"(?<!\\"model")\s*:\s*"([^"\\]{1,200})"')
_active: ContextVar[Trace | None] = ContextVar("keel_trace", default=None)
_nothing: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Where spans are made and sent. Made once; loads OpenTelemetry."""

    def __init__(self, endpoint: str, sample_rate: float, headers: Mapping[str, str], version: str) -> None:
        """`endpoint` is the receiver's whole URL, such as `http://collector:4318/v1/traces`."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.kinds = SpanKind
        self.propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_rate)),
            resource=Resource.create({"service.name": "keel", "service.version": version}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=10)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("keel", version)

    def begin(self, generation: Generation) -> Root:
        """Begin a request's span; what is asked in its course is below it."""
        return Root(self, generation)

    def close(self) -> None:
        """Send what is left, and stop; blocks for some seconds at the most."""
        self._provider.shutdown()


class Trace:
    """A span under which others may be made."""

    __slots__ = ("span", "tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self.tracing = tracing
        self.span = span

    def child(self, name: str, kind: SpanKind | None = None) -> Trace:
        """A span below this one."""
        from opentelemetry.trace import set_span_in_context

        span = self.tracing.tracer.start_span(
            name, context=set_span_in_context(self.span), kind=kind or self.tracing.kinds.INTERNAL
        )
        return Trace(self.tracing, span)

    def set(self, **attributes: Value | None) -> None:
        """Attributes under `keel.`, but for those that there is nothing to say of."""
        for name, value in attributes.items():
            if value is not None:
                self.span.set_attribute(f"keel.{name}", value)

    def gen_ai(self, **attributes: Value | None) -> None:
        """Attributes of the conventions, by their names without `gen_ai.`; `__` stands for a dot."""
        for name, value in attributes.items():
            if value is not None:
                self.span.set_attribute(f"gen_ai.{name.replace('__', '.')}", value)

    def guards(self, reports: Iterable[GuardReport]) -> None:
        """What guards said, an event each."""
        for report in reports:
            if report.state != "skipped":
                event: dict[str, Value] = {
                    "keel.guard.name": report.guard,
                    "keel.guard.action": report.action.name.lower(),
                    "keel.guard.findings": len(report.findings),
                    "keel.guard.score": report.score,
                    "keel.guard.ms": report.ms,
                    "keel.guard.cached": report.cached,
                }
                if report.failure:
                    event["error.type"] = report.failure
                self.span.add_event("guard", event)

    def end(self, error: str | None = None) -> None:
        """End it; `error` is a type or a code, never a message."""
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self.span.set_attribute("error.type", error)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class Root(Trace):
    """A request's own span."""

    __slots__ = ("_token",)

    def __init__(self, tracing: Tracing, generation: Generation) -> None:
        call, served = generation.call, generation.served
        carrier = {
            name.decode(): call.received[name].decode("latin-1")
            for name in (b"traceparent", b"tracestate")
            if name in call.received
        }
        operation = OPERATIONS[generation.path]
        ago = round((time.perf_counter() - call.started) * 1e9)
        span = tracing.tracer.start_span(
            f"{operation} {served.name}",
            context=tracing.propagator.extract(carrier),
            kind=tracing.kinds.SERVER,
            start_time=time.time_ns() - ago,
        )
        super().__init__(tracing, span)
        request = generation.request
        self.gen_ai(
            operation__name=operation,
            provider__name="keel",
            request__model=served.name,
            request__temperature=request.temperature,
            request__max_tokens=request.max_tokens,
            request__choice__count=request.n if request.n and request.n > 1 else None,
            request__stream=call.stream,
        )
        self.set(
            request_id=call.id,
            policy_digest=served.policy.digest,
            checkpoint=served.target.checkpoint,
        )
        self._token: Token[Trace | None] = _active.set(self)

    def finish(self, generation: Generation) -> None:
        """What came of it."""
        _active.reset(self._token)
        call, usage = generation.call, generation.usage
        self.gen_ai(usage__input_tokens=usage.input or None, usage__output_tokens=usage.output or None)
        self.set(state=call.state, overhead_ms=round(call.overhead() * 1e3, 3))
        if generation.first_token_at is not None:
            self.gen_ai(response__time_to_first_chunk=generation.first_token_at - call.started)
        failed = call.state in ("failed", "aborted")
        self.end((call.error or call.state) if failed else None)


def active() -> Trace | None:
    """The span under which the caller works; None while nothing is traced."""
    trace = _active.get()
    return trace if trace is not None and trace.span.is_recording() else None


def span(name: str) -> AbstractContextManager[Trace | None]:
    """A span around a block; None, and no object made, while nothing is traced."""
    trace = active()
    return _nothing if trace is None else _around(trace, name)


@contextmanager
def _around(trace: Trace, name: str) -> Iterator[Trace]:
    made = trace.child(name)
    token = _active.set(made)
    error: str | None = None
    try:
        yield made
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        _active.reset(token)
        made.end(error)


def traced(name: str, tell: Callable[[Trace, Any], None]) -> Callable[[Method], Method]:
    """Put a span around a coroutine method, and `tell` it what came of it."""

    def decorate(method: Method) -> Method:
        @wraps(method)
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            with span(name) as made:
                result = await method(*arguments, **named)
                if made is not None:
                    tell(made, result)
                return result

        return cast(Method, wrapped)

    return decorate


def tell_summary(key: str) -> Callable[[Trace, Aligned], None]:
    """The numbers and names of an alignment summary."""

    def tell(trace: Trace, aligned: Aligned) -> None:
        summary = aligned.summary.get(key, {})
        trace.set(
            **{
                f"{key}.{name}": value
                for name, value in summary.items()
                if isinstance(value, int | float | str)
            }
        )
        outcomes = [str(one["outcome"]) for one in summary.get("choices", ()) if "outcome" in one]
        if outcomes:
            trace.set(**{f"{key}.outcomes": outcomes})

    return tell


class EngineSpan:
    """One request to an engine."""

    def __init__(self, trace: Trace, path: str, body: bytes | None) -> None:
        operation = OPERATIONS.get(path)
        found = MODEL.search(body) if body else None
        model = found[1].decode("utf-8", "replace") if found else None
        self._span = trace.child(
            " ".join(filter(None, (operation or path, model))), trace.tracing.kinds.CLIENT
        )
        self._span.gen_ai(operation__name=operation, provider__name="vllm", request__model=model)
        self._span.set(path=path)

    def headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        """These, under which the engine goes on with the trace."""
        from opentelemetry.trace import set_span_in_context

        out = {name: value for name, value in (headers or {}).items() if name != "tracestate"}
        self._span.tracing.propagator.inject(out, context=set_span_in_context(self._span.span))
        return out

    def failed(self, error: BaseException) -> None:
        """It did not answer."""
        self._span.end(type(error).__name__)

    def answered(self) -> None:
        """The whole reply is here."""
        self._span.end()

    def opened(self, stream: EventStream) -> None:
        """A stream has begun; the span ends when the stream does."""
        self._span.span.add_event("first event")
        before = stream.on_end
        if before is None:  # it has ended already
            self._span.end()
            return

        def ended(error: Any, aborted: bool) -> None:
            self._span.set(aborted=aborted or None)
            self._span.end(type(error).__name__ if error is not None else None)
            before(error, aborted)

        stream.on_end = ended


def engine_span(path: str, body: bytes | None) -> EngineSpan | None:
    """The span of a request to an engine; None while nothing is traced."""
    trace = active()
    return None if trace is None else EngineSpan(trace, path, body)
