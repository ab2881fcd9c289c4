"""One upstream over pooled HTTP: a JSON body out, a whole reply or a stream of SSE payloads back.

The request path is short on purpose: prebuilt URLs and headers, one timer a request, no task per chunk.
Closing an `EventStream`, or cancelling the task inside `complete` or `open_stream`, closes the connection
at once, which is how an OpenAI-compatible server learns that it can stop generating.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from service.engine.config import SizeLimits, TimeLimits, UpstreamConfig
from service.engine.deadlines import Deadlines
from service.engine.errors import (
    ConnectError,
    Interrupted,
    Phase,
    ProtocolError,
    TimeoutKind,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeout,
)
from service.engine.event_stream import EventStream, OpenResponses

# RFC 9110 section 7.6.1, and what older proxies send beside it.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Set by this client, or the caller's secrets: a client's key to the gateway is not the upstream's business.
_NOT_FORWARDED = HOP_BY_HOP | {
    "accept-encoding",
    "authorization",
    "api-key",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "x-api-key",
}
_AIOHTTP_WARNS_ABOVE = 1 << 20  # bytes bodies above this size go out in slices instead
# uvicorn, hence vLLM, closes idle connections after 5 s: stop reusing them before it does.
_KEEPALIVE_SECONDS = 4.0

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response with a 2xx status. `headers` are as received; see `end_to_end`."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    upstream: str


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The response headers that a gateway may pass on: without hop-by-hop ones, length and cookies."""
    nominated = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    dropped = HOP_BY_HOP | nominated | {"content-length", "set-cookie"}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


