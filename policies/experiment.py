"""What an experiment file may say: a model name whose arms are policies.

The first arm is the control: it answers whenever anything is in doubt. Weights are shares of the units, which
are what stays on one arm: sessions, users or keys. Here are only the file's form and its checks; how units
find their arms and what is concluded from them is the gateway's (`service.experiments`).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from policies.alignment import RewardModels
from policies.base import Frozen, Name
from policies.document import Document, read_document
from policies.errors import Fault, Loc, PolicyError, Problem
from policies.explain import explain, place, suggestion
from policies.watch import Fingerprint, fingerprint, policy_files, settled_changes

UnitKind = Literal["session", "user", "key"]
MetricName = Literal[
    "block_rate",
    "modify_rate",
    "error_rate",
    "feedback",
    "reward",
    "revise_rounds",
    "tokens_out",
    "characters",
    "duration_p50",
    "duration_p95",
    "first_token_p50",
    "first_token_p95",
]
DEFAULT_METRICS: tuple[MetricName, ...] = (
    "block_rate",
    "modify_rate",
    "error_rate",
    "feedback",
    "reward",
    "tokens_out",
    "duration_p50",
    "duration_p95",
    "first_token_p95",
)
Percent = Annotated[float, Field(gt=0, le=100)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86_400)]


class Named(Frozen):
    """A policy under a name of its own."""

    name: Name
    policy: Name


class Arm(Named):
    """What answers. `weight` is its share beside the others, with a ramp of the rest."""

    weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0


class Shadow(Named):
    """What gets a copy of some requests, and whose replies nobody sees."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.1


class Bound(Frozen):
    """Where an arm's metric may be: `max`, `min`, or against the control `max_increase`, `max_decrease`."""

    metric: MetricName
    max: float | None = None
    min: float | None = None
    max_increase: Annotated[float, Field(ge=0)] | None = None
    max_decrease: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [self.max, self.min, self.max_increase, self.max_decrease]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of 'max', 'min', 'max_increase' or 'max_decrease'")
        return self

    @property
    def relative(self) -> bool:
        """Whether it compares with the control."""
        return self.max is None and self.min is None

    def __str__(self) -> str:
        kind = next(k for k in ("max", "min", "max_increase", "max_decrease") if getattr(self, k) is not None)
        return f"{self.metric} {kind} {getattr(self, kind):g}"


