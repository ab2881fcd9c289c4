"""Two gateways behind nginx, with real PostgreSQL and Redis, are one service.

One cluster for all of these; the last one kills half of it.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from tests.integration.cluster import ADMIN, Cluster, cluster

pytestmark = [
    pytest.mark.servers("nginx", "redis-server", "initdb"),
    pytest.mark.xdist_group("replicas"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def replicas(postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("replicas"), postgres_server.new_database()) as found:
        yield found


def test_a_keys_limit_holds_for_both_together(replicas: Cluster) -> None:
    answers = [replicas.chat(replicas.limited_key) for _ in range(16)]
    statuses = Counter(status for status, _, _ in answers)
    # A window slides: where a minute ends in between, the part of the last one that counts is rounded.
    assert statuses[200] in (6, 7)
    assert statuses[200] + statuses[429] == 16
    assert len({headers["x-replica"] for status, _, headers in answers if status == 200}) == 2
    assert all("retry-after" in headers for status, _, headers in answers if status == 429)


def test_a_session_stays_on_its_arm_whichever_replica_answers(replicas: Cluster) -> None:
    for url in replicas.replicas:  # until a replica has heard from the store, its control answers
        _until(lambda url=url: _arms("halves", replicas, url) == {"halves/control", "halves/new"})
    arms: dict[str, set[str]] = defaultdict(set)
    nodes: dict[str, set[str]] = defaultdict(set)
    for _, session in itertools.product(range(4), range(11)):
        status, _, headers = replicas.chat(model="halves", **{"x-session-id": f"s{session}"})
        assert status == 200
        arms[f"s{session}"].add(headers["x-keel-experiment"])
        nodes[f"s{session}"].add(headers["x-replica"])
    assert all(len(seen) == 1 for seen in arms.values())
    assert set.union(*arms.values()) == {"halves/control", "halves/new"}
    assert max(len(seen) for seen in nodes.values()) == 2


def test_a_promotion_reaches_both(replicas: Cluster) -> None:
    def serving(url: str) -> str:
        status, _, headers = replicas.chat(model="hot", url=url)
        assert status == 200
        return headers["x-keel-checkpoint"].partition("@")[0]

    first, second = replicas.replicas
    assert (serving(first), serving(second)) == ("base", "base")
    promotion = {"ref": "other", "alias": "chat"}
    status, answer, _ = replicas.ask("/admin/v1/checkpoints/promote", promotion, ADMIN, first)
    assert status == 200, answer
    assert serving(first) == "other"
    deadline = time.monotonic() + 60
    while serving(second) != "other":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_experiment_that_is_applied_reaches_both_and_leaves_both(replicas: Cluster) -> None:
    arms = [{"name": "control", "policy": "plain"}, {"name": "new", "policy": "strict"}]
    made, path = {"name": "applied", "arms": arms}, "/admin/v1/experiments/applied"
    status, answer, _ = replicas.ask(path, made, ADMIN, method="PUT")  # whichever nginx picks
    assert status == 201, answer

    for url in replicas.replicas:
        _until(lambda url=url: _arms("applied", replicas, url) == {"applied/control", "applied/new"})
    assert replicas.ask(path, {**made, "alpha": 0.1}, ADMIN, method="PUT")[0] == 409
    assert replicas.ask(path, None, ADMIN, method="DELETE")[0] == 200
    for url in replicas.replicas:
        _until(lambda url=url: _arms("applied", replicas, url) == {"404"})


def test_a_replica_that_is_killed_under_load_loses_no_feedback_that_was_acknowledged(
    replicas: Cluster,
) -> None:
    acknowledged: list[str] = []
    by_replica: Counter[str] = Counter()
    over = threading.Event()

    def caller() -> None:
        while not over.is_set():
            try:
                status, answer, _ = replicas.chat()
                if status != 200:
                    continue
                said = {"completion_id": answer["id"], "thumb": "up"}
                status, _, headers = replicas.ask("/v1/feedback", said, replicas.free_key)
            except OSError:  # the replica died with the request in hand: never acknowledged
                continue
            if status == 200:
                acknowledged.append(answer["id"])
                by_replica[headers["x-replica"]] += 1

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for thread in callers:
        thread.start()
    _until(lambda: len(by_replica) == 2 and min(by_replica.values()) >= 20)
    replicas.gateways[1].kill()
    at_death = len(acknowledged)
    _until(lambda: len(acknowledged) >= at_death + 40)
    over.set()
    for thread in callers:
        thread.join()
    assert len(set(acknowledged)) == len(acknowledged)
    kept = asyncio.run(_stored(replicas.database))
    assert set(acknowledged) <= kept
    assert replicas.chat(url=replicas.replicas[0])[0] == 200


def _arms(experiment: str, replicas: Cluster, url: str) -> set[str]:
    """What answers twelve sessions at one replica, or the status."""
    replies = [replicas.chat(model=experiment, url=url, **{"x-session-id": f"s{n}"}) for n in range(12)]
    return {headers.get("x-keel-experiment", str(status)) for status, _, headers in replies}


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def _stored(database: str) -> set[str]:
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch("SELECT completion_id FROM feedback WHERE kind = 'thumb'")
    finally:
        await connection.close()
    return {row["completion_id"] for row in rows}
