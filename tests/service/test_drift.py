"""Drift: what moved is seen, what did not is not, and a new checkpoint begins anew."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from service.telemetry.drift import Drift, Drifted, ks, psi
from service.telemetry.metrics import Metrics, child
from tests.fakes import upstream as fake
from tests.service.conftest import Serve, until


class Watched:
    """A drift watch over metrics that a test fills, and its clock."""

    def __init__(self, file: Path, window_s: float = 3_600.0) -> None:
        self.metrics = Metrics()
        self.now = 0.0
        self.bindings = {"mine": "one"}
        self.drift = Drift(
            self.metrics,
            file,
            window_s=window_s,
            reference_samples=2_000,
            min_samples=200,
            bindings=lambda: self.bindings,
            clock=lambda: self.now,
        )
        self.drift.load()

    def rewards(self, source: random.Random, count: int, mean: float = 0.0) -> None:
        for _ in range(count):
            child(self.metrics.reward_score, "mine", "given").observe(source.gauss(mean, 1.0))

    def look(self, after: float = 60.0) -> Drifted:
        self.now += after
        self.drift.look()
        (found,) = self.drift.found()
        return found

    def page(self) -> str:
        return self.metrics.exposition().decode()


def test_the_statistics_are_those_of_the_books() -> None:
    source = np.random.default_rng(7)
    bounds = [-1.0, 0.0, 1.0]
    one, two = source.normal(0, 1, 4_000), source.normal(0.3, 1.2, 1_000)
    a, b = (tuple(np.bincount(np.digitize(x, bounds), minlength=4).tolist()) for x in (one, two))
    binned = [np.digitize(x, bounds) for x in (one, two)]
    assert ks(a, b) == pytest.approx(stats.ks_2samp(*binned).statistic)
    p, q = np.array(a) / 4_000, np.array(b) / 1_000
    assert psi(a, b) == pytest.approx(float(((p - q) * np.log(p / q)).sum()), rel=0.01)
    assert psi(a, a) == pytest.approx(0)
    assert math.isfinite(psi((10, 0), (0, 10)))


def test_the_same_traffic_is_no_drift_and_another_is(tmp_path: Path) -> None:
    """20 seeds: 160 looks at windows of 300 to 900 values, of which none may cry wolf."""
    calm: list[float] = []
    moved: list[float] = []
    for seed in range(20):
        watched, source = Watched(tmp_path / f"{seed}.json", window_s=180), random.Random(seed)
        watched.rewards(source, 2_000)
        assert watched.look().psi is None  # the reference is complete, the window empty
        for _ in range(8):
            watched.rewards(source, 300)
            calm.append(watched.look().psi or 0.0)
        for _ in range(3):
            watched.rewards(source, 300, mean=-0.7)
            found = watched.look()
        moved.append(found.psi or 0.0)
        assert (found.ks or 0.0) > 0.2
    assert max(calm) < 0.25  # where the alert begins
    assert min(moved) > 0.25


def test_a_window_forgets(tmp_path: Path) -> None:
    watched, source = Watched(tmp_path / "drift.json", window_s=120), random.Random(1)
    watched.rewards(source, 2_000)
    watched.look()
    watched.rewards(source, 500, mean=3)
    assert (watched.look().psi or 0) > 1
    watched.look()
    assert 'keel_drift_psi{model="mine",signal="reward"}' in watched.page()
    found = watched.look()
    assert (found.window_samples, found.psi) == (0, None)
    assert "keel_drift_psi{" not in watched.page()  # too little to say anything: no old word either
    watched.rewards(source, 500)
    assert (watched.look().psi or 0) < 0.25


def test_references_are_kept_and_bound_to_a_checkpoint(tmp_path: Path) -> None:
    file, source = tmp_path / "state" / "drift.json", random.Random(2)
    first = Watched(file)
    first.rewards(source, 1_500)
    assert not first.look().complete
    second = Watched(file)  # the process was started again
    second.rewards(source, 600)
    assert second.look() == Drifted("mine", "reward", 2_100, True, 0, None, None)
    third = Watched(file)
    third.rewards(source, 300, mean=2)
    found = third.look()
    assert (found.reference_samples, found.window_samples) == (2_100, 300)
    assert (found.psi or 0) > 0.25
    third.bindings["mine"] = "another checkpoint"
    assert third.look().reference_samples == 0
    third.rewards(source, 2_000, mean=2)
    third.look()
    third.rewards(source, 300, mean=2)
    assert (third.look().psi or 1) < 0.25  # what was drift is normal now
    third.drift.reset()
    assert third.look() == Drifted("mine", "reward", 0, False, 0, None, None)
    third.bindings.clear()
    third.drift.look()
    assert third.drift.found() == []
    file.write_text("{")
    assert Watched(file).drift.found() == []


ADMIN = {"authorization": "Bearer an-admin-key-of-length"}
QUICK = {"every_s": 0.05, "reference_samples": 30, "min_samples": 20}


async def test_a_gateway_watches_lengths(serve: Serve) -> None:
    async with serve(admin_key="an-admin-key-of-length", drift=QUICK) as keel:

        async def lengths() -> dict[str, object]:
            _, page, _ = await keel.get("/admin/v1/drift", ADMIN)
            return {one["signal"]: one for one in json.loads(page)["signals"]}

        keel.upstream.default = fake.well_behaved("one two three")
        for _ in range(30):
            await keel.chat()
        found = keel.gateway.drift.found
        await until(lambda: [one.complete for one in found()] == [True, True])
        keel.upstream.default = fake.well_behaved("word " * 100)
        for _ in range(25):
            await keel.chat()
        await until(lambda: all(one.psi is not None for one in found()))
        psis = {one.signal: one.psi or 0.0 for one in found()}
        assert psis["tokens_out"] > 1
        assert psis["tokens_in"] < 0.25
        page = (await keel.get("/metrics", ADMIN))[1].decode()
        assert 'keel_drift_psi{model="plain",signal="tokens_out"}' in page
        assert sorted(await lengths()) == ["tokens_in", "tokens_out"]
        _, answer, _ = await keel.post("/admin/v1/drift/reset", {"policy": "nobody"}, ADMIN)
        assert answer["error"]["code"] == "model_not_found"
        status, answer, _ = await keel.post("/admin/v1/drift/reset", {}, ADMIN)
        assert (status, answer) == (200, {"policies": ["plain"]})
        await until(lambda: not any(one.complete for one in found()))
        assert (keel.gateway.settings.state_dir / "drift-gateway.json").is_file()
