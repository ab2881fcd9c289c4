"""Many slow streams at once: how far behind the upstream a moderated stream runs.

The upstream and the callers share one process, so that one clock times both ends: the upstream notes when
it sent each token, the caller notes when the token's text arrived. A token is a word with its leading
space, as language models make them, so a guard that must see a word's end can release it one token later.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
from dataclasses import dataclass, field

import aiohttp

_OK = b"HTTP/1.1 200 OK\r\n"
_WORD = re.compile(r"w(\d{4})")


@dataclass
class Clock:
    """When each stream's tokens were sent: stream id to times in seconds."""

    sent: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamFigures:
    """Over all chunks of all streams; milliseconds, and tokens behind the upstream."""

    streams: int
    chunks: int
    added_p50_ms: float
    added_p99_ms: float
    lag_first: int
    lag_p99: int


def _frame(payload: bytes) -> bytes:
    data = b"data: " + payload + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _token(stream: str, text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    chunk = {
        "id": stream,
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mock",
        "choices": [choice],
    }
    return _frame(json.dumps(chunk).encode())


class PacedUpstream:
    """An OpenAI-compatible upstream that sends `tokens` tokens, one every `interval` seconds."""

    def __init__(self, clock: Clock, *, tokens: int, interval: float) -> None:
        self._clock = clock
        self._tokens = tokens
        self._interval = interval
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                await self._answer(head, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if not head.startswith(b"post"):
            writer.write(_OK + b'content-type: application/json\r\ncontent-length: 12\r\n\r\n{"data": []}')
            return
        stream = json.loads(body)["messages"][-1]["content"]
        times = self._clock.sent.setdefault(stream, [])
        writer.write(_OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        loop = asyncio.get_running_loop()
        start = loop.time()
        for i in range(self._tokens):
            await asyncio.sleep(max(0.0, start + i * self._interval - loop.time()))
            writer.write(_token(stream, f" w{i:04d}"))
            times.append(loop.time())
        writer.write(_token(stream, "", "stop") + _frame(b"[DONE]") + b"0\r\n\r\n")
        await writer.drain()


async def _follow(
    session: aiohttp.ClientSession, url: str, model: str, stream: str, clock: Clock
) -> list[tuple[float, int]]:
    """One caller: per arrival of new words, seconds since the last token was sent, and tokens behind."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[float, int]] = []
    newest = -1
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": stream}]}
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        text = ""
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            now = loop.time()
            choices = json.loads(line[6:])["choices"]
            text += (choices[0]["delta"].get("content") or "") if choices else ""
            words = _WORD.findall(text)
            if words and int(words[-1]) > newest:
                newest = int(words[-1])
                sent = clock.sent[stream]
                seen.append((now - sent[-1], len(sent) - 1 - newest))
    return seen


async def follow_all(
    url: str, model: str, clock: Clock, *, streams: int, tag: str, interval: float
) -> StreamFigures:
    """`streams` callers at once, their starts spread over one token's interval."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(i: int) -> list[tuple[float, int]]:
            await asyncio.sleep(interval * i / streams)
            return await _follow(session, url, model, f"{tag}-{i}", clock)

        runs = await asyncio.gather(*(one(i) for i in range(streams)))
    flat = sorted(delay for run in runs for delay, _ in run)
    lags = sorted(lag for run in runs for _, lag in run)
    if not flat:
        raise RuntimeError(f"no text came back from {url}")
    return StreamFigures(
        streams=streams,
        chunks=len(flat),
        added_p50_ms=statistics.median(flat) * 1e3,
        added_p99_ms=flat[int(len(flat) * 0.99)] * 1e3,
        lag_first=max(run[0][1] for run in runs if run),
        lag_p99=lags[int(len(lags) * 0.99)],
    )
