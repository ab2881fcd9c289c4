"""The output side of a guarded request: what the engine says goes through the guards, and then to the client.

A whole reply takes the same way as a stream, in one chunk; so the two can't differ.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from enum import Enum
from typing import Any

import orjson

from guardrails.guard import JobRunner
from service.engine.client import Reply
from service.engine.errors import UpstreamError
from service.engine.event_stream import EventStream
from service.generation import Generation
from service.http import JSON_TYPE, Call, Send, send_response
from service.moderation import Moderation
from service.openai import sse
from service.openai.channels import ChatShape, ChoiceState, CompletionShape, Key, Piece, Shape
from service.openai.errors import ApiError, UpstreamFailed, from_engine
from service.report import Report
from service.request import Examined
from service.telemetry.metrics import Metrics

SHAPES: dict[str, Shape] = {"chat": ChatShape(), "text_completion": CompletionShape()}


class End(Enum):
    """The end of a stream."""

    END = "end"


END = End.END
KEPT = ("id", "created", "system_fingerprint", "service_tier")


class Releasing:
    """One guarded reply on its way out."""

    def __init__(
        self, generation: Generation, examined: Examined, runner: JobRunner, metrics: Metrics, send: Send
    ) -> None:
        self._generation = generation
        self._call = generation.call
        self._served = generation.served
        self._report = examined.report
        self._metrics = metrics
        self._send = send
        self._shape = SHAPES[generation.kind]
        self._states: dict[int, ChoiceState] = {}
        self._base: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._open = generation.choices
        self._pieces_seen = 0
        self._held = metrics.held_back.labels(self._served.name)
        self._moderation = Moderation(
            self._served.guards.output,
            runner,
            examined.report,
            metrics,
            vault=examined.vault,
            prompt=examined.prompt,
            tools=generation.payload.get("tools") or (),
        )

    # A whole reply

    async def reply(self, reply: Reply) -> None:
        """Moderate and send a whole reply."""
        payload = _object(reply.body)
        self._generation.usage.read(payload.get("usage"))
        self._call.state = "releasing"
        try:
            choices = [await self._choice(choice) for choice in payload.get("choices") or ()]
        finally:
            await self._moderation.cancel()
            self._moderation.conclude()
        payload["choices"] = choices
        payload["model"] = self._served.name
        rendered = self._report.render(self._served)
        if rendered is not None:
            payload["guardrails"] = rendered
        body = orjson.dumps(payload)
        await send_response(self._send, 200, body, (JSON_TYPE, *self._generation.headers()))
        self._conclude()

    async def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        index = choice.get("index", 0)
        state = ChoiceState(index)
        out: list[Piece] = []
        pieces = self._shape.take_apart(state, choice)
        for number, piece in enumerate(pieces):
            out += self._moderation.feed(piece, _tool_name(state, piece.key))
            if number + 1 == len(pieces) or pieces[number + 1].key != piece.key:
                out += self._moderation.finish(index, piece.key)
                out += await self._answers()
        finish = state.finish or {"finish_reason": None}
        if self._moderation.withheld(index):
            finish = {"finish_reason": "content_filter"}
        return {"index": index, **self._shape.message(state, out), **finish}

    async def _answers(self) -> list[Piece]:
        """Wait for all jobs, and for those that their answers give rise to."""
        out: list[Piece] = []
        while self._moderation.jobs:
            await asyncio.wait(self._moderation.jobs, return_when=asyncio.FIRST_COMPLETED)
            out += self._moderation.collect()
        return out

    # A stream

    async def stream(self, events: EventStream) -> None:
        """Moderate and send a stream. From here on an error is an event too."""
        call = self._call
        headers = [*sse.HEADERS, *self._generation.headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        call.state = "releasing"
        try:
            await self._relay(events)
        except (ApiError, UpstreamError) as error:
            failure = error if isinstance(error, ApiError) else from_engine(error)
            call.error, call.state = failure.code or failure.type, "failed"
            await self._send(body_message(sse.raw_event(failure.body()) + sse.DONE, more=False))
            return
        finally:
            events.close()
            await self._moderation.cancel()
            self._moderation.conclude()
        await self._finish_stream()

    async def _relay(self, events: EventStream) -> None:
        reader = Reader(events, self._call)
        try:
            while self._open > 0:
                data = await reader.next(self._moderation.jobs)
                freed = self._moderation.collect() if self._moderation.jobs else []
                if isinstance(data, bytes):
                    freed += self._take(data)
                await self._flush(freed)
                if data is END and self._open > 0 and not self._moderation.jobs:
                    raise UpstreamFailed("the engine's reply ended before all of its choices did")
            if all(state.finished() for state in self._states.values()):
                await self._read_on(reader)
        finally:
            await reader.stop()

    async def _read_on(self, reader: Reader) -> None:
        """What follows the last choice: the usage, if anything."""
        while isinstance(data := await reader.next(set()), bytes):
            self._take(data)

    def _take(self, data: bytes) -> list[Piece]:
        """One chunk of the engine's."""
        chunk = _object(data)
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        self._base.update((name, chunk[name]) for name in KEPT if name in chunk)
        released: list[Piece] = []
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            state = self._states.get(index)
            if state is None:
                state = self._states[index] = ChoiceState(index)
            if state.closed or state.finished():
                continue
            for piece in self._shape.take_apart(state, choice):
                self._pieces_seen += 1
                if piece.key.channel != "reasoning":
                    # What a reader sees last of the reasoning should not wait for the end of the reply.
                    released += self._moderation.finish(index, Key("reasoning"))
                released += self._moderation.feed(piece, _tool_name(state, piece.key))
            if state.finished():
                released += self._moderation.finish(index)
        self._held.observe(self._moderation.held)
        return released

    async def _flush(self, released: Sequence[Piece]) -> None:
        """Send what is free, and end the choices that are complete or withheld."""
        for state in self._states.values():
            if state.closed:
                continue
            own = [piece for piece in released if piece.choice == state.index]
            if own or not (state.role_sent or state.role is None):
                if own:
                    self._generation.note_first_token()
                await self._chunk(state, {**self._shape.delta(state, own), "finish_reason": None})
            withheld = self._moderation.withheld(state.index)
            if withheld or (state.finished() and self._moderation.settled(state.index)):
                state.closed = True
                self._open -= 1
                finish = {"finish_reason": "content_filter"} if withheld else state.finish or {}
                await self._chunk(state, {**self._shape.delta(state, ()), **finish}, last=self._open == 0)

    async def _chunk(self, state: ChoiceState, choice: dict[str, Any], last: bool = False) -> None:
        chunk = {**self._head(), "choices": [{"index": state.index, **choice}]}
        if last:
            self._moderation.conclude()
            rendered = self._report.render(self._served)
            if rendered is not None:
                chunk["guardrails"] = rendered
        await self._send(body_message(sse.event(chunk)))

    async def _finish_stream(self) -> None:
        usage = self._usage or self._estimate()
        self._generation.usage.read(usage)
        tail = sse.DONE
        if self._generation.wants_usage:
            tail = sse.event({**self._head(), "choices": [], "usage": usage}) + tail
        self._conclude()
        await self._send(body_message(tail, more=False))

    def _estimate(self) -> dict[str, int]:
        """Usage where the engine was cut off before it told: a token a chunk, the prompt's unknown."""
        return {"prompt_tokens": 0, "completion_tokens": self._pieces_seen, "total_tokens": self._pieces_seen}

    def _head(self) -> dict[str, Any]:
        return {**self._base, "object": self._shape.object, "model": self._served.name}

    def _conclude(self) -> None:
        status = self._report.status
        self._call.state = "blocked" if status == "blocked" else "finished"
        self._metrics.verdicts.labels(self._served.name, "output", status).inc()


