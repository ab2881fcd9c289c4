"""The output side of a guarded request: what the engine says goes through the guards, and then to the client.

A whole reply takes the same way as a stream, in one batch; so the two can't differ.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from guardrails.guard import Context, JobRunner
from guardrails.masking import Unmasker
from guardrails.moderate import ChannelKey, ChoiceEnd, ChoiceEnded, Delta, Piece, moderate
from guardrails.stream import Moderator
from service.conversation import estimated_prompt_tokens
from service.engine.errors import UpstreamError
from service.engine.event_stream import EventStream
from service.generation import Generation
from service.http import JSON_TYPE, Send, send_response
from service.openai import sse
from service.openai.channels import ChatShape, ChoiceState, CompletionShape, Shape
from service.openai.errors import UpstreamFailed, from_engine
from service.report import Report, count, count_scores, count_times
from service.request import Examined
from service.telemetry.metrics import Metrics, child
from service.telemetry.tracing import Trace, active

SHAPES: dict[str, Shape] = {"chat": ChatShape(), "text_completion": CompletionShape()}
# What passes of a reply beside its choices; nobody has examined the rest. The prompt is the caller's own.
KEPT = ("id", "created", "system_fingerprint", "service_tier")
WHOLE = (*KEPT, "object", "usage", "prompt_logprobs", "prompt_token_ids")


class Releasing:
    """One guarded reply on its way out."""

    def __init__(
        self, generation: Generation, examined: Examined, runner: JobRunner, metrics: Metrics, send: Send
    ) -> None:
        self._generation = generation
        self._call = generation.call
        self._served = generation.served
        self._examined = examined
        self._report = examined.report
        self._runner = runner
        self._metrics = metrics
        self._held = child(metrics.held_back, self._served.name)
        self._send = send
        self._tally = generation.tally
        self._transcript = generation.transcript
        self._shape = SHAPES[generation.kind]
        self._states: dict[int, ChoiceState] = {}
        self._moderators: dict[ChannelKey, Moderator] = {}
        self._unmaskers: dict[ChannelKey, Unmasker] = {}
        self._base: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._open = generation.choices
        self._deltas_seen = 0
        self._span: Trace | None = None

    async def reply(self, payload: dict[str, Any]) -> None:
        """Moderate and send a whole reply, a completion object."""
        self._generation.usage.read(payload.get("usage"))
        self._call.state = "releasing"
        pieces: dict[int, list[Piece]] = {}
        endings: dict[int, dict[str, Any]] = {}

        async def whole() -> AsyncIterator[Sequence[Delta | ChoiceEnd]]:
            yield self._take_apart(payload)

        async for item in self._moderated(whole()):
            if isinstance(item, Piece):
                pieces.setdefault(item.key.choice, []).append(item)
            else:
                endings[item.choice] = self._ending(item)
        self._conclude()
        choices = [
            {
                "index": index,
                **self._shape.message(state, pieces.get(index, ()), endings[index] is state.finish),
                **endings[index],
            }
            for index, state in self._states.items()
        ]
        kept = {name: payload[name] for name in WHOLE if name in payload}
        if self._tally is not None:
            self._tally.completion_id = str(payload.get("id", ""))
            self._tally.characters += sum(len(piece.text) for group in pieces.values() for piece in group)
        body = orjson.dumps({**kept, "model": self._generation.shown, "choices": choices, **self._told()})
        await send_response(self._send, 200, body, (JSON_TYPE, *self._generation.headers()))

    async def stream(self, events: EventStream) -> None:
        """Moderate and send an engine's stream."""
        async with events:
            await self._stream(self._read(events))

    async def stream_chunks(self, chunks: AsyncIterator[dict[str, Any]]) -> None:
        """Moderate and send chunks in the engine's shape; one may be a whole reply."""
        await self._stream(self._read_chunks(chunks))

    async def comment(self, comment: bytes) -> None:
        """Send a comment of the event stream, before anything else of it."""
        await self._start_stream()
        await self._send(body_message(comment))

    async def _start_stream(self) -> None:
        if self._call.status == 0:
            headers = [*sse.HEADERS, *self._generation.headers()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _stream(self, deltas: AsyncIterator[Sequence[Delta | ChoiceEnd]]) -> None:
        await self._start_stream()
        self._call.state = "releasing"
        whole = self._served.spec.streaming == "buffer"
        held: dict[int, list[Piece]] = {}
        try:
            async for item in self._moderated(deltas):
                if isinstance(item, ChoiceEnded):
                    for piece in held.pop(item.choice, ()):
                        await self._send_text(piece)
                    await self._send_ending(item)
                elif whole:
                    held.setdefault(item.key.choice, []).append(item)
                else:
                    await self._send_text(item)
            if self._open > 0:
                raise UpstreamFailed("the engine's reply ended before all of its choices did")
        except UpstreamError as error:
            raise from_engine(error) from error
        usage = self._usage or self._estimate()
        self._generation.usage.read(usage)
        tail = sse.DONE
        if self._generation.wants_usage:
            tail = sse.event({**self._head(), "choices": [], "usage": usage}) + tail
        await self._send(body_message(tail, more=False))

    # Engine → guards

    async def _read(self, events: EventStream) -> AsyncIterator[Sequence[Delta | ChoiceEnd]]:
        began = time.perf_counter()
        async for data in events:
            self._call.upstream_s += time.perf_counter() - began
            yield self._take_chunk(read_object(data))
            began = time.perf_counter()
        self._call.upstream_s += time.perf_counter() - began

    async def _read_chunks(
        self, chunks: AsyncIterator[dict[str, Any]]
    ) -> AsyncIterator[Sequence[Delta | ChoiceEnd]]:
        async for chunk in chunks:
            yield self._take_chunk(chunk)

    def _take_chunk(self, chunk: dict[str, Any]) -> list[Delta | ChoiceEnd]:
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        self._base.update((name, chunk[name]) for name in KEPT if name in chunk)
        if self._tally is not None:
            self._tally.completion_id = str(self._base.get("id", ""))
        return self._take_apart(chunk)

    def _take_apart(self, payload: dict[str, Any]) -> list[Delta | ChoiceEnd]:
        """What the guards are to see of a chunk, or of a whole reply."""
        out: list[Delta | ChoiceEnd] = []
        for choice in payload.get("choices") or ():
            index = choice.get("index", 0)
            state = self._states.get(index)
            if state is None:
                state = self._states[index] = ChoiceState(index)
            if state.finish is None:
                fresh = self._shape.take_apart(state, choice)
                out += fresh
                if self._transcript is not None:
                    for delta in fresh:
                        self._transcript.add_said(delta.key, delta.text)
            if state.finish is not None:
                out.append(ChoiceEnd(index, state.finish))
        self._deltas_seen += len(out)
        return out

    async def _moderated(
        self, deltas: AsyncIterator[Sequence[Delta | ChoiceEnd]]
    ) -> AsyncIterator[Piece | ChoiceEnded]:
        """What may go out, with what was masked put back. What was found is recorded at the end."""
        trace = active()
        if trace is not None:
            self._span = trace.child("guards output")
        batches = moderate(deltas, self._open_channel, self._runner, choices=self._open)
        try:
            async with aclosing(batches):
                async for batch in batches:
                    for item in batch:
                        if isinstance(item, ChoiceEnded):
                            for piece in self._unmask_rests(item):
                                yield piece
                            yield item
                            continue
                        if self._transcript is not None:  # before what was masked is put back
                            self._transcript.add_released(item.key, item.text)
                        if (shown := self._unmask(item)) is not None:
                            yield shown
                    self._held.observe(sum(moderator.held for moderator in self._moderators.values()))
        finally:
            self._conclude()
            if self._span is not None:
                self._span.end()

    def _open_channel(self, key: ChannelKey) -> Moderator:
        tool_name = None
        if key.tool_call is not None:
            tool_name = self._states[key.choice].tool_name(key.tool_call)
        tools = self._generation.payload.get("tools") or ()
        examined = self._examined
        context = Context(
            "output", "assistant", key.channel, examined.prompt, tool_name, tools, examined.turns
        )
        moderator = self._moderators[key] = Moderator(self._served.guards.output, context)
        if self._examined.vault:
            in_json = key.channel == "tool_arguments"
            self._unmaskers[key] = Unmasker(self._examined.vault, json_strings=in_json)
        return moderator

    def _unmask(self, piece: Piece) -> Piece | None:
        unmasker = self._unmaskers.get(piece.key)
        if unmasker is None:
            return piece
        text = unmasker.feed(piece.text)
        if text == piece.text:
            return piece
        # Log probabilities are those of the placeholder, not of what stands in its place.
        return Piece(piece.key, text) if text else None

    def _unmask_rests(self, end: ChoiceEnded) -> list[Piece]:
        rests = [
            (key, unmasker.feed("", final=True))
            for key, unmasker in self._unmaskers.items()
            if key.choice == end.choice
        ]
        return [Piece(key, text) for key, text in rests if text]

    # Guards → client

    async def _send_text(self, piece: Piece) -> None:
        self._generation.note_first_token()
        if self._tally is not None:
            self._tally.characters += len(piece.text)
        state = self._states[piece.key.choice]
        await self._send_choice(state, {**self._shape.delta(state, (piece,)), "finish_reason": None})

    async def _send_ending(self, end: ChoiceEnded) -> None:
        state = self._states[end.choice]
        ending = self._ending(end)
        self._open -= 1
        extra: dict[str, Any] = {}
        if self._open == 0:
            self._conclude()
            extra = self._told()
        calls = self._shape.unsent_calls(state) if end.withheld is None else ()
        await self._send_choice(state, {**self._shape.delta(state, calls), **ending}, extra)

    async def _send_choice(
        self, state: ChoiceState, choice: dict[str, Any], extra: dict[str, Any] | None = None
    ) -> None:
        chunk = {**self._head(), "choices": [{"index": state.index, **choice}], **(extra or {})}
        await self._send(body_message(sse.event(chunk)))

    def _ending(self, end: ChoiceEnded) -> dict[str, Any]:
        if end.withheld is not None:
            return {"finish_reason": "content_filter"}
        if end.reason is None:
            raise UpstreamFailed("the engine's reply ended before all of its choices did")
        reason: dict[str, Any] = end.reason
        return reason

    def _head(self) -> dict[str, Any]:
        return {**self._base, "object": self._shape.object, "model": self._generation.shown}

    def _told(self) -> dict[str, Any]:
        rendered = self._report.render(self._served)
        return {} if rendered is None else {"guardrails": rendered}

    def _estimate(self) -> dict[str, Any]:
        """Usage where the engine was cut off before it told: a token a chunk, the prompt's by its size."""
        chat = self._generation.kind == "chat"
        prompt, said = estimated_prompt_tokens(self._generation.payload, chat=chat), self._deltas_seen
        counts = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
        return {**counts, "estimated": True}

    def _conclude(self) -> None:
        """Bring what was found into the report and the metrics, once."""
        for key, moderator in self._moderators.items():
            verdict, reports = moderator.verdict, moderator.reports()
            self._report.add_output(key.choice, key.channel, verdict, reports)
            count(self._metrics, "output", verdict, self._call)
            count_times(self._metrics, "output", reports)
            count_scores(self._metrics, "output", self._served.name, reports)
            if self._span is not None:
                self._span.guards(reports)
        self._moderators.clear()
        if self._call.state != "releasing":
            return
        status = self._report.status
        self._call.state = "blocked" if status == "blocked" else "finished"
        child(self._metrics.verdicts, self._served.name, "output", status).inc()


def body_message(body: bytes, more: bool = True) -> dict[str, Any]:
    """ASGI's message for a piece of the body."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def read_object(body: bytes) -> dict[str, Any]:
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
        "model": generation.shown,
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    rendered = examined_report.render(served)
    extra = {"guardrails": rendered} if rendered is not None else {}
    if generation.tally is not None:
        generation.tally.completion_id = str(head["id"])
        generation.tally.characters = len(served.spec.refusal) * generation.choices
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
    if call.status == 0:  # else the stream has begun, with comments
        headers = [*sse.HEADERS, *generation.headers()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(body_message(b"".join([*out, sse.DONE]), more=False))
