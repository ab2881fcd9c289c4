"""Old rows go, whoever asked for them; an analysis that goes on keeps its own."""

from __future__ import annotations

from sqlalchemy import select

from service.experiments.state import Event, State, Status
from service.pairing import pairs_of
from service.store.database import Database
from service.store.experiments import add_look, looks, save
from service.store.exposures import exposures
from service.store.retention import forget
from service.store.writer import insert_rows
from tests.service.store.conftest import Open, completion

DAY = 86_400.0
NOW = 200 * DAY


async def begun(database: Database, name: str, status: Status, epoch: int) -> None:
    """An experiment in its epoch: a unit and a look of the one before, an old and a new one of its own."""
    state = State(name, "v", status, 0, epoch, 0.0, {"a": 1.0}, "", "key", 1)
    async with database.change() as connection:
        assert await save(connection, state, Event("begin", "gateway", 0.0, ""))
        for of, at in ((epoch - 1, 1 * DAY), (epoch, 2 * DAY), (epoch, 199 * DAY)):
            unit = {
                "id": f"{name}-{of}-{at}",
                "experiment": name,
                "epoch": of,
                "arm": "a",
                "unit": "u",
                "at": at,
            }
            kind = {"unit_kind": "session", "chosen": 0, "shadow": 0, "stream": 0, "kind": "chat"}
            await insert_rows(connection, exposures, [unit | kind])
            await add_look(connection, name, of, at, {"at": at})


async def test_units_of_what_is_over_go_and_those_that_count_stay(open_store: Open) -> None:
    async with open_store() as (database, writer):
        await begun(database, "goes-on", "running", 2)
        await begun(database, "ended", "rolled_back", 2)
        await writer.write("completions", completion("old", at=1 * DAY))
        assert await forget(database, 90 * DAY, NOW) == 1 + 2 * 1 + 2 * 2
        async with database.read() as connection:
            for table in (exposures, looks):
                left = select(table.c.experiment, table.c.epoch, table.c.at).order_by(
                    *table.c["experiment", "at"]
                )
                assert [tuple(row) for row in await connection.execute(left)] == [
                    ("ended", 2, 199 * DAY),
                    ("goes-on", 2, 2 * DAY),
                    ("goes-on", 2, 199 * DAY),
                ]
        assert await forget(database, 90 * DAY, NOW) == 0


def test_a_pair_is_as_old_as_the_older_of_its_texts() -> None:
    text = {"prompt_digest": "d", "prompt": [], "policy": "p", "checkpoint": None, "arm": None}
    text |= {"experiment": None, "scored": None, "reward": None}
    kept = [
        {**text, "completion_id": name, "replies": [name], "at": at} for name, at in (("x", 5.0), ("y", 3.0))
    ]
    assert [pair["at"] for pair in pairs_of(kept)] == [3.0]


def test_replies_that_differ_in_white_space_are_no_pair() -> None:
    text = {"prompt_digest": "d", "prompt": [], "replies": ["Yes.", " Yes.\n", "No."], "completion_id": "c"}
    text |= {"policy": "p", "checkpoint": None, "arm": None, "at": 1.0}
    assert [(pair["first"], pair["second"]) for pair in pairs_of([text])] == [("Yes.", "No.")]