def retry_after_seconds(headers: CIMultiDictProxy[str]) -> float | None:
    """The Retry-After header in seconds; None where it is absent, a date, or no finite number."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


class UpstreamClient:
    """A pooled client of one upstream. Bounding concurrency is the pool's work, not this class's."""

    def __init__(
        self, config: UpstreamConfig, times: TimeLimits | None = None, sizes: SizeLimits | None = None
    ) -> None:
        """Raises `ValueError` where `config.api_key_env` names a variable that is not set."""
        self.config = config
        self.name = config.name
        self.times = times or TimeLimits()
        self.sizes = sizes or SizeLimits()
        self._urls: dict[str, URL] = {}
        self._root = config.root
        self._headers = _base_headers(config)
        self._session: aiohttp.ClientSession | None = None
        self._open = OpenResponses()
        self._total = Deadlines(self.times.total)

    async def open(self) -> None:
        """Make the connection pool; connections themselves are made on demand."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, ttl_dns_cache=30),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self.times.connect, sock_connect=self.times.connect
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection; streams still open are interrupted."""
        self._open.close()
        self._total.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def move(self, base_url: str) -> None:
        """Send new requests to another address of the same server."""
        self._root = base_url.rstrip("/").removesuffix("/v1")
        self._urls.clear()

    async def complete(
        self, path: str, body: bytes | None, headers: Headers | None = None, *, method: str = "POST"
    ) -> Reply:
        """Send `body` (JSON) to `path` and return the whole reply.

        `path` is absolute, like `/v1/embeddings`. Raises an `UpstreamError`.
        """
        phase: Phase = "headers"
        response: aiohttp.ClientResponse | None = None
        try:
            with self._total.watch():
                response = await self._send(method, path, body, headers)
                self._open.add(response)
                phase = "body"
                if not 200 <= response.status < 300:
                    raise await self._status_error(response)
                content = await self._read(response, self.sizes.body)
        except UpstreamError:
            raise
        except Exception as error:
            raise self._translate(error, phase, response, "total", self.times.total) from error
        finally:
            if response is not None:
                self._open.discard(response)
                response.close()  # does nothing after a body that was read to its end
        return Reply(response.status, response.headers, content, self.name)

    async def open_stream(
        self, path: str, body: bytes, headers: Headers | None = None, *, raw: bool = False
    ) -> EventStream:
        """Send `body` and return the stream once its headers are there.

        With `raw` the stream is for reading bytes as they come, and may be of any content type. Raises an
        `UpstreamError`. The caller closes the stream.
        """
        started = asyncio.get_running_loop().time()
        kind: TimeoutKind = "first_token" if self.times.first_token <= self.times.total else "total"
        limit = min(self.times.first_token, self.times.total)
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(limit):
                response = await self._send("POST", path, body, headers)
                if response.status != 200:
                    raise await self._status_error(response)
                if not raw and response.content_type != "text/event-stream":
                    raise self._protocol_error(
                        f"sent {response.content_type!r} where an event stream was asked"
                    )
            return EventStream(
                response,
                upstream=self.name,
                times=self.times,
                max_event=self.sizes.event,
                done_required=self.config.done_required,
                started=started,
                open_responses=self._open,
            )
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, UpstreamError) or not isinstance(error, Exception):
                raise
            raise self._translate(error, "headers", None, kind, limit) from error

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: Headers | None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError(f"upstream {self.name!r}: the client is not open")
        url = self._urls.get(path)
        if url is None:
            url = self._url(path)
        data = body if body is None or len(body) <= _AIOHTTP_WARNS_ABOVE else io.BytesIO(body)
        response = await self._session.request(
            method,
            url,
            data=data,
            headers=_forwarded(headers) if headers else None,
            allow_redirects=False,
        )
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise self._protocol_error("sent a compressed body, which was not asked for")
        return response

    def _url(self, path: str) -> URL:
        url = URL(self._root + path, encoded=True)
        if len(self._urls) < 64:  # the API's paths are few, and callers can't fill the memory
            self._urls[path] = url
        return url

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        length = response.content_length
        if length is not None and length <= limit:
            return await response.read()
        chunks: list[bytes] = []
        size = 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > limit:
                raise self._protocol_error(f"sent a body above {limit} bytes", bytes_received=True)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _status_error(self, response: aiohttp.ClientResponse) -> UpstreamStatusError:
        body = bytearray()
        try:
            while len(body) < self.sizes.error_body and (chunk := await response.content.readany()):
                body += chunk
        except (aiohttp.ClientError, OSError):
            pass  # the status is what matters
        return UpstreamStatusError(
            response.status,
            bytes(body[: self.sizes.error_body]),
            retry_after=retry_after_seconds(response.headers),
            upstream=self.name,
        )

    def _protocol_error(self, message: str, bytes_received: bool = False) -> ProtocolError:
        return ProtocolError(message, upstream=self.name, phase="body", bytes_received=bytes_received)

    def _translate(
        self,
        error: Exception,
        phase: Phase,
        response: aiohttp.ClientResponse | None,
        kind: TimeoutKind,
        seconds: float,
    ) -> UpstreamError:
        received = response is not None and response.content.total_bytes > 0
        # aiohttp's connection timeout is a TimeoutError too: the narrower one goes first.
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamTimeout("connect", self.times.connect, upstream=self.name, phase="connect")
        if isinstance(error, TimeoutError):
            return UpstreamTimeout(kind, seconds, upstream=self.name, phase=phase, bytes_received=received)
        if isinstance(error, aiohttp.ClientConnectorError):
            return ConnectError(f"can't connect: {error.os_error}", upstream=self.name, phase="connect")
        if isinstance(error, aiohttp.ClientResponseError):
            return ProtocolError("sent a malformed HTTP response", upstream=self.name, phase=phase)
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return Interrupted(
                f"the connection ended early ({type(error).__name__})",
                upstream=self.name,
                phase=phase,
                bytes_received=received,
            )
        raise error


def _forwarded(headers: Headers) -> dict[str, str]:
    """What of a caller's headers goes to the upstream."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in _NOT_FORWARDED and value.isprintable()
    }


def _base_headers(config: UpstreamConfig) -> CIMultiDict[str]:
    # All that aiohttp would add by itself stands here: telling it to leave one out costs time each time.
    headers = CIMultiDict(
        {
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "keel",
        }
    )
    key = config.api_key
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env)
        if not key:
            raise ValueError(
                f"upstream {config.name!r}: environment variable {config.api_key_env!r} must hold its API "
                f"key and is not set"
            )
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers
