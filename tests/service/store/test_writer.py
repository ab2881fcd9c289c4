"""Rows get there: in batches, once each, after a crash too, and past a database that is away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from service.store.database import RowRefused, StoreError
from service.store.writer import Writer
from tests.service.store.conftest import Open, completion, eventually, ids


def dropped(writer: Writer) -> dict[str, float]:
    samples = writer._metrics.store_dropped.collect()[0].samples
    return {sample.labels["reason"]: sample.value for sample in samples if sample.name.endswith("_total")}


async def test_what_was_put_arrives(open_store: Open) -> None:
    async with open_store() as (database, writer):
        assert all(writer.put("completions", completion(f"c{i:04}")) for i in range(1200))
        await eventually(database, [f"c{i:04}" for i in range(1200)])
        await asyncio.sleep(0.05)
        assert writer.lag() == 0


async def test_what_is_put_while_rows_are_committed_arrives_too(open_store: Open) -> None:
    async with open_store(every_s=0) as (database, writer):
        for number in range(400):
            writer.put("completions", completion(f"c{number:04}"))
            await asyncio.sleep(0.001)
        await eventually(database, [f"c{number:04}" for number in range(400)])


async def test_what_was_written_is_there_when_it_returns(open_store: Open) -> None:
    async with open_store() as (database, writer):
        await asyncio.gather(*(writer.write("completions", completion(f"c{i:03}")) for i in range(300)))
        assert await ids(database) == [f"c{i:03}" for i in range(300)]


async def test_a_row_that_is_there_is_not_there_twice(open_store: Open) -> None:
    async with open_store() as (database, writer):
        await writer.write("completions", completion("a", policy="first"))
        await writer.write("completions", completion("a", policy="second"))
        writer.put("completions", completion("a", policy="third"))
        await writer.flush()
        assert await ids(database) == ["a"]


async def test_a_bad_row_stops_no_other(open_store: Open) -> None:
    async with open_store() as (database, writer):
        bad = completion("bad", state=None)
        for row in (completion("a"), bad, completion("b")):
            writer.put("completions", row)
        writer.put("no_such_table", {"x": 1})
        await writer.flush()
        results = await asyncio.gather(
            *(writer.write("completions", row) for row in (completion("c"), bad, completion("d"))),
            return_exceptions=True,
        )
        assert await ids(database) == ["a", "b", "c", "d"]
        assert [type(result) for result in results] == [type(None), RowRefused, type(None)]
        assert dropped(writer) == {"refused": 2}


UNFIT: dict[str, dict[str, Any]] = {
    "a zero byte": {"checkpoint": "a\0b"},
    "too long": {"checkpoint": "x" * 300},
    "beyond a column": {"tokens_out": 2**31},
    "beyond any column": {"tokens_out": 2**63},
}


@pytest.mark.parametrize("fields", UNFIT.values(), ids=UNFIT)
async def test_a_row_that_does_not_fit_is_cut_and_stops_no_other(
    open_store: Open, fields: dict[str, Any]
) -> None:
    async with open_store() as (database, writer):
        for row in (completion("a"), completion("b", **fields), completion("c")):
            writer.put("completions", row)
        await writer.flush()
        assert await ids(database) == ["a", "b", "c"]
        assert dropped(writer) == {}


@pytest.mark.parametrize("fields", UNFIT.values(), ids=UNFIT)
async def test_who_writes_a_row_that_does_not_fit_is_told_and_no_other(
    open_store: Open, fields: dict[str, Any]
) -> None:
    async with open_store() as (database, writer):
        rows = (completion("a"), completion("b", **fields), completion("c"))
        results = await asyncio.gather(
            *(writer.write("completions", row) for row in rows), return_exceptions=True
        )
        assert {"a", "c"} <= set(await ids(database))
        assert results[0] is None and results[2] is None
        # SQLite takes more than it says.
        assert results[1] is None or isinstance(results[1], RowRefused)
        assert not any(str(value) in str(results[1]) for value in fields.values())


async def test_a_failure_that_nobody_thought_of_ends_neither_loop(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store() as (database, writer):
        whole, failures = writer._commit, iter([ValueError("odd"), OSError("the disk failed")])

        async def commit(lines: Any) -> None:
            for failure in failures:
                raise failure
            await whole(lines)

        monkeypatch.setattr(writer, "_commit", commit)
        async with asyncio.timeout(20):
            with pytest.raises(StoreError):
                await writer.write("completions", completion("lost"))
            writer.put("completions", completion("a"))
            await eventually(database, ["a"])
            await writer.write("completions", completion("b"))
        assert await ids(database) == ["a", "b"]


async def test_what_is_left_at_the_end_is_committed(open_store: Open) -> None:
    async with open_store(every_s=60) as (database, writer):
        writer.put("completions", completion("a"))
        await writer.close()
        assert await ids(database) == ["a"]
        assert writer.put("completions", completion("b")) is False
        with pytest.raises(StoreError):
            await writer.write("completions", completion("c"))


async def test_rows_wait_on_disk_while_the_store_is_away(tmp_path: Path, open_store: Open) -> None:
    nowhere = "postgresql://keel@127.0.0.1:1/keel"
    async with open_store(url=nowhere) as (_, writer):
        assert writer.put("completions", completion("waits"))
        with pytest.raises(StoreError):
            await writer.write("completions", completion("told"))
        with pytest.raises(StoreError):
            await writer.flush()
        assert writer.lag() > 0
    async with open_store() as (database, writer):
        await writer.resume()
        await eventually(database, ["waits"])
        await writer.flush()  # what is in the database is taken off the disk after that
    assert list((tmp_path / "spool").iterdir()) == []


async def test_the_disk_has_a_bound(open_store: Open) -> None:
    async with open_store(url="postgresql://keel@127.0.0.1:1/keel", max_bytes=2000) as (_, writer):
        kept = [writer.put("completions", completion(f"c{i}")) for i in range(10)]
        assert kept == [True] * sum(kept) + [False] * (10 - sum(kept))
        assert 4 <= sum(kept) <= 6
        assert dropped(writer) == {"full": 10 - sum(kept)}


PROGRAM = textwrap.dedent(
    """
    import asyncio, json, os, signal, sys
    import structlog
    from service.store.database import Database
    from service.store.writer import Writer
    from service.telemetry.metrics import Metrics
    from tests.service.store.conftest import completion
    from pathlib import Path

    async def main():
        database = Database(sys.argv[1])
        writer = Writer(database, Path(sys.argv[2]), Metrics(), structlog.get_logger(), every_s=0.02)
        number = 0
        while True:
            writer.put("completions", completion(f"p{number:05}"))
            print(f"p{number:05}", flush=True)
            if number % 10 == 0:
                await writer.write("completions", completion(f"w{number:05}"))
                print(f"w{number:05}", flush=True)
            number += 1
            await asyncio.sleep(0)

    asyncio.run(main())
    """
)


async def test_kill_9_loses_nothing_that_was_acknowledged(
    tmp_path: Path, store_url: str, open_store: Open
) -> None:
    command = [sys.executable, "-c", PROGRAM, store_url, str(tmp_path / "spool")]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=os.getcwd())
    assert process.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(60):
        while len([name for name in said if name.startswith("w")]) < 30:
            said.append((await process.stdout.readline()).decode().strip())
    process.send_signal(signal.SIGKILL)
    rest, _ = await process.communicate()
    said += rest.decode().split()[:-1]  # the last line may have been cut
    async with open_store() as (database, writer):
        await writer.resume()
        async with asyncio.timeout(20):
            while not set(said) <= set(await ids(database)):  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(0.02)
        await writer.flush()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_cut_line_costs_itself_only(tmp_path: Path, open_store: Open) -> None:
    async with open_store(every_s=60) as (_, writer):
        writer.put("completions", completion("a"))
        (segment,) = (tmp_path / "spool").glob("*/*.jsonl")
        with segment.open("ab") as file:
            file.write(b'["completions", {"completion_id": "b')
        await writer.flush()
        assert dropped(writer) == {"unreadable": 1}


async def test_a_living_process_keeps_its_folder(open_store: Open) -> None:
    async with open_store(every_s=60) as (database, writer), open_store() as (_, other):
        writer.put("completions", completion("mine"))
        await other.resume()
        await other.flush()
        assert await ids(database) == []
        await writer.flush()
        assert await ids(database) == ["mine"]
