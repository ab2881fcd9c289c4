"""How a response leaves."""

from __future__ import annotations

import asyncio
from typing import cast

from service.protocol import OneWrite


class Recorder:
    """What a transport was told."""

    def __init__(self) -> None:
        self.told: list[bytes | None] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append(None)


def recorded() -> tuple[OneWrite, list[bytes | None]]:
    recorder = Recorder()
    return OneWrite(cast(asyncio.Transport, recorder), asyncio.get_running_loop()), recorder.told


async def test_a_head_and_the_body_that_follows_at_once_are_one_piece() -> None:
    wire, told = recorded()
    for piece in (b"head ", b"body ", b"more"):
        wire.write(piece)
    await asyncio.sleep(0)
    assert told == [b"head body ", b"more"]


async def test_a_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    wire, told = recorded()
    wire.write(b"head")
    assert told == []
    await asyncio.sleep(0)
    assert told == [b"head"]
    wire.write(b"first token")
    assert told == [b"head", b"first token"]


async def test_closing_loses_nothing() -> None:
    wire, told = recorded()
    wire.write(b"head")
    wire.close()
    await asyncio.sleep(0)
    assert told == [b"head", None]
