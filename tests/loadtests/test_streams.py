"""The stream measurement measures: a caller behind a delay is seen to be behind by that delay."""

from __future__ import annotations

import asyncio

import pytest

from loadtests.bench.processes import free_port
from loadtests.bench.streams import Clock, PacedUpstream, follow_all


async def _relay(port: int, upstream: int, delay: float) -> asyncio.Server:
    """Pass bytes on both ways; each piece of the reply waits `delay` seconds first."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(wait)
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(pump(reader, up_writer, 0.0), pump(up_reader, writer, delay))

    return await asyncio.start_server(serve, "127.0.0.1", port)


@pytest.mark.parametrize("delay", [0.0, 0.02])
async def test_a_delay_between_upstream_and_caller_is_what_is_reported(delay: float) -> None:
    clock = Clock()
    upstream = PacedUpstream(clock, tokens=12, interval=0.06)
    port, relayed = free_port(), free_port()
    await upstream.start(port)
    relay = await _relay(relayed, port, delay)
    try:
        url = f"http://127.0.0.1:{relayed}"
        figures = await follow_all(url, "mock", clock, streams=2, tag="t", interval=0.06)
    finally:
        relay.close()
        await upstream.aclose()
    assert figures.chunks == 24
    assert figures.added_p50_ms >= delay * 1e3
    assert figures.added_p50_ms < delay * 1e3 + 30
