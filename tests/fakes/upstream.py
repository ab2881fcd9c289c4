"""An OpenAI-compatible upstream that misbehaves on demand, over real HTTP on a real socket.

    async with FakeUpstream() as upstream:
        upstream.script(status(503, retry_after=1), stream(["Hel", "lo"], die_after=1))
        ...requests to upstream.base_url + "/v1/chat/completions"...
        assert upstream.requests[0].json["model"] == "m"

Scripted behaviours are used up one per request, in order; after them `upstream.default` answers, which is
`well_behaved`: JSON or SSE, whichever the request's `stream` field asks for. A behaviour is any
`async def (exchange: Exchange) -> None`, so a test can write its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

Behaviour = Callable[["Exchange"], Awaitable[None]]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived; header names are lower-cased."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request and the means to answer it, or to fail to."""

    def __init__(
        self,
        upstream: FakeUpstream,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.upstream = upstream
        self.request = request
        self.keep_alive = True
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write bytes to the socket as they are. Raises `ConnectionError` once the client is gone."""
        if self._writer.is_closing():  # uvloop would raise a RuntimeError, asyncio now and then nothing
            raise ConnectionResetError("the client went away")
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send the status line and headers."""
        lines = [f"HTTP/1.1 {status} Fake", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def sse_head(self) -> None:
        """The headers of a chunked event stream."""
        await self.head(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}
        )

    async def chunk(self, data: bytes) -> None:
        """One HTTP chunk."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The last HTTP chunk."""
        await self.send(b"0\r\n\r\n")

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole response with a content length."""
        await self.head(
            status,
            {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})},
        )
        await self.send(body)

    def reset(self) -> None:
        """Cut the connection with a TCP RST."""
        self.keep_alive = False
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """Close the connection with a FIN, whatever was left to send."""
        self.keep_alive = False

    async def stall(self) -> None:
        """Do nothing until the client goes away; `upstream.aborted` tells when it did."""
        self.keep_alive = False
        while await self._reader.read(65536):
            pass
        self.upstream.note_abort()


class FakeUpstream:
    """The server. Listens on a free loopback port while its context is open."""

    def __init__(self, default: Behaviour | None = None) -> None:
        self.default: Behaviour = default or well_behaved()
        self.requests: list[Request] = []
        self.connections = 0  # opened so far
        self.open_connections = 0
        self.aborted = asyncio.Event()  # a client went away in mid-answer
        self.aborts = 0
        self.port = 0
        self._script: list[Behaviour] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, *behaviours: Behaviour) -> None:
        """Use these for the next requests, one each."""
        self._script.extend(behaviours)

    def note_abort(self) -> None:
        self.aborts += 1
        self.aborted.set()

    async def start(self, port: int = 0) -> None:
        """Listen; `port` may name the port of an earlier life."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open_connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                exchange = Exchange(self, request, reader, writer)
                behaviour = self._script.pop(0) if self._script else self.default
                await behaviour(exchange)
                if not exchange.keep_alive:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.note_abort()
        except asyncio.CancelledError:
            pass  # stop() cuts what is left
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ", 2)
    headers = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


# Contents


def token(text: str, finish_reason: str | None = None, index: int = 0) -> bytes:
    """One SSE event with one chat completion chunk."""
    return event(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "fake",
            "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish_reason}],
        }
    )


def event(payload: Any) -> bytes:
    """One SSE event as vLLM writes it."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def completion(text: str) -> dict[str, Any]:
    """A whole chat completion."""
    words = len(text.split())
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": words, "total_tokens": words + 1},
    }


def every(size: int) -> Callable[[bytes], Iterable[bytes]]:
    """A way of cutting: pieces of `size` bytes, also inside a UTF-8 character."""
    return lambda data: (data[i : i + size] for i in range(0, len(data), size))


def at(*offsets: int) -> Callable[[bytes], Iterable[bytes]]:
    """A way of cutting: at these byte offsets of the stream."""
    return lambda data: [
        data[i:j]
        for i, j in itertools.pairwise(sorted({0, len(data), *(o for o in offsets if o < len(data))}))
    ]


# Behaviours


def well_behaved(text: str = "Hello there, friend.", delay: float = 0.0) -> Behaviour:
    """A right answer: SSE where the request says `stream`, JSON otherwise."""
    words = [word + " " for word in text.split(" ")]

    async def behave(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            await exchange.reply(200, b'{"object":"list","data":[]}')
        elif exchange.request.json.get("stream"):
            await stream(words, delay=delay)(exchange)
        else:
            await asyncio.sleep(delay)
            await answer(completion(text))(exchange)

    return behave


def answer(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    """JSON, whatever was asked."""

    async def behave(exchange: Exchange) -> None:
        await exchange.reply(status, json.dumps(payload).encode(), headers)

    return behave


def status(code: int, message: str = "no", retry_after: float | None = None) -> Behaviour:
    """An OpenAI error object under this status."""
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    return answer({"error": {"message": message, "type": "fake", "param": None, "code": code}}, code, headers)


def stream(
    words: Sequence[str],
    *,
    delay: float = 0.0,
    stall_after: int | None = None,
    die_after: int | None = None,
    hang_up_after: int | None = None,
    cut: Callable[[bytes], Iterable[bytes]] | None = None,
    done: bool = True,
) -> Behaviour:
    """A token stream of `words`, `delay` seconds apart.

    After so many words it may stall, die (RST) or hang up (FIN). `cut` says how its bytes are cut into
    packets; by default one packet is one event. Without `done` the closing `[DONE]` is missing.
    """
    stops = [n for n in (stall_after, die_after, hang_up_after) if n is not None]
    last = min(stops, default=len(words))

    async def behave(exchange: Exchange) -> None:
        events = [token(word) for word in words[:last]]
        if not stops:
            events.append(token("", "stop"))
            events += [DONE] if done else []
        await exchange.sse_head()
        for piece in cut(b"".join(events)) if cut else events:
            await exchange.chunk(piece)
            await asyncio.sleep(delay)
        if stall_after is not None:
            await exchange.stall()
        elif die_after is not None:
            await asyncio.sleep(0.02)  # a RST overtakes what the client has not read yet
            exchange.reset()
        elif hang_up_after is not None:
            exchange.hang_up()
        else:
            await exchange.end()

    return behave


def raw_stream(data: bytes, cut: Callable[[bytes], Iterable[bytes]] | None = None) -> Behaviour:
    """An event stream of exactly these bytes: malformed SSE, comments, CRLF, a BOM, anything."""

    async def behave(exchange: Exchange) -> None:
        await exchange.sse_head()
        for piece in cut(data) if cut else [data]:
            await exchange.chunk(piece)
            await asyncio.sleep(0)
        await exchange.end()

    return behave


def raw_bytes(data: bytes) -> Behaviour:
    """Exactly these bytes in place of a response, then a FIN: not HTTP, a cut header, a short body."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.hang_up()

    return behave


def stall_before_headers() -> Behaviour:
    """Accept the request and never answer."""
    return Exchange.stall


def stall_after_headers() -> Behaviour:
    """Send the headers of a stream, then nothing."""

    async def behave(exchange: Exchange) -> None:
        await exchange.sse_head()
        await exchange.stall()

    return behave


def reset_at_once() -> Behaviour:
    """RST before the first byte."""

    async def behave(exchange: Exchange) -> None:
        exchange.reset()

    return behave


def dribble(data: bytes, delay: float = 0.02) -> Behaviour:
    """Slow loris: a stream's bytes, one by one, for ever slow."""

    async def behave(exchange: Exchange) -> None:
        await exchange.sse_head()
        for i in range(len(data)):
            await exchange.chunk(data[i : i + 1])
            await asyncio.sleep(delay)
        await exchange.end()

    return behave
