"""Which arm answers a request, and how that is recorded."""

from __future__ import annotations

import hashlib
import random
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policies.experiment import ExperimentSpec, LoadedExperiment, Scorer
from service.experiments.buckets import choose, fraction
from service.experiments.state import State
from service.http import Header

if TYPE_CHECKING:
    from service.catalog import Served

SESSION_HEADER = b"x-session-id"
ARM_HEADER = b"x-keel-arm"
REMEMBERED = 50_000
_draws = random.Random()  # noqa: S311 - samples, not secrets


@dataclass(frozen=True, slots=True)
class Unit:
    """What stays on one arm: its kind (`request` where a request has nothing to tell it by), and its name."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm that answers one request.

    unit:   keyed hash of the unit, for the records
    epoch:  the experiment's; None where its state isn't known yet: then the control answers, unrecorded
    chosen: by a tester, and so no part of the analysis
    scorer: what scores the reply, once it is given
    shadows: the copies of the request that other policies get; at most `room` of them run at once
    """

    experiment: str
    arm: str
    served: Served
    unit: str
    unit_kind: str
    epoch: int | None
    chosen: bool = False
    shadow: bool = False
    room: int = 0
    scorer: Scorer | None = None
    shadows: tuple[Assignment, ...] = ()

    @property
    def headers(self) -> tuple[Header, ...]:
        return ((b"x-keel-experiment", f"{self.experiment}/{self.arm}".encode()),)

    def label(self) -> dict[str, Any]:
        """What the reply's `guardrails` field tells."""
        return {"name": self.experiment, "arm": self.arm}


@dataclass(frozen=True, slots=True)
class Live:
    """An experiment as it runs here: its file, and its state as far as the store has told it."""

    loaded: LoadedExperiment
    version: str
    state: State | None = None
    fault: str = ""

    @property
    def spec(self) -> ExperimentSpec:
        return self.loaded.spec

    @property
    def known(self) -> State | None:
        """The state, where it goes with the file: else there is nothing to rely on but the control."""
        state = self.state
        return None if state is None or self.fault or not self.fits(state) else state

    def fits(self, state: State) -> bool:
        """Whether a state is about the arms that there are."""
        return set(state.shares) == {arm.name for arm in self.spec.arms}

    @property
    def shares(self) -> dict[str, float]:
        """Each arm's share of the units now."""
        return self.known.shares if self.known else self.spec.all_to(self.spec.control.name)

    def arm_of(self, unit: Unit) -> str:
        return choose(self.spec.name, self.shares, unit.name)

    def shadows_of(self, unit: Unit) -> list[str]:
        """The shadows that get a copy: a share of the units, or of the requests where these are units."""
        return [
            shadow.name
            for shadow in self.spec.shadows
            if fraction("shadow", self.spec.name, shadow.name, unit.name) < shadow.share
        ]

    def policy_of(self, arm: str) -> str:
        named = next(one for _, one in self.spec.places() if one.name == arm)
        return named.policy


class UnitHasher:
    """Units under a key, so that the store holds no session's, user's or key's name."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"keel-units").digest()

    @property
    def fingerprint(self) -> str:
        """Differs where another gateway hashes otherwise."""
        return hashlib.blake2b(self._key, digest_size=8, person=b"keel-fingerpri").hexdigest()

    def hash(self, experiment: str, unit: Unit) -> str:
        text = f"{experiment}\x1f{unit.kind}\x1f{unit.name}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16, key=self._key).hexdigest()


class Recent:
    """Exposures that were recorded a short while ago: a session's every request needs no row."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._size = size

    def add(self, key: str) -> bool:
        """Whether it is new."""
        if key in self._seen:
            self._seen.move_to_end(key)
            return False
        self._seen[key] = None
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)
        return True

    def discard(self, key: str) -> None:
        """Forget one."""
        self._seen.pop(key, None)


def exposure_id(assignment: Assignment) -> str:
    """One for each unit in each epoch; of a shadow, and of what testers choose, each arm's own."""
    own = f"\x1f{assignment.arm}" if assignment.shadow or assignment.chosen else ""
    text = f"{assignment.experiment}\x1f{assignment.epoch}\x1f{assignment.unit}{own}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def exposure_row(assignment: Assignment, *, stream: bool, kind: str) -> dict[str, Any]:
    """The row of the store's table `exposures`, before it is settled."""
    return {
        "id": exposure_id(assignment),
        "experiment": assignment.experiment,
        "epoch": assignment.epoch,
        "arm": assignment.arm,
        "unit": assignment.unit,
        "unit_kind": assignment.unit_kind,
        "at": time.time(),
        "chosen": int(assignment.chosen),
        "shadow": int(assignment.shadow),
        "stream": int(stream),
        "kind": kind,
    }


def unit_of(spec: ExperimentSpec, *, session: bytes | None, user: str | None, key: str | None) -> Unit:
    """The first of what the experiment goes by that the request has; else the request is its own unit."""
    given = {
        "session": session.decode("latin-1") if session else None,
        "user": user,
        "key": key,
    }
    for kind in spec.unit:
        name = given[kind]
        if name:
            return Unit(kind, f"{kind}:{name}")
    return Unit("request", f"request:{_draws.getrandbits(96):024x}")