class Reader:
    """Reads a stream, and stops waiting for it when a job is answered."""

    def __init__(self, events: EventStream, call: Call) -> None:
        self._events = events
        self._call = call
        self._reading: asyncio.Task[bytes | End] | None = None

    async def next(self, jobs: set[asyncio.Task[Any]]) -> bytes | End | None:
        """The next event's data, `END`, or None when a job was answered first. Raises `UpstreamError`."""
        began = time.perf_counter()
        if self._reading is None and not jobs:
            data = await self._read()
            self._call.upstream_s += time.perf_counter() - began
            return data
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.wait({self._reading, *jobs}, return_when=asyncio.FIRST_COMPLETED)
        if not self._reading.done():
            return None
        self._call.upstream_s += time.perf_counter() - began
        reading = self._reading
        if reading.exception() is not None or reading.result() is not END:
            self._reading = None
            return reading.result()
        # At the end there is nothing left to wait for but the jobs.
        if jobs and not any(job.done() for job in jobs):
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        return END

    async def stop(self) -> None:
        """Stop waiting."""
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> bytes | End:
        return await anext(self._events, END)


def body_message(body: bytes, more: bool = True) -> dict[str, Any]:
    """ASGI's message for a piece of the body."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def _tool_name(state: ChoiceState, key: Key) -> str | None:
    if key.channel != "tool_arguments":
        return None
    name: str | None = state.calls[key.number]["function"].get("name")
    return name


def _object(body: bytes) -> dict[str, Any]:
    """An engine's JSON object. What can't be read can't be examined: raises `UpstreamFailed`."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UpstreamFailed("the engine's reply could not be understood")
    return parsed


async def refuse(generation: Generation, examined_report: Report, send: Send) -> None:
    """Answer a blocked request with the policy's refusal, in the form of an ordinary reply."""
    served, call, shape = generation.served, generation.call, SHAPES[generation.kind]
    head = {
        "id": shape.id_prefix + secrets.token_hex(12),
        "object": shape.object if call.stream else shape.object.removesuffix(".chunk"),
        "created": int(time.time()),
        "model": served.name,
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    rendered = examined_report.render(served)
    extra = {"guardrails": rendered} if rendered is not None else {}
    text, whole = shape.text(served.spec.refusal), shape.whole(served.spec.refusal)
    call.state = "blocked"
    end = {"finish_reason": "content_filter"}
    if not call.stream:
        choices = [{"index": i, **whole, **end} for i in range(generation.choices)]
        body = orjson.dumps({**head, "choices": choices, "usage": usage, **extra})
        await send_response(send, 200, body, (JSON_TYPE, *generation.headers()))
        return
    out = [
        sse.event({**head, "choices": [{"index": i, **text, "finish_reason": None}]})
        for i in range(generation.choices)
    ]
    for i in range(generation.choices):
        last = extra if i + 1 == generation.choices else {}
        out.append(sse.event({**head, "choices": [{"index": i, **shape.text(""), **end}], **last}))
    if generation.wants_usage:
        out.append(sse.event({**head, "choices": [], "usage": usage}))
    headers = [*sse.HEADERS, *generation.headers()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(body_message(b"".join([*out, sse.DONE]), more=False))
