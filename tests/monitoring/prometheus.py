"""A real Prometheus on a free port, and ways to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from monitoring.rule_cases import RULES


class Prometheus:
    """One that runs."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def get(self, path: str, **parameters: str) -> Any:
        """An answer's `data`."""
        async with self.session.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            answer = await response.json()
            assert answer["status"] == "success", (parameters, answer)
            return answer["data"]

    async def values(self, expr: str) -> list[float]:
        """The numbers that an instant query finds; no NaN."""
        found = (await self.get("query", query=expr))["result"]
        numbers = [float(one["value"][1]) for one in found]
        return [number for number in numbers if not math.isnan(number)]


@contextlib.asynccontextmanager
async def prometheus(
    folder: Path, targets: Mapping[str, str], *, key: str, interval: str = "1s"
) -> AsyncIterator[Prometheus]:
    """Scrape `targets` (job to address) with the shipped rules loaded, until the block ends."""
    program = shutil.which("prometheus")
    assert program is not None
    (folder / "key").write_text(key)
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [address]}],
                **({"authorization": {"credentials_file": str(folder / "key")}} if job == "keel" else {}),
            }
            for job, address in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await _started(program, folder, port)
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(60):
                while not await _ready(session, url):
                    assert process.returncode is None, (folder / "prometheus.log").read_text()
                    await asyncio.sleep(0.05)
            yield Prometheus(url, session)
    finally:
        process.terminate()
        await process.wait()


async def _ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/-/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _started(program: str, folder: Path, port: int) -> asyncio.subprocess.Process:
    with (folder / "prometheus.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
        )