class Ramp(Frozen):
    """An arm's way up: its share in percent, step by step; the other arms have the rest by their weights.

    min_units: that the arm must have had on a step; min_s: how long a step takes at least.
    approve:   steps, by their percent, that a person must approve before they begin.
    """

    arm: Name
    steps: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=20)] = (1.0, 5.0, 25.0, 100.0)
    min_units: Annotated[int, Field(ge=1)] = 200
    min_s: Annotated[float, Field(ge=0)] = 3_600.0
    approve: tuple[Percent, ...] = ()

    @model_validator(mode="after")
    def _upwards(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("'steps' must rise, as in [1, 5, 25, 100]")
        unknown = set(self.approve) - set(self.steps)
        if unknown:
            raise ValueError(f"'approve' names {min(unknown):g}, which is none of the steps")
        return self


class Scorer(RewardModels):
    """Scores the replies of all arms, and of shadows, behind the request; `share` of the requests."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class ExperimentSpec(Frozen):
    """One experiment.

    unit:       what stays on one arm: the first of these that a request has; one that has none is on its own
    window_s:   how long a unit is watched from its first request on; then it counts, once
    every_s:    how often the gateway looks, and so how soon a limit acts
    alpha:      the share of false alarms that is accepted, however often anybody looks
    plan_units: about how many units are expected; intervals are narrowest there, and right everywhere
    limits:     what takes the ramp's arm (or with none, all but the control) back when it is surely crossed
    gates:      what must surely hold before the ramp's next step
    scorer:     where the metric `reward` comes from; without one, from arms that rerank
    testers:    names of keys that may choose an arm with the header `x-keel-arm`, as admin keys may
    """

    name: Name
    description: str = ""
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=16)]
    unit: Annotated[tuple[UnitKind, ...], Field(max_length=3)] = ("session", "user", "key")
    window_s: Seconds = 300.0
    every_s: Seconds = 60.0
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    plan_units: Annotated[int, Field(ge=10)] = 2_000
    metrics: tuple[MetricName, ...] = DEFAULT_METRICS
    ramp: Ramp | None = None
    limits: tuple[Bound, ...] = ()
    gates: tuple[Bound, ...] = ()
    shadows: Annotated[tuple[Shadow, ...], Field(max_length=8)] = ()
    shadow_concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    scorer: Scorer | None = None
    testers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._twice(), *self._ramp_problems()]
        if sum(arm.weight for arm in self.arms) <= 0:
            problems.append(Problem(("arms",), "at least one arm needs a weight above 0"))
        if problems:
            raise PydanticCustomError("policy", "is not consistent", {"problems": problems})
        return self

    def _twice(self) -> Iterable[Problem]:
        seen: set[str] = set()
        for loc, one in self.places():
            if one.name in seen:
                yield Problem((*loc, "name"), f"{one.name!r} is used twice")
            seen.add(one.name)

    def places(self) -> Iterator[tuple[Loc, Named]]:
        """All arms and shadows, and where they stand."""
        yield from ((("arms", index), arm) for index, arm in enumerate(self.arms))
        yield from ((("shadows", index), shadow) for index, shadow in enumerate(self.shadows))

    def _ramp_problems(self) -> Iterable[Problem]:
        if self.ramp is None:
            if self.gates:
                yield Problem(("gates",), "gates stand between the steps of a ramp, and there is no 'ramp'")
            return
        names = [arm.name for arm in self.arms]
        if self.ramp.arm not in names:
            yield Problem(
                ("ramp", "arm"), f"no arm is called {self.ramp.arm!r}{suggestion(self.ramp.arm, names)}"
            )
        elif self.ramp.arm == self.control.name:
            yield Problem(("ramp", "arm"), "the first arm is the control, which can't be ramped")
        elif not any(arm.weight for arm in self.arms if arm.name != self.ramp.arm):
            yield Problem(("arms",), "the arms beside the ramp's need a weight above 0")

    @property
    def control(self) -> Arm:
        return self.arms[0]

    @property
    def watched(self) -> tuple[str, ...]:
        """The arms that limits are about."""
        return (self.ramp.arm,) if self.ramp else tuple(arm.name for arm in self.arms[1:])

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    def shares(self, step: int = 0) -> dict[str, float]:
        """Each arm's share of the units, at a step of the ramp; they add up to 1."""
        if self.ramp is None:
            total = sum(arm.weight for arm in self.arms)
            return {arm.name: arm.weight / total for arm in self.arms}
        share = self.ramp.steps[step] / 100
        rest = sum(arm.weight for arm in self.arms if arm.name != self.ramp.arm)
        return {
            arm.name: share if arm.name == self.ramp.arm else (1 - share) * arm.weight / rest
            for arm in self.arms
        }

    def all_to(self, name: str) -> dict[str, float]:
        """Everything to one arm."""
        return {arm.name: float(arm.name == name) for arm in self.arms}


@dataclass(frozen=True, slots=True)
class LoadedExperiment:
    """An experiment as it was read. `digest` changes when anything but its description does."""

    spec: ExperimentSpec
    digest: str
    path: Path | None = None

    @classmethod
    def of(cls, spec: ExperimentSpec, path: Path | None = None) -> LoadedExperiment:
        told = spec.model_dump(mode="json", exclude={"description"})
        canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return cls(spec, hashlib.sha256(canonical.encode()).hexdigest(), path)

    @property
    def name(self) -> str:
        return self.spec.name


Check = Callable[[ExperimentSpec], Iterable[Problem]]


def load_experiment(
    path: Path, policies: Collection[str] | None = None, check: Check | None = None
) -> LoadedExperiment:
    """The experiment in `path`. Raises `PolicyError` with everything that is wrong with it.

    policies: the names of those that are served; None leaves unchecked whether they are there.
    check:    what else must hold; it gets a spec of the right shape.
    """
    return LoadedExperiment.of(read_experiment(read_document(path), path, policies, check), path)


def read_experiment(
    document: Document, path: Path, policies: Collection[str] | None, check: Check | None = None
) -> ExperimentSpec:
    """The experiment that a document describes; `path` is for the messages. Raises like `load_experiment`."""
    try:
        spec = ExperimentSpec.model_validate(document.data)
    except ValidationError as error:
        raise PolicyError(explain(error, document, path, ExperimentSpec)) from None
    problems = [*(misfits(spec, policies) if policies is not None else ()), *(check(spec) if check else ())]
    if problems:
        raise PolicyError(place(problem, document, path) for problem in problems)
    return spec


def misfits(spec: ExperimentSpec, policies: Collection[str]) -> Iterable[Problem]:
    """Where an experiment and the policies that are served don't go together."""
    if spec.name in policies:
        yield Problem(("name",), f"{spec.name!r} is the name of a policy; an experiment needs its own")
    known = sorted(policies)
    for loc, one in spec.places():
        if one.policy not in policies:
            message = f"there is no policy {one.policy!r}{suggestion(one.policy, known)}"
            yield Problem((*loc, "policy"), message)


@dataclass(frozen=True, slots=True)
class ExperimentReload:
    """What holds from now on, and what could not be taken over."""

    experiments: Mapping[str, LoadedExperiment]
    faults: tuple[Fault, ...] = ()
    changed: bool = False


class ExperimentLibrary:
    """The experiments of several folders, by name. What is wrong is not taken over; what stood before stands,
    as long as its policies do."""

    def __init__(
        self, folders: Sequence[Path], policies: Collection[str], check: Check | None = None
    ) -> None:
        """Loads everything; raises `PolicyError` with all that is wrong in all files."""
        self.folders = tuple(map(Path, folders))
        self._check = check
        self._lock = threading.Lock()
        self._files: dict[Path, LoadedExperiment] = {}
        self._seen: Fingerprint = ()
        outcome = self.reload(policies)
        if outcome.faults:
            raise PolicyError(outcome.faults)

    def snapshot(self) -> Mapping[str, LoadedExperiment]:
        """All experiments as they are now."""
        return MappingProxyType({loaded.name: loaded for loaded in self._files.values()})

    def reload(self, policies: Collection[str]) -> ExperimentReload:
        """Reads all files anew, against the policies that are served now."""
        with self._lock:
            self._seen = fingerprint(self.folders)
            files: dict[Path, LoadedExperiment] = {}
            faults: list[Fault] = []
            for path in self._paths(faults):
                try:
                    found = load_experiment(path, policies, self._check)
                except PolicyError as error:
                    faults += error.faults
                    kept = self._files.get(path)
                    if kept is None or list(misfits(kept.spec, policies)):
                        continue
                    found = kept
                twin = next((other for other, one in files.items() if one.name == found.name), None)
                if twin is not None:
                    mark = _name_fault(path, f"experiment {found.name!r} is also defined in {twin}")
                    faults.append(mark)
                    continue
                files[path] = found
            changed = files != self._files
            self._files = files
        return ExperimentReload(self.snapshot(), tuple(sorted(set(faults))), changed)

    async def watch(self, *, poll: float = 5.0, settle: float = 0.3) -> AsyncIterator[None]:
        """Yields when files have changed and settled; `reload` is the caller's to call."""
        async for _ in settled_changes(self.folders, lambda: self._seen, poll=poll, settle=settle):
            yield

    def _paths(self, faults: list[Fault]) -> list[Path]:
        paths: list[Path] = []
        for folder in self.folders:
            try:
                paths += policy_files(folder)
            except OSError as error:
                faults.append(Fault(folder, 1, 1, f"can't be read: {error.strerror or error}"))
                paths += [path for path in self._files if path.parent == folder]
        return paths


def _name_fault(path: Path, message: str) -> Fault:
    try:
        document: Document | None = read_document(path)
    except PolicyError:
        document = None
    if document is None:
        return Fault(path, 1, 1, message)
    return place(Problem(("name",), message), document, path)
