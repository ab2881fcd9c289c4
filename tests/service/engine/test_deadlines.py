"""Many tasks under one time limit."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.deadlines import Deadlines


async def wait_for_ever(deadlines: Deadlines) -> None:
    with deadlines.watch():
        await asyncio.Event().wait()


async def test_each_task_has_its_own_time() -> None:
    deadlines, loop = Deadlines(0.05), asyncio.get_running_loop()

    async def timed(after: float) -> float:
        await asyncio.sleep(after)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await wait_for_ever(deadlines)
        return loop.time() - began

    took = await asyncio.gather(*(timed(after) for after in (0, 0.03, 0.03, 0.2)))
    assert min(took) >= 0.05


async def test_who_is_done_in_time_is_left_alone() -> None:
    deadlines = Deadlines(0.05)
    with deadlines.watch():
        pass
    with pytest.raises(TimeoutError):
        await wait_for_ever(deadlines)  # the timer has looked after both
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_errors_pass() -> None:
    with pytest.raises(KeyError), Deadlines(1).watch():
        raise KeyError


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    task = asyncio.create_task(wait_for_ever(Deadlines(60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_meets_the_limit_wins() -> None:
    deadlines = Deadlines(60)
    deadline = deadlines.watch()

    async def both() -> None:
        with deadline:
            await asyncio.Event().wait()

    task = asyncio.create_task(both())
    await asyncio.sleep(0)
    deadline.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_only_a_task_can_be_limited() -> None:
    failures: list[Exception] = []

    def outside() -> None:
        try:
            with Deadlines(1).watch():
                pass
        except RuntimeError as error:
            failures.append(error)

    asyncio.get_running_loop().call_soon(outside)
    await asyncio.sleep(0)
    assert "needs a task" in str(failures[0])
