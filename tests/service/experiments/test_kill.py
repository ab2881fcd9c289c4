"""`kill -9` of a real gateway under load: what it has answered for is in the store afterwards."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
from sqlalchemy import text

from service.store.database import Database
from tests.fakes.upstream import FakeUpstream
from tests.service.experiments.conftest import ADMIN, TWO, say_hello
from tests.service.test_serve import serving


async def test_kill_9_loses_no_exposure_and_no_experiment_that_was_answered(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"admin_key: {ADMIN['authorization'][7:]}\n")
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "test.yaml").write_text("name: test\nevery_s: 600\n" + TWO.replace("other", "plain"))
    arguments = ("--config", str(config), "--experiments", str(folder))
    answered: list[str] = []
    async with FakeUpstream(say_hello) as upstream, aiohttp.ClientSession() as session:
        async with serving(tmp_path, upstream, *arguments) as (process, url, _):
            await begun(session, url)

            async def talk(worker: int) -> None:
                for number in range(10_000):
                    name = f"{worker}-{number}"
                    body = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
                    try:
                        async with session.post(
                            f"{url}/v1/chat/completions", json=body, headers={"x-session-id": name}
                        ) as response:
                            answer = await response.json()
                    except (aiohttp.ClientError, ValueError):
                        return
                    answered.append(answer["id"])

            talking = [asyncio.create_task(talk(worker)) for worker in range(4)]
            async with asyncio.timeout(60):
                while len(answered) < 150:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            made = {
                "name": "made",
                "arms": [{"name": "a", "policy": "plain"}, {"name": "b", "policy": "plain"}],
            }
            async with session.put(f"{url}/admin/v1/experiments/made", json=made, headers=ADMIN) as response:
                assert response.status == 201
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await asyncio.gather(*talking)
        for path in (tmp_path / "policies").iterdir():
            path.unlink()
        (tmp_path / "policies").rmdir()
        async with serving(tmp_path, upstream, *arguments) as (_, url, _):
            async with session.get(f"{url}/v1/models") as response:
                assert "made" in [model["id"] for model in (await response.json())["data"]]
            database = Database(f"sqlite:///{tmp_path / 'state' / 'keel.db'}")
            async with asyncio.timeout(60):
                while await count(database) < len(answered):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)
            await database.close()


async def begun(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until the experiment's state is known: until then, only the control answers."""
    async with asyncio.timeout(60):
        while True:
            async with session.get(f"{url}/metrics") as response:
                if 'keel_experiment_weight{arm="new",experiment="test"} 0.5' in await response.text():
                    return
            await asyncio.sleep(0.05)


async def count(database: Database) -> int:
    async with database.read() as connection:
        found = await connection.execute(text("SELECT count(*) FROM exposures"))
        return int(found.scalar_one())
